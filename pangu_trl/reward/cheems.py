"""CheemsBench (arXiv:2502.17173): its records as they are published, and its scoring, re-derived.

A record has an `input`, a `category` (its name, or a list of which the first counts), `responses` with ids, and the
`rank` of each, as an object or as pairs; a lower one is better, and answers may share one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pangu_trl.data.formats.preferences import ranked_answers

PROMPT = "input"


def check_record(record: Mapping[str, Any], place: str) -> None:
    """Refuses a record that is none of CheemsBench.

    Raises:
        ValueError: Naming the place, the key, what it must be and what it is.
    """
    if not isinstance(record.get(PROMPT), str):
        raise ValueError(f"{place}: {PROMPT!r} must be a text in CheemsBench; got {record.get(PROMPT)!r}")
    if not isinstance(category_of(record), str):
        raise ValueError(
            f"{place}: 'category' must be a name or a list of names in CheemsBench; got {record.get('category')!r}"
        )
    try:
        ranked_answers(record)
    except ValueError as error:
        raise ValueError(f"{place}: in CheemsBench {error}") from error


def category_of(record: Mapping[str, Any]) -> Any:
    """What a record counts for: its first category."""
    category = record.get("category")
    return category[0] if isinstance(category, list) and category else category


def texts_of(record: Mapping[str, Any]) -> list[str]:
    """The answers of a record, in the order in which they are scored."""
    return ranked_answers(record)[0]


def metrics(records: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Figures of CheemsBench.

    Args:
        records: Its records, checked.
        scores: Of each record those of its answers, as `texts_of` has them.

    Returns:
        accuracy/NAME: Of a category, the share of the pairs of other rank whose better answer has the higher score;
            equal scores are wrong.
        exact_match/NAME: The share of the records all of whose pairs are right. One without a pair counts in neither.
        accuracy, exact_match: Their means over the categories.
        overall: The mean of these two.

    Raises:
        ValueError: No record has answers of different rank.
    """
    by_category: dict[str, list[list[bool]]] = defaultdict(list)
    for record, values in zip(records, scores, strict=True):
        right = pairs_right(ranked_answers(record)[1], values)
        if right:
            by_category[category_of(record)].append(right)
    if not by_category:
        raise ValueError("CheemsBench: no record has two answers of different rank, so there is nothing to measure")
    accuracy = {name: _mean([one for right in rows for one in right]) for name, rows in by_category.items()}
    exact_match = {name: _mean([all(right) for right in rows]) for name, rows in by_category.items()}
    found = {"accuracy": _mean(list(accuracy.values())), "exact_match": _mean(list(exact_match.values()))}
    found |= {f"accuracy/{name}": value for name, value in accuracy.items()}
    found |= {f"exact_match/{name}": value for name, value in exact_match.items()}
    return found | {"overall": (found["accuracy"] + found["exact_match"]) / 2}


def pairs_right(ranks: Sequence[int], scores: Sequence[float]) -> list[bool]:
    """Of each pair of answers of other rank, whether the better one has the higher score."""
    order = range(len(ranks))
    return [scores[one] > scores[other] for one in order for other in order if ranks[one] < ranks[other]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
