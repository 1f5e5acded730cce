"""Measures of agreement as pure functions of ranks.

Written here, as the one kept library for Krippendorff's alpha is under the GPL, and SciPy would come along for a single
formula. The tests compare both with those libraries.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

NINETY_FIVE_PERCENT = 1.959963984540054


def weighted_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Weighted Kendall tau of two rankings (Vigna, arXiv:1404.3325): 1 for the same, -1 for the opposite.

    A pair of answers weighs 1 / place of the one plus 1 / place of the other: agreement on the best matters more than
    on the worst. Places are those of either ranking in turn, its ties broken by the other one, and the two results are
    averaged. Ties are handled as in tau-b: a pair that one ranking ties counts for neither side and weakens both.

    Args:
        first: Rank of each answer, lower is better, (K,).
        second: The same of the other ranking, (K,).

    Returns:
        None where a ranking ties all answers.
    """
    taus = []
    for leading, other in ((first, second), (second, first)):
        order = sorted(range(len(leading)), key=lambda answer: (leading[answer], other[answer]))
        weights = {answer: 1 / (place + 1) for place, answer in enumerate(order)}
        together = norm_leading = norm_other = 0.0
        for one in range(len(leading)):
            for two in range(one):
                weight = weights[one] + weights[two]
                sign, sign_other = (_sign(ranks[one] - ranks[two]) for ranks in (leading, other))
                together += weight * sign * sign_other
                norm_leading += weight * abs(sign)
                norm_other += weight * abs(sign_other)
        if not norm_leading or not norm_other:
            return None
        taus.append(together / math.sqrt(norm_leading * norm_other))
    return sum(taus) / len(taus)


def ordinal_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha at the ordinal level: 1 for agreement throughout, 0 for that of chance, less for worse.

    Content Analysis, 4th ed., 12.3. The ordinal difference of two values is the number of values between them, each end
    counting half; written with the middle of each value's stretch among all sorted values, it is a plain difference.

    Args:
        units: Of each thing that was judged, the values that it got, in any order; those with fewer than two are left
            out, as alpha leaves them.

    Returns:
        None where there is nothing to compare, or every value is the same.
    """
    pairable = [list(values) for values in units if len(values) > 1]
    counts = Counter(value for values in pairable for value in values)
    num_values = counts.total()
    middle, below = {}, 0
    for value in sorted(counts):
        middle[value] = below + counts[value] / 2
        below += counts[value]
    # The middles lie around half of what there is.
    expected = sum(count * (middle[value] - num_values / 2) ** 2 for value, count in counts.items())
    if not expected:
        return None
    observed = 0.0
    for values in pairable:
        places = [middle[value] for value in values]
        mean = sum(places) / len(places)
        observed += len(places) * sum((place - mean) ** 2 for place in places) / (len(places) - 1)
    return 1 - observed * (num_values - 1) / (num_values * expected)


def pair_counts(first: Sequence[float], second: Sequence[float]) -> tuple[int, int, int]:
    """Pairs of answers that two rankings order alike, that they order the other way round, and that either ties."""
    same = opposite = tied = 0
    for one in range(len(first)):
        for two in range(one):
            product = _sign(first[one] - first[two]) * _sign(second[one] - second[two])
            same += product > 0
            opposite += product < 0
            tied += product == 0
    return same, opposite, tied


def majority_cycles(rankings: Sequence[Sequence[float]]) -> list[list[int]]:
    """Answers whose majority goes round (Condorcet): each is beaten by another of its group, directly or not.

    An answer beats another if more annotators put it first than second. Fewer than three annotators cannot go round.

    Args:
        rankings: Of each annotator the rank of each answer, lower is better, (annotators, K).

    Returns:
        The groups of three or more answers, numbers from 0 in ascending order.
    """
    num_answers = len(rankings[0])
    beats: dict[int, set[int]] = {
        one: {two for two in range(num_answers) if sum(_sign(ranking[two] - ranking[one]) for ranking in rankings) > 0}
        for one in range(num_answers)
    }
    reaches = {one: _reachable(beats, one) for one in beats}
    groups = {tuple(two for two in sorted(reaches[one]) if one in reaches[two]) for one in beats if one in reaches[one]}
    return sorted(map(list, groups))


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927), which stays between 0 and 1."""
    share, square = successes / trials, NINETY_FIVE_PERCENT**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    spread = math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    half = NINETY_FIVE_PERCENT * spread / (1 + square / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def _reachable(beats: Mapping[int, set[int]], start: int) -> set[int]:
    found: set[int] = set()
    waiting = [start]
    while waiting:
        fresh = beats[waiting.pop()] - found
        found |= fresh
        waiting += fresh
    return found


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)
