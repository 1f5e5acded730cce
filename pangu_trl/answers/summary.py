"""What sampled answers and their scores add up to, and how two sets of them compare."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pangu_trl.data.records import answer_text

from .records import Answers, Record, Scores

# Scripts without spaces between words: Thai and Lao, Burmese, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")

if TYPE_CHECKING:
    from torch import Tensor


def summarise_answers(answers: Answers, scores: Scores | None = None) -> dict[str, float]:
    """Sums up sampled answers, and their scores if there are any.

    Standard deviations are those of the answers themselves, not estimates for a larger population. Distinct-n counts
    n-grams of words, which are single characters in scripts that do not separate words.
    """
    records = answers.records
    texts = [answer_text(response) for record in records for response in record["responses"]]
    metrics: dict[str, float] = {"prompts": len(records), "answers": len(texts)}
    if scores is not None:
        all_scores = np.concatenate([np.asarray(row, dtype=float) for row in scores])
        metrics |= {
            "score/mean": float(all_scores.mean()),
            "score/std": float(all_scores.std()),
            "score/min": float(all_scores.min()),
            "score/max": float(all_scores.max()),
            "score/best_of_k": float(np.mean([max(row) for row in scores])),
        }
    metrics["length/mean_characters"] = sum(map(len, texts)) / len(texts)
    finished = [flag for record in records for flag in record.get("finished") or []]
    if len(finished) == len(texts):
        metrics["share/finished"] = sum(finished) / len(texts)
    metrics["share/empty"] = answers.num_empty / len(texts)
    metrics["share/duplicate"] = answers.num_duplicates / len(texts)
    words = [_words(text) for text in texts]
    metrics["distinct/1"] = distinct_ngrams(words, 1)
    metrics["distinct/2"] = distinct_ngrams(words, 2)
    return metrics


def match_prompts(records: Sequence[Record], others: Sequence[Record]) -> list[tuple[int, int]]:
    """Pairs the records of two files that hold the same prompt; a prompt's n-th record goes with its n-th there."""
    other_rows = {key: row for row, key in enumerate(_prompt_keys(others))}
    return [(row, other_rows[key]) for row, key in enumerate(_prompt_keys(records)) if key in other_rows]


def compare_scores(scores: Scores, other_scores: Scores, num_resamples: int = 2000) -> dict[str, float]:
    """Compares the scores of two sets of answers to the same prompts.

    Args:
        scores: For each prompt, the scores of its answers.
        other_scores: The same prompts' scores to compare with; K may differ.
        num_resamples: Number of bootstrap resamples of the prompts, drawn with a fixed seed.

    Returns:
        Mean over prompts of the difference of mean scores, its 95 % percentile bootstrap interval, and the win rate:
        the probability that one answer outscores another to the same prompt, ties counting one half.
    """
    pairs = list(zip(scores, other_scores, strict=True))
    differences = np.array([np.mean(row) - np.mean(other) for row, other in pairs])
    generator = np.random.default_rng(0)
    resampled = [generator.choice(differences, len(differences)).mean() for _ in range(num_resamples)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    win_rates = [_win_rate(row, other_row) for row, other_row in pairs]
    return {
        "against/prompts": len(pairs),
        "against/mean_difference": float(differences.mean()),
        "against/interval_low": float(low),
        "against/interval_high": float(high),
        "against/win_rate": float(np.mean(win_rates)),
    }


def win_share(differences: "Tensor") -> "Tensor":
    """What each comparison is worth: 1 where the first score is higher by the difference, 0.5 where they are equal."""
    return differences.heaviside(differences.new_tensor(0.5))


def _win_rate(scores: Sequence[float], other_scores: Sequence[float]) -> float:
    """How often one answer to a prompt outscores another one."""
    return float(np.heaviside(np.subtract.outer(scores, other_scores), 0.5).mean())


def _prompt_keys(records: Sequence[Record]) -> list[tuple[str, int]]:
    occurrences: Counter[str] = Counter()
    keys = []
    for record in records:
        prompt = json.dumps(record["prompt"], sort_keys=True)
        keys.append((prompt, occurrences[prompt]))
        occurrences[prompt] += 1
    return keys


def _words(text: str) -> list[str]:
    """Words between spaces, in lower case; each character in scripts that do not separate words."""
    return _WORD.findall(text.lower())


def distinct_ngrams(answers: Sequence[Sequence[Any]], n: int) -> float:
    """Share of different n-grams among all n-grams of the answers (distinct-n, Li et al. 2016, arXiv:1510.03055).

    Args:
        answers: Lists of words, or token ids.
        n: Length of the n-grams.
    """
    ngrams = [tuple(answer[start : start + n]) for answer in answers for start in range(len(answer) - n + 1)]
    return len(set(ngrams)) / max(len(ngrams), 1)
