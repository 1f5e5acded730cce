"""The real demo's annotator: prefers short, friendly, plain answers. Nobody here trained any part of it.

A score is the mean of three parts, each from 0 to 1:

* tone: VADER's compound sentiment (a word list and rules, Hutto and Gilbert 2014), from -1 to 1 there.
* ease: the automated readability index of textstat, years of schooling that an English text asks for: none is 1,
  `HARDEST_GRADE` years or more are 0.
* form: one or two sentences, and no list or second paragraph, is one half; a last sentence that ends is the other.

An answer without a letter scores 0 in all. What it does not see: whether the answer is true, or answers anything.
"""

import functools
import re

HARDEST_GRADE = 14.0
MOST_SENTENCES = 2
PARTS = ("tone", "ease", "form")

_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", flags=re.M)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*$")


def friendliness(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """Judges each answer by itself; the prompt is not read.

    Args:
        prompts: Only their number counts.
        completions: Answers, as texts or as messages.
        **columns: Other columns of the data set, unused.

    Returns:
        One score for each answer, from 0 to 1.

    Raises:
        ValueError: prompts and completions differ in number.
    """
    if len(prompts) != len(completions):
        raise ValueError(
            f"friendliness() needs one prompt for each answer; got {len(prompts)} prompts and {len(completions)} "
            "answers. Repeat a prompt that has several."
        )
    return [sum(parts.values()) / len(PARTS) for parts in map(judge_parts, map(answer_text, completions))]


def answer_text(completion: str | list[dict]) -> str:
    """What the assistant wrote, of a text or of messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(message["content"] for message in completion)


def judge_parts(text: str) -> dict[str, float]:
    """The parts of an answer's score, by name."""
    text = text.strip()
    if not any(character.isalpha() for character in text):
        return dict.fromkeys(PARTS, 0.0)
    return {"tone": _tone(text), "ease": _ease(text), "form": (_is_short(text) + _is_ended(text)) / 2}


def _tone(text: str) -> float:
    return (_vader().polarity_scores(text)["compound"] + 1) / 2


def _ease(text: str) -> float:
    # Of textstat's measures one that counts characters, words and sentences: those of syllables download a dictionary.
    from textstat import automated_readability_index

    return min(max(1 - automated_readability_index(text) / HARDEST_GRADE, 0.0), 1.0)


def _is_short(text: str) -> bool:
    from textstat import sentence_count

    return "\n" not in text and not _LIST_ITEM.search(text) and sentence_count(text) <= MOST_SENTENCES


def _is_ended(text: str) -> bool:
    return bool(_SENTENCE_END.search(text))


@functools.cache
def _vader():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
