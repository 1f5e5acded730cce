"""Ranking losses: golden numbers, hand-computed values, stability."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from pangu_trl.reward.losses import centring_loss, ordered_pairs, pairwise_loss

CASES = [
    "scores_full",
    "scores_variable_k",
    "scores_ties",
    "scores_ties_variable_k",
    "scores_extreme",
    "scores_equal_values",
]


@pytest.mark.parametrize("case", CASES)
def test_pairwise_loss_and_gradient_equal_the_golden_numbers(fixtures, case):
    tensors = load_file(fixtures / "reward_kwise" / "golden.safetensors")
    numbers = json.loads((fixtures / "reward_kwise" / "golden.json").read_text())
    scores = tensors[f"{case}.scores"].requires_grad_(True)
    labels, mask = tensors[f"{case}.labels"], tensors[f"{case}.mask"].bool()
    losses = pairwise_loss(scores, labels, mask)
    has_pair = ordered_pairs(labels, mask).any(dim=2).any(dim=1)
    loss = losses[has_pair].mean()
    loss.backward()
    assert loss.item() == pytest.approx(numbers[case]["pairwise_loss"], abs=1e-9)
    torch.testing.assert_close(scores.grad, tensors[f"{case}.pairwise_grad"], atol=1e-9, rtol=0)


def test_pairwise_loss_averages_over_the_pairs_of_each_prompt_and_drops_ties():
    # Prompt 0: 2 > 1 = 1: two pairs with differences 1 and 0 -> (log(1+e^-1) + log 2) / 2.
    # Prompt 1: one tie: no pair, loss 0.
    scores = torch.tensor([[2.0, 1.0, 2.0], [0.3, -0.7, 1e4]])
    labels = torch.tensor([[2, 1, 1], [5, 5, 9]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = (math.log1p(math.exp(-1)) + math.log(2)) / 2
    assert pairwise_loss(scores, labels, mask).tolist() == pytest.approx([expected, 0.0])


def test_centring_loss_with_two_answers_is_the_squared_sum():
    # (1.5 - 0.5)^2 = 1 for the only pair.
    scores = torch.tensor([[1.5, -0.5]])
    assert centring_loss(scores, torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(1)


def test_pairwise_loss_is_finite_for_huge_scores_and_gradients_ignore_padding():
    scores = torch.tensor([[-1e4, 1e4, float("inf")]], requires_grad=True)
    loss = pairwise_loss(scores, torch.tensor([[2, 1, 0]]), torch.tensor([[True, True, False]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(2e4)
    assert scores.grad[0, :2].tolist() == pytest.approx([-1.0, 1.0])
