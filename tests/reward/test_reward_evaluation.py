"""Figures of a reward model: hand-computed, and against an independent implementation."""

import math
import re
import statistics
from pathlib import Path

import pytest
import torch

from pangu_trl.reward.calibration import calibration_curve, calibration_metrics, fit_temperature
from pangu_trl.reward.evaluation import counted_pairs, kendall_tau, ranking_metrics, spearman


def metrics_of(rewards, labels, **options) -> dict[str, float]:
    """Of prompts with different K, as lists."""
    width = max(map(len, rewards))
    tensors = [torch.tensor([row + [99.0] * (width - len(row)) for row in rows]) for rows in (rewards, labels)]
    mask = torch.tensor([[k < len(row) for k in range(width)] for row in rewards])
    return ranking_metrics(*tensors, mask, **options)


def test_accuracies_are_those_of_pairs_of_prompts_and_of_best_answers():
    # Prompt 0: pairs 2>1 right, 2>0 right, 1>0 wrong: 2 of 3, the best answer has the highest reward.
    # Prompt 1: one pair, wrong. Prompt 2: tie in the labels, no pair. Prompt 3: equal rewards, half right.
    rewards = [[3.0, 0.0, 1.0], [1.0, 2.0], [7.0, 8.0], [4.0, 4.0]]
    labels = [[2.0, 1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    metrics = metrics_of(rewards, labels)
    assert metrics["num_pairs"] == 5
    assert metrics["pair_accuracy"] == pytest.approx((2 + 0 + 0.5) / 5)
    assert metrics["macro_pair_accuracy"] == pytest.approx((2 / 3 + 0 + 0.5) / 3)
    # Of the two highest rewards of prompt 3 one belongs to the best answer.
    assert metrics["best_of_k_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics["mean_best_reward"] == pytest.approx((3 + 1 + 4) / 3)
    assert metrics["mean_worst_reward"] == pytest.approx((1 + 2 + 4) / 3)
    flat = [reward for row in rewards for reward in row]
    assert metrics["reward_mean"] == pytest.approx(statistics.fmean(flat))
    assert metrics["reward_std"] == pytest.approx(statistics.pstdev(flat))
    # log(1 + e^-d) of d = 3, 2, -1 (mean of three), -1, 0.
    softplus = [math.log1p(math.exp(-d)) for d in (3, 2, -1)]
    expected = (sum(softplus) / 3 + math.log1p(math.exp(1)) + math.log(2)) / 3
    assert metrics["loss"] == pytest.approx(expected)


def test_best_and_worst_rewards_are_means_over_answers_that_tie():
    # Best 3 and 1, worst 0 and -4.
    metrics = metrics_of([[3.0, 1.0, 0.0, -4.0, 9.0]], [[5.0, 5.0, 2.0, 2.0, 4.0]])
    assert (metrics["mean_best_reward"], metrics["mean_worst_reward"]) == (2.0, -2.0)


def test_no_figure_depends_on_the_order_of_the_answers():
    generator = torch.Generator().manual_seed(0)
    # Few values, so that rewards and labels tie.
    rewards, labels = (torch.randint(0, 3, (50, 5), generator=generator).double() for _ in range(2))
    mask = torch.arange(5) < torch.randint(2, 6, (50, 1), generator=generator)
    order = torch.rand(50, 5, generator=generator).argsort(dim=1)
    lengths = torch.randint(1, 9, (50, 5), generator=generator)
    tensors = (rewards, labels, mask, lengths)
    expected, found = (
        ranking_metrics(*values[:3], lengths=values[3])
        for values in (tensors, [tensor.gather(1, order) for tensor in tensors])
    )
    assert found == pytest.approx(expected)


def test_correlation_with_length_is_pearsons_over_all_real_answers():
    rewards, labels = [[1.0, 2.0, 4.0], [0.0, 3.0]], [[1.0, 2.0, 3.0], [0.0, 1.0]]
    lengths = torch.tensor([[10, 30, 20], [5, 50, 1000]])
    flat_rewards, flat_lengths = [1.0, 2.0, 4.0, 0.0, 3.0], [10, 30, 20, 5, 50]
    found = metrics_of(rewards, labels, lengths=lengths)["length_correlation"]
    assert found == pytest.approx(statistics.correlation(flat_rewards, flat_lengths))
    constant = metrics_of(rewards, labels, lengths=torch.full((2, 3), 7))
    assert constant["length_correlation"] == 0.0
    assert "length_correlation" not in metrics_of(rewards, labels)


def test_rank_correlations_equal_those_of_an_independent_implementation_with_ties_and_padding():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(0, 4, (200, 6), generator=generator).double()
    labels = torch.randint(0, 4, (200, 6), generator=generator).double()
    counts = torch.randint(2, 7, (200,), generator=generator)
    mask = torch.arange(6) < counts.unsqueeze(1)
    taus, rhos = kendall_tau(rewards, labels, mask), spearman(rewards, labels, mask)
    for row, count in enumerate(counts.tolist()):
        x, y = rewards[row, :count].tolist(), labels[row, :count].tolist()
        assert taus[row].item() == pytest.approx(tau_b(x, y), abs=1e-12)
        expected = 0.0 if len(set(x)) == 1 or len(set(y)) == 1 else statistics.correlation(ranks(x), ranks(y))
        assert rhos[row].item() == pytest.approx(expected, abs=1e-6)


def tau_b(x: list[float], y: list[float]) -> float:
    pairs = [(a, b) for a in range(len(x)) for b in range(a)]
    concordant = sum((x[a] - x[b]) * (y[a] - y[b]) > 0 for a, b in pairs)
    discordant = sum((x[a] - x[b]) * (y[a] - y[b]) < 0 for a, b in pairs)
    untied_x, untied_y = sum(x[a] != x[b] for a, b in pairs), sum(y[a] != y[b] for a, b in pairs)
    return (concordant - discordant) / math.sqrt(untied_x * untied_y) if untied_x and untied_y else 0.0


def ranks(values: list[float]) -> list[float]:
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


def test_calibration_error_is_the_distance_of_confidence_and_accuracy_over_the_bins():
    # Probabilities 0.62 and 0.63 in one bin (one of the two right), 0.97 in another (right).
    probabilities, signs = torch.tensor([0.62, 0.63, 0.97]), torch.tensor([1.0, -1.0, 1.0])
    differences = signs * torch.logit(probabilities)
    curve = calibration_curve(differences)
    assert curve.counts.sum() == 3 and curve.counts.max() == 2
    expected = (2 * abs(0.625 - 0.5) + abs(0.97 - 1.0)) / 3
    assert curve.expected_error == pytest.approx(expected, abs=1e-6)


def test_the_temperature_undoes_a_scale_of_the_rewards_and_leaves_a_smaller_error():
    # Of 100 pairs at distance 2, 75 are right: sigmoid(2 / T) = 0.75, so T = 2 / log 3.
    differences = torch.tensor([2.0] * 75 + [-2.0] * 25)
    assert fit_temperature(differences) == pytest.approx(2 / math.log(3), rel=1e-6)
    metrics = calibration_metrics(differences)
    assert metrics["calibration_error"] == pytest.approx(1 / (1 + math.exp(-2)) - 0.75, abs=1e-6)
    assert metrics["calibration_error_at_temperature"] == pytest.approx(0.0, abs=1e-6)


def test_without_a_wrong_pair_the_temperature_is_the_lowest_and_without_a_pair_nothing_is_known():
    assert fit_temperature(torch.tensor([0.5, 3.0])) == pytest.approx(1e-3, rel=1e-3)
    assert all(math.isnan(value) for value in calibration_metrics(torch.tensor([])).values())


def test_rewards_that_are_not_finite_and_data_without_a_pair_are_refused():
    with pytest.raises(ValueError, match="to evaluation prompt 1"):
        metrics_of([[1.0, 2.0], [1.0, float("nan")]], [[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="no prompt has two answers with different scores"):
        metrics_of([[1.0, 2.0]], [[1.0, 1.0]])


def test_the_documentation_defines_every_figure():
    document = Path(__file__).parents[2].joinpath("docs", "reward.md").read_text("utf-8")
    metrics = metrics_of([[1.0, 2.0]], [[1.0, 0.0]], lengths=torch.ones(1, 2))
    assert set(re.findall(r"`eval_(\w+)`", document)) == metrics.keys()


def test_a_gap_that_rounding_makes_smaller_counts():
    # 0.7 - 0.5 is 0.19999999999999996 in binary fractions.
    labels = torch.tensor([[0.7, 0.5]], dtype=torch.float64)
    assert counted_pairs(labels, torch.ones(1, 2, dtype=torch.bool), 0.2)[0].tolist() == [[False, True], [False, False]]
