"""The clipped PPO losses (Schulman et al. 2017, arXiv:1707.06347), on (B, C) answer tokens.

Each is a sum over the tokens under the mask divided by `num_tokens`, by default their number. A trainer that
accumulates gradients passes the number of the whole global batch.
"""

import torch
from torch import Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """Clipped surrogate objective (eq. 7), as a loss.

    Args:
        logprobs: Log-probabilities under the policy that learns, (B, C).
        old_logprobs: Log-probabilities under the policy that sampled, (B, C).
        advantages: Advantage of each token, (B, C).
        mask: True for answer tokens, (B, C).
        cliprange: Epsilon; the ratio earns nothing beyond 1 +- epsilon.
        num_tokens: Divisor of the sum.
    """
    ratio = torch.exp(torch.where(mask, logprobs - old_logprobs, 0.0))
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange))
    return _mean(losses, mask, num_tokens)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange_value: float,
    num_tokens: Tensor | float | None = None,
) -> Tensor:
    """Half the squared error of the values, of the clipped value where that is worse.

    Args:
        values: Values under the critic that learns, (B, C).
        old_values: Values at rollout, (B, C).
        returns: Targets, (B, C).
        mask: True for answer tokens, (B, C).
        cliprange_value: How far from the old value a new one still counts.
        num_tokens: Divisor of the sum.
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    losses = 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
    return _mean(losses, mask, num_tokens)


def _mean(losses: Tensor, mask: Tensor, num_tokens: Tensor | float | None) -> Tensor:
    return torch.where(mask, losses, 0.0).sum() / (mask.sum() if num_tokens is None else num_tokens)
