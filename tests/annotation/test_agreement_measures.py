"""Tau, alpha, cycles and intervals: against numbers by hand and against SciPy and krippendorff."""

import math

import krippendorff
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_trl.annotation.agreement.measures import (
    majority_cycles,
    ordinal_alpha,
    pair_counts,
    weighted_tau,
    wilson_interval,
)
from pangu_trl.annotation.ranks import dense_ranks, mid_ranks


@st.composite
def two_rankings(draw):
    size = draw(st.integers(2, 8))
    ranking = st.lists(st.one_of(st.none(), st.integers(1, size)), min_size=size, max_size=size)
    return mid_ranks(draw(ranking)), mid_ranks(draw(ranking))


def test_tied_answers_share_places_and_invalid_ones_are_last():
    assert mid_ranks([1, 2, 2, 3]) == [1, 2.5, 2.5, 4]
    assert mid_ranks([None, 1, None]) == [2.5, 1, 2.5]
    assert mid_ranks([1, 1, 1]) == [2, 2, 2]
    assert mid_ranks([None, None]) == [1.5, 1.5]


@settings(deadline=None, max_examples=50)
@given(two_rankings())
def test_places_add_up_to_the_same_sum_whatever_is_tied(rankings):
    for places in rankings:
        assert sum(places) == len(places) * (len(places) + 1) / 2


def test_dense_ranks_leave_no_gap():
    assert dense_ranks([1, 2.5, 2.5, None, 7]) == (1, 2, 2, None, 3)


def test_weighted_tau_of_three_answers_by_hand():
    # Places 1, 2, 3 weigh 1, 1/2, 1/3. Pairs of places: (1, 2) 3/2, (1, 3) 4/3, (2, 3) 5/6; together 11/3.
    # The last two exchanged: in either ranking the pair weighs 5/6, so (11/3 - 2 * 5/6) / (11/3).
    assert weighted_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(6 / 11)
    # The first two exchanged: (11/3 - 2 * 3/2) / (11/3).
    assert weighted_tau([1, 2, 3], [2, 1, 3]) == pytest.approx(2 / 11)
    assert weighted_tau([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert weighted_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_weighted_tau_with_a_tie_by_hand():
    # The tied pair stands at (2, 3) in both orders of places: it leaves 17/6 of 11/3 on one side of the norm.
    assert weighted_tau([1, 2, 3], [1, 2.5, 2.5]) == pytest.approx(math.sqrt((17 / 6) / (11 / 3)))
    assert weighted_tau([1, 2, 3], [2, 2, 2]) is None
    assert weighted_tau([2, 2, 2], [2, 2, 2]) is None


@settings(deadline=None, max_examples=50)
@given(two_rankings())
def test_weighted_tau_is_that_of_scipy(rankings):
    one, two = rankings
    found = weighted_tau(one, two)
    expected = scipy.stats.weightedtau([-rank for rank in one], [-rank for rank in two]).statistic
    assert (found is None) == math.isnan(expected)
    if found is not None:
        assert found == pytest.approx(expected, abs=1e-12)
        assert weighted_tau(two, one) == pytest.approx(found, abs=1e-12)


def test_ordinal_alpha_by_hand():
    # Two annotators, two answers to one prompt, opposite: values 1 and 2 twice each, middles 1 and 3.
    # Observed: each unit (1 - 3)^2 twice over m - 1 = 1, so 16 / 4 values = 4.
    # Expected: 2 * (2 * 2) * 4 / (4 * 3) = 8/3. Alpha = 1 - 4 / (8/3) = -1/2.
    assert ordinal_alpha([[1, 2], [2, 1]]) == pytest.approx(-0.5)
    assert ordinal_alpha([[1, 1], [2, 2]]) == 1
    # Who was judged once says nothing.
    assert ordinal_alpha([[1, 1], [2, 2], [3]]) == 1
    assert ordinal_alpha([[1, 1], [1, 1]]) is None
    assert ordinal_alpha([[1], [2]]) is None
    assert ordinal_alpha([]) is None


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 5).flatmap(
        lambda annotators: st.lists(
            st.lists(
                st.one_of(st.none(), st.sampled_from([1, 1.5, 2, 3, 4.5])), min_size=annotators, max_size=annotators
            ),
            min_size=1,
            max_size=12,
        )
    )
)
def test_ordinal_alpha_is_that_of_krippendorff(units):
    judged = [[value for value in unit if value is not None] for unit in units]
    found = ordinal_alpha(judged)
    pairable = [values for values in judged if len(values) > 1]
    if len({value for values in pairable for value in values}) < 2:
        assert found is None
        return
    table = np.array([[math.nan if value is None else value for value in unit] for unit in units]).T
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="ordinal")
    assert found == pytest.approx(expected, abs=1e-12)


def test_pairs_are_alike_opposite_or_tied():
    # Pairs: (0, 1) alike, (0, 2) opposite, (1, 2) tied by the first.
    assert pair_counts([1, 2.5, 2.5], [2, 3, 1]) == (1, 1, 1)


def test_a_majority_that_goes_round_is_found():
    # Condorcet's own example: A before B twice, B before C twice, C before A twice.
    assert majority_cycles([[1, 2, 3], [3, 1, 2], [2, 3, 1]]) == [[0, 1, 2]]
    assert majority_cycles([[1, 2, 3], [1, 2, 3], [2, 3, 1]]) == []
    # The same three with a fourth that all put first.
    assert majority_cycles([[1, 2, 3, 4], [1, 4, 2, 3], [1, 3, 4, 2]]) == [[1, 2, 3]]
    # Two annotators tie instead of going round.
    assert majority_cycles([[1, 2, 3], [3, 1, 2]]) == []


def test_wilson_interval_is_that_of_scipy():
    for successes, trials in [(0, 5), (5, 5), (3, 10), (250, 1000)]:
        expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
