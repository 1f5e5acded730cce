"""The losses of PPO (Schulman et al. 2017, arXiv:1707.06347) and its later variants, on (B, C) answer tokens.

Each is a sum over the tokens under the mask divided by a number, by default that of these tokens. A trainer that
accumulates gradients passes the number of the whole global batch (`loss_divisor`, added up).
"""

import torch
from torch import Tensor

AGGREGATIONS = ("token", "sequence", "constant")
IMPORTANCE_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float,
    num_tokens: Tensor | float | None = None,
    cliprange_high: float | None = None,
    delta: float | None = None,
    importance_weights: Tensor | None = None,
    aggregation: str = "token",
) -> Tensor:
    """Clipped surrogate objective (eq. 7), as a loss.

    Args:
        logprobs: Log-probabilities under the policy that learns, (B, C).
        old_logprobs: Log-probabilities under the policy that sampled, (B, C).
        advantages: Advantage of each token, (B, C).
        mask: True for answer tokens, (B, C).
        cliprange: Epsilon; the ratio earns nothing beyond 1 +- epsilon.
        num_tokens: Divisor of the sum, in the units of `loss_divisor`.
        cliprange_high: Epsilon above 1 (clip-higher, DAPO, arXiv:2503.14476, eq. 10); None takes `cliprange`.
        delta: Largest ratio that a token with a negative advantage loses by (dual clip, arXiv:1912.09729, eq. 5).
        importance_weights: Factor of each token's loss, (B, C); see `importance_weights`.
        aggregation: See `loss_divisor`.
    """
    high = cliprange if cliprange_high is None else cliprange_high
    ratio = torch.exp(torch.where(mask, logprobs - old_logprobs, 0.0))
    clipped = ratio.clamp(1 - cliprange, 1 + high)
    if delta is not None:
        # Beyond 1 + high, where alone it matters: a positive advantage earns no more there anyway.
        ratio = ratio.clamp(max=delta)
    losses = torch.maximum(-advantages * ratio, -advantages * clipped)
    if importance_weights is not None:
        losses = losses * importance_weights
    if aggregation == "sequence":
        losses = losses / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return _mean(losses, mask, loss_divisor(mask, aggregation, mask.shape[1]) if num_tokens is None else num_tokens)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange_value: float | None,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """Half the squared error of the values, of the clipped value where that is worse.

    Args:
        values: Values under the critic that learns, (B, C).
        old_values: Values at rollout, (B, C).
        returns: Targets, (B, C).
        mask: True for answer tokens, (B, C).
        cliprange_value: How far from the old value a new one still counts; None clips nothing.
        num_tokens: Divisor of the sum.
    """
    errors = (values - returns).square()
    if cliprange_value is not None:
        clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        errors = torch.maximum(errors, (clipped - returns).square())
    return _mean(0.5 * errors, mask, mask.sum() if num_tokens is None else num_tokens)


def loss_divisor(mask: Tensor, aggregation: str, max_completion_length: int) -> Tensor:
    """What a mean over answers divides by: the share of these rows, so that those of a global batch add up.

    Args:
        mask: True for the answer tokens that are learnt from, (B, C).
        aggregation: `token`, the mean over all tokens (TRL's dapo): number of tokens. `sequence`, the mean over the
            answers of the means over their tokens (TRL's grpo, which counts fully masked answers too): number of
            answers with a token. `constant`, sums that no length scales (Dr. GRPO, arXiv:2503.20783; TRL's dr_grpo):
            number of answers, masked or not, times `max_completion_length`.
        max_completion_length: Tokens of the longest answer that may be.

    Returns:
        A scalar.
    """
    if aggregation == "token":
        return mask.sum()
    if aggregation == "sequence":
        return mask.any(dim=1).sum()
    if aggregation == "constant":
        return torch.tensor(len(mask) * max_completion_length, device=mask.device)
    raise ValueError(f"loss_aggregation must be one of {', '.join(AGGREGATIONS)}; got {aggregation!r}.")


def importance_weights(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    mask: Tensor,
    mode: str,
    clip_max: float | None,
    clip_min: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Corrects for an engine that sampled with other probabilities than those that are learnt from.

    Truncated importance sampling keeps the ratio of the two within bounds, masked importance sampling leaves out what
    is beyond them (as TRL 1.16's `vllm_importance_sampling_mode`). A token whose probability the engine did not tell
    (NaN) counts as one that needs no correction.

    Args:
        logprobs: Log-probabilities under the policy as it is trained, (B, C).
        sampling_logprobs: The same as the engine gave them when it sampled, (B, C).
        mask: True for answer tokens, (B, C).
        mode: One of IMPORTANCE_MODES: ratios of tokens or of whole answers, truncated to the bounds or set to 0.
        clip_max: Upper bound; None has none.
        clip_min: Lower bound; None has none.

    Returns:
        The factors (B, C), 1 outside the mask, and the ratios as they were before the bounds, (B, C).
    """
    if mode not in IMPORTANCE_MODES:
        raise ValueError(f"vllm_importance_sampling_mode must be one of {', '.join(IMPORTANCE_MODES)}; got {mode!r}.")
    level, bound = mode.split("_")
    log_ratio = logprobs - sampling_logprobs
    log_ratio = torch.where(mask & ~log_ratio.isnan(), log_ratio, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    ratio = log_ratio.exp()
    lowest, highest = -torch.inf if clip_min is None else clip_min, torch.inf if clip_max is None else clip_max
    if bound == "truncate":
        weights = ratio.clamp(lowest, highest)
    else:
        weights = torch.where((ratio < lowest) | (ratio > highest), 0.0, ratio)
    return torch.where(mask, weights, 1.0), ratio


def _mean(losses: Tensor, mask: Tensor, divisor: Tensor | float) -> Tensor:
    divisor = torch.as_tensor(divisor)
    # Where every answer of the global batch is masked there is nothing to divide.
    return torch.where(mask, losses, 0.0).sum() / torch.where(divisor > 0, divisor, 1)
