"""Ranks of the K answers to a prompt as numbers that can be added and compared."""

from collections.abc import Sequence


def mid_ranks(ranks: Sequence[int | None]) -> list[float]:
    """Places of the answers, 1 for the best; tied answers share the mean of theirs.

    Invalid answers (None) are tied behind all others. Unlike dense ranks these add up to K (K + 1) / 2 whatever is
    tied, so that one annotator's count as much as another's.
    """
    # A valid rank is no larger than K, dense or not.
    levels = [len(ranks) + 1 if rank is None else rank for rank in ranks]
    return [sum(other < level for other in levels) + (levels.count(level) + 1) / 2 for level in levels]


def dense_ranks(values: Sequence[float | None]) -> tuple[int | None, ...]:
    """Ranks 1, 2, 2, 3 of values of which the smallest is the best; None stays None."""
    levels = sorted({value for value in values if value is not None})
    return tuple(None if value is None else levels.index(value) + 1 for value in values)
