"""Figures of a reward model against annotated rankings, exact over the whole evaluation set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pangu_trl.answers.summary import win_share

from .calibration import calibration_metrics
from .losses import has_pair, mean_over_pairs, ordered_pairs, pairwise_loss


def ranking_metrics(
    rewards: Tensor, labels: Tensor, mask: Tensor, min_score_gap: float = 0.0, lengths: Tensor | None = None
) -> dict[str, float]:
    """Compares rewards with annotated scores.

    Args:
        rewards: Reward of each answer, (N, K).
        labels: Annotated score of each answer, higher is better, floating point, (N, K).
        mask: True for real answers, (N, K).
        min_score_gap: Smallest difference of annotated scores at which a pair counts in the accuracies and the
            calibration; one that is smaller by rounding only counts.
        lengths: Tokens of each answer, (N, K); None leaves `length_correlation` out.

    Returns:
        loss: Mean pairwise loss over the prompts that have an ordered pair, whichever loss trains.
        pair_accuracy: Share of the counted pairs whose better answer has the higher reward; equal rewards count half.
        macro_pair_accuracy: The same for each prompt, averaged over the prompts that have a counted pair.
        num_pairs: Number of counted pairs.
        best_of_k_accuracy: Share of the prompts with an ordered pair whose highest-rewarded answer has the best score;
            of several highest-rewarded answers the share that has it.
        exact_match: Share of the prompts with a counted pair all of whose counted pairs are right, none by equal
            rewards (CheemsBench, arXiv:2502.17173).
        kendall_tau, spearman: Mean rank correlations within the prompts that have an ordered pair; 0 for a prompt whose
            rewards are all equal. Tau is tau-b.
        mean_best_reward, mean_worst_reward: Mean reward of the best and of the worst answers by annotation, each prompt
            counting alike.
        reward_mean, reward_std: Over all real answers.
        length_correlation: Pearson correlation of reward and length over all real answers; 0 if either is constant.
        length_slope: Reward that 100 more tokens bring, by least squares within the prompts.
        pair_accuracy_without_length: `pair_accuracy` of what is left of the rewards without that: how much of the
            accuracy length alone would not give.
        Those of `calibration_metrics`, of the counted pairs.

    Raises:
        ValueError: No prompt has an ordered pair, or a reward is not finite.
    """
    if not torch.isfinite(rewards[mask]).all():
        row = int((~torch.isfinite(rewards) & mask).any(dim=1).nonzero()[0])
        raise ValueError(f"ranking_metrics: the reward model gave {rewards[row].tolist()} to evaluation prompt {row}.")
    ranked = has_pair(labels, mask)
    if not ranked.any():
        raise ValueError(
            "ranking_metrics: no prompt has two answers with different scores; there is nothing to measure."
        )

    counted = counted_pairs(labels, mask, min_score_gap)
    differences = rewards.unsqueeze(2) - rewards.unsqueeze(1)
    right = win_share(differences)
    num_pairs = int(counted.sum())
    # Of answers that tie each counts alike, so that no figure depends on their order.
    is_best, is_worst = (are_highest(values, mask) for values in (labels, -labels))
    all_right = (~counted | (right == 1)).flatten(1).all(dim=1)
    metrics = {
        "loss": pairwise_loss(rewards, labels, mask)[ranked].mean().item(),
        "pair_accuracy": right[counted].mean().item() if num_pairs else float("nan"),
        "macro_pair_accuracy": mean_over_pairs(right, counted)[counted.flatten(1).any(dim=1)].mean().item(),
        "num_pairs": num_pairs,
        "best_of_k_accuracy": best_of_k_shares(rewards, labels, mask)[ranked].mean().item(),
        "exact_match": all_right[counted.flatten(1).any(dim=1)].to(rewards.dtype).mean().item(),
        "kendall_tau": kendall_tau(rewards, labels, mask)[ranked].mean().item(),
        "spearman": spearman(rewards, labels, mask)[ranked].mean().item(),
        "mean_best_reward": _mean_where(rewards, is_best)[ranked].mean().item(),
        "mean_worst_reward": _mean_where(rewards, is_worst)[ranked].mean().item(),
        "reward_mean": rewards[mask].mean().item(),
        "reward_std": rewards[mask].std(correction=0).item(),
        **calibration_metrics(differences[counted]),
    }
    if lengths is not None:
        metrics["length_correlation"] = _correlation(rewards[mask].double(), lengths[mask].double()).item()
        slope, residuals = without_length(rewards, lengths, mask)
        right = win_share(residuals.unsqueeze(2) - residuals.unsqueeze(1))
        metrics["length_slope"] = 100 * slope
        metrics["pair_accuracy_without_length"] = right[counted].mean().item() if num_pairs else float("nan")
    return metrics


def without_length(rewards: Tensor, lengths: Tensor, mask: Tensor) -> tuple[float, Tensor]:
    """What length explains of the rewards of answers to one prompt, and what it does not.

    One slope for all prompts, each with a level of its own, by least squares; 0 where all answers to every prompt are
    equally long.

    Args:
        rewards: Reward of each answer, (N, K).
        lengths: Tokens of each answer, (N, K).
        mask: True for real answers, (N, K).

    Returns:
        Reward a token, and the rewards without it, (N, K) in float64.
    """
    rewards, lengths = rewards.double(), lengths.double()
    centred = [torch.where(mask, values - _mean_where(values, mask).unsqueeze(1), 0.0) for values in (rewards, lengths)]
    squares = centred[1].square().sum()
    slope = (centred[0] * centred[1]).sum() / squares if squares > 0 else squares
    return slope.item(), rewards - slope * lengths


def counted_pairs(labels: Tensor, mask: Tensor, min_score_gap: float = 0.0) -> Tensor:
    """The ordered pairs whose labels lie at least a gap apart, boolean (N, K, K); see `ordered_pairs`."""
    better, worse = labels.unsqueeze(2), labels.unsqueeze(1)
    # Scores such as 0.7 and 0.5 are as far apart as the gap 0.2, but not after they were rounded to binary fractions.
    rounding = 4 * torch.finfo(labels.dtype).eps * torch.maximum(better.abs(), worse.abs())
    return ordered_pairs(labels, mask) & (better - worse >= min_score_gap - rounding)


def best_of_k_shares(rewards: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Share of each prompt's highest-rewarded answers that have its best score, (N,)."""
    is_best, is_chosen = are_highest(labels, mask), are_highest(rewards, mask)
    return _mean_where(is_best.to(rewards.dtype), is_chosen)


def are_highest(values: Tensor, mask: Tensor) -> Tensor:
    """Marks the real answers of each prompt that have the highest value, (N, K)."""
    values = values.masked_fill(~mask, -torch.inf)
    return (values == values.amax(dim=1, keepdim=True)) & mask


def kendall_tau(rewards: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Kendall's tau-b of rewards and labels within each prompt, (N,); 0 where one of them is constant."""
    real = (mask.unsqueeze(2) & mask.unsqueeze(1)).triu(1)
    reward_signs = torch.sign(rewards.unsqueeze(2) - rewards.unsqueeze(1)) * real
    label_signs = torch.sign(labels.unsqueeze(2) - labels.unsqueeze(1)) * real
    agreement = (reward_signs * label_signs).sum(dim=(1, 2)).double()
    # Each factor counts the pairs that are no ties on one side.
    untied = reward_signs.square().sum(dim=(1, 2)).double() * label_signs.square().sum(dim=(1, 2)).double()
    return agreement / untied.sqrt().clamp(min=1.0)


def spearman(rewards: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Spearman's rank correlation of rewards and labels within each prompt, (N,); 0 where one of them is constant."""
    return _correlation(_ranks(rewards, mask), _ranks(labels, mask), mask)


def _mean_where(values: Tensor, marked: Tensor) -> Tensor:
    """Mean of the marked values of each prompt, (N,)."""
    return torch.where(marked, values, 0.0).sum(dim=1) / marked.sum(dim=1)


def _ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Rank of each value among the real ones of its row, ties sharing their mean, (N, K)."""
    below = (values.unsqueeze(2) > values.unsqueeze(1)) & mask.unsqueeze(1)
    equal = (values.unsqueeze(2) == values.unsqueeze(1)) & mask.unsqueeze(1)
    return below.sum(dim=2) + (equal.sum(dim=2) + 1) / 2


def _correlation(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pearson correlation along the last dimension; 0 where one side is constant."""
    weights = torch.ones_like(first) if mask is None else mask.to(first.dtype)
    count = weights.sum(dim=-1, keepdim=True).clamp(min=1)
    first, second = (
        (values - (values * weights).sum(dim=-1, keepdim=True) / count) * weights for values in (first, second)
    )
    scale = (first.square().sum(dim=-1) * second.square().sum(dim=-1)).sqrt()
    return torch.where(scale > 0, (first * second).sum(dim=-1) / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)


def judge_agreement(
    scores: Sequence[Sequence[float]], reference_scores: Sequence[Sequence[float]], min_score_gap: float = 0.0
) -> dict[str, float | None]:
    """Says how far `scores` order the answers to a prompt as the reference does; see `ranking_metrics`.

    Args:
        scores: Sequence[Sequence[float]] to examine, for each prompt K.
        reference_scores: Sequence[Sequence[float]] of another annotator, likewise. Answers that tie here make no pair.
        min_score_gap: Smallest reference gap of a pair that counts.

    Returns:
        `judge/pairs`, and `judge/pair_accuracy` over all of them (None without a pair).
    """
    if all(len(set(row)) == 1 for row in reference_scores):
        return {"judge/pairs": 0, "judge/pair_accuracy": None}
    rewards, labels = (_pad(rows) for rows in (scores, reference_scores))
    mask = ~labels.isnan()
    metrics = ranking_metrics(rewards.nan_to_num(), labels.nan_to_num(), mask, min_score_gap)
    num_pairs = metrics["num_pairs"]
    return {"judge/pairs": num_pairs, "judge/pair_accuracy": metrics["pair_accuracy"] if num_pairs else None}


def _pad(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=torch.nan)
