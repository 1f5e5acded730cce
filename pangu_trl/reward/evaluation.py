"""Figures of a reward model against annotated rankings, exact over the whole evaluation set."""

import torch
from torch import Tensor

from .losses import ordered_pairs, pairwise_loss


def ranking_metrics(rewards: Tensor, labels: Tensor, mask: Tensor, min_score_gap: float = 0.0) -> dict[str, float]:
    """Compares rewards with annotated scores.

    Args:
        rewards: Reward of each answer, (N, K).
        labels: Annotated score of each answer, higher is better, floating point, (N, K).
        mask: True for real answers, (N, K).
        min_score_gap: Smallest difference of annotated scores at which a pair counts in the pair accuracy; one that
            is smaller by rounding only counts.

    Returns:
        loss: Mean pairwise loss over the prompts that have an ordered pair.
        pair_accuracy: Share of the counted pairs whose better answer has the higher reward; equal rewards count half.
        num_pairs: Number of counted pairs.
        best_of_k_accuracy: Share of the prompts with an ordered pair whose highest-rewarded answer has the best score.
        mean_best_reward, mean_worst_reward: Mean reward of the best and of the worst answers by annotation.
        reward_mean, reward_std: Over all real answers.

    Raises:
        ValueError: No prompt has an ordered pair, or a reward is not finite.
    """
    if not torch.isfinite(rewards[mask]).all():
        row = int((~torch.isfinite(rewards) & mask).any(dim=1).nonzero()[0])
        raise ValueError(f"ranking_metrics: the reward model gave {rewards[row].tolist()} to evaluation prompt {row}.")
    pairs = ordered_pairs(labels, mask)
    has_pair = pairs.any(dim=2).any(dim=1)
    if not has_pair.any():
        raise ValueError(
            "ranking_metrics: no prompt has two answers with different scores; there is nothing to measure."
        )

    # Scores such as 0.7 and 0.5 are as far apart as the gap 0.2, but not after they were rounded to binary fractions.
    rounding = 4 * torch.finfo(labels.dtype).eps * torch.maximum(labels.unsqueeze(2).abs(), labels.unsqueeze(1).abs())
    counted = pairs & (labels.unsqueeze(2) - labels.unsqueeze(1) >= min_score_gap - rounding)
    differences = rewards.unsqueeze(2) - rewards.unsqueeze(1)
    right = (differences > 0).float() + 0.5 * (differences == 0).float()
    num_pairs = int(counted.sum())

    best_label = labels.masked_fill(~mask, -torch.inf).max(dim=1)
    worst_label = labels.masked_fill(~mask, torch.inf).min(dim=1)
    chosen = rewards.masked_fill(~mask, -torch.inf).argmax(dim=1, keepdim=True)
    chosen_is_best = labels.gather(1, chosen).squeeze(1) == best_label.values
    rows = torch.arange(len(rewards))
    return {
        "loss": pairwise_loss(rewards, labels, mask)[has_pair].mean().item(),
        "pair_accuracy": right[counted].mean().item() if num_pairs else float("nan"),
        "num_pairs": num_pairs,
        "best_of_k_accuracy": chosen_is_best[has_pair].float().mean().item(),
        "mean_best_reward": rewards[rows, best_label.indices][has_pair].mean().item(),
        "mean_worst_reward": rewards[rows, worst_label.indices][has_pair].mean().item(),
        "reward_mean": rewards[mask].mean().item(),
        "reward_std": rewards[mask].std(correction=0).item(),
    }
