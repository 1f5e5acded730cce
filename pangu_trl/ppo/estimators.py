"""Advantages by the estimator that `advantage_estimator` names."""

from collections.abc import Callable

import torch
from torch import Tensor

from .advantages import (
    gae,
    group_mean_advantages,
    leave_one_out_advantages,
    length_adaptive_lambda,
    returns_to_go,
)
from .config import PPOConfig


def estimate_advantages(
    rewards: Tensor,
    values: Tensor | None,
    mask: Tensor,
    args: PPOConfig,
    sum_over_ranks: Callable[[Tensor], Tensor],
    critic_warms_up: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """From rewards per token to advantages, before they are normalised, and to what the critic learns.

    Args:
        rewards: Per-token rewards with the KL penalty in them, (N, C).
        values: Of the critic, (N, C); None without one.
        mask: True for answer tokens, (N, C).
        args: Options.
        sum_over_ranks: Adds a tensor up over the ranks.
        critic_warms_up: Whether the critic learns alone so far.

    Returns:
        Advantages (N, C), 0 after the last answer token, and returns (N, C); None without a critic.
    """
    if args.advantage_estimator == "gae":
        return _advantages_and_targets(rewards, values, mask, args, critic_warms_up)
    if args.advantage_estimator == "reinforce_plus_plus":
        return returns_to_go(rewards, mask, args.gamma), None
    returns = rewards.sum(dim=1)
    if args.advantage_estimator == "rloo":
        advantages = leave_one_out_advantages(returns, args.num_generations)
    else:
        advantages = group_mean_advantages(returns, args.num_generations, args.scale_rewards, sum_over_ranks)
    # Every token of an answer has the answer's advantage.
    return torch.where(mask, advantages.unsqueeze(1), 0.0), None


def _advantages_and_targets(
    rewards: Tensor, values: Tensor, mask: Tensor, args: PPOConfig, critic_warms_up: bool
) -> tuple[Tensor, Tensor]:
    """GAE, with one lambda for the policy's advantages and one for the critic's targets (VC-PPO, arXiv:2503.01491)."""
    lam = args.lam
    if args.adaptive_lam_alpha is not None:
        lam = length_adaptive_lambda(mask.sum(dim=1), args.adaptive_lam_alpha)
    advantages, returns = gae(rewards, values, mask, args.gamma, lam)
    critic_lam = args.lam if args.critic_lam is None else args.critic_lam
    if critic_warms_up and args.critic_warmup_lam is not None:
        critic_lam = args.critic_warmup_lam
    if critic_lam is not lam:
        _, returns = gae(rewards, values, mask, args.gamma, critic_lam)
    return advantages, returns
