"""How far the accuracies of a reward model could be off by the prompts that were drawn: bootstrap over prompts."""

import numpy as np
import torch
from torch import Tensor

from pangu_trl.answers.summary import win_share

from .evaluation import best_of_k_shares, counted_pairs
from .losses import has_pair

NUM_RESAMPLES = 2000
# Rows of a resample that are held at a time.
_RESAMPLES_AT_ONCE = 100


def accuracy_intervals(
    rewards: Tensor,
    labels: Tensor,
    mask: Tensor,
    min_score_gap: float = 0.0,
    other_rewards: Tensor | None = None,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the accuracies of `ranking_metrics`, resampling whole prompts.

    The answers to a prompt belong together, so that it is prompts that are drawn, with a fixed seed.

    Args:
        rewards: Reward of each answer, (N, K).
        labels: Annotated scores, (N, K).
        mask: True for real answers, (N, K).
        min_score_gap: As in `ranking_metrics`.
        other_rewards: Of another model, (N, K): intervals are then those of this model's accuracy minus the other's on
            the SAME resamples (paired), narrower than two intervals apart would suggest.

    Returns:
        Lower and upper end by the figure's name; a figure without a pair in some resample is left out.
    """
    ours = _sums_of_prompts(rewards, labels, mask, min_score_gap)
    theirs = None if other_rewards is None else _sums_of_prompts(other_rewards, labels, mask, min_score_gap)
    generator, num_prompts = np.random.default_rng(0), len(rewards)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in ours}
    for _ in range(NUM_RESAMPLES // _RESAMPLES_AT_ONCE):
        counts = generator.multinomial(num_prompts, [1 / num_prompts] * num_prompts, size=_RESAMPLES_AT_ONCE)
        for name in drawn:
            figures = _ratio(counts, *ours[name])
            drawn[name].append(figures if theirs is None else figures - _ratio(counts, *theirs[name]))
    ends = {name: np.percentile(np.concatenate(parts), [2.5, 97.5]) for name, parts in drawn.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items() if np.isfinite(low + high)}


def accuracy_differences(
    rewards: Tensor, other_rewards: Tensor, labels: Tensor, mask: Tensor, min_score_gap: float = 0.0
) -> dict[str, float]:
    """Accuracies of a model minus those of another one on the same rankings; arguments as `accuracy_intervals`."""
    ours, theirs = (_sums_of_prompts(values, labels, mask, min_score_gap) for values in (rewards, other_rewards))
    once = np.ones((1, len(rewards)))
    return {name: float((_ratio(once, *ours[name]) - _ratio(once, *theirs[name]))[0]) for name in ours}


def _sums_of_prompts(
    rewards: Tensor, labels: Tensor, mask: Tensor, min_score_gap: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each accuracy what every prompt adds to its numerator and to its denominator, (N,) each."""
    counted, ranked = counted_pairs(labels, mask, min_score_gap), has_pair(labels, mask)
    right = torch.where(counted, win_share(rewards.unsqueeze(2) - rewards.unsqueeze(1)), 0.0).sum(dim=(1, 2)).double()
    pairs = counted.sum(dim=(1, 2)).double()
    has_counted = (pairs > 0).double()
    sums = {
        "pair_accuracy": (right, pairs),
        "macro_pair_accuracy": (right / pairs.clamp(min=1), has_counted),
        "best_of_k_accuracy": (best_of_k_shares(rewards, labels, mask).double() * ranked, ranked.double()),
        "exact_match": ((right == pairs).double() * has_counted, has_counted),
    }
    return {name: (top.numpy(), bottom.numpy()) for name, (top, bottom) in sums.items()}


def ratio_interval(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float] | None:
    """95 % percentile interval of sum(top) / sum(bottom), drawing prompts anew; None where a draw has none to divide.

    Args:
        top: What every prompt adds to the numerator, (N,).
        bottom: What it adds to the denominator, (N,).
    """
    generator, num_prompts = np.random.default_rng(0), len(top)
    parts = []
    for _ in range(NUM_RESAMPLES // _RESAMPLES_AT_ONCE):
        counts = generator.multinomial(num_prompts, [1 / num_prompts] * num_prompts, size=_RESAMPLES_AT_ONCE)
        parts.append(_ratio(counts, top, bottom))
    low, high = np.percentile(np.concatenate(parts), [2.5, 97.5])
    return (float(low), float(high)) if np.isfinite(low + high) else None


def _ratio(counts: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ top) / (counts @ bottom)
