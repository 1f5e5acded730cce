"""From scores and log-probabilities to per-token rewards, advantages and returns.

Tensors cover the answer tokens only, (B, C): column j belongs to answer token j, `mask` is True up to and including
the last answer token (the eos, if the answer has one).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def kl_divergence(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from one sample (Schulman 2020, joschu.net/blog/kl-approx.html).

    Args:
        logprobs: Log-probabilities under the policy that sampled the tokens, any shape.
        ref_logprobs: Log-probabilities under the reference, same shape.
        estimator: `k1` = log-ratio (unbiased), `k2` = half its square (low variance), `k3` = ratio - 1 - log-ratio of
            the reference (unbiased, never negative).

    Returns:
        The estimates in nats, same shape.
    """
    log_ratio = logprobs - ref_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kl_estimator must be one of k1, k2, k3; got {estimator!r}.")


def shape_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    mask: Tensor,
    kl_coef: float,
    kl_estimator: str = "k1",
    reward_clip: float | None = None,
) -> Tensor:
    """Per-token rewards: the KL penalty on every answer token, the clipped score on the last one.

    The score belongs to the last real answer token. DeepSpeed-Chat since July 2023 gives it to the token after it.

    Args:
        scores: Score of each answer, (B,).
        logprobs: Log-probabilities of the answer tokens under the policy that sampled them, (B, C).
        ref_logprobs: The same under the reference, (B, C); None without a penalty.
        mask: True for answer tokens, (B, C); at least one per row.
        kl_coef: Weight of the KL penalty.
        kl_estimator: See `kl_divergence`.
        reward_clip: Scores are clipped to +- this value; None leaves them.

    Returns:
        Rewards, (B, C), 0 after the last answer token.
    """
    if reward_clip is not None:
        scores = scores.clamp(-reward_clip, reward_clip)
    if ref_logprobs is None:
        rewards = torch.zeros_like(logprobs)
    else:
        rewards = torch.where(mask, -kl_coef * kl_divergence(logprobs, ref_logprobs, kl_estimator), 0.0)
    return add_at_last_token(rewards, scores, mask)


def add_at_last_token(rewards: Tensor, amounts: Tensor, mask: Tensor) -> Tensor:
    """Adds one amount per answer (B,) to the reward (B, C) of its last token, the last True of `mask` (B, C)."""
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, amounts.to(rewards.dtype).unsqueeze(1))


def overlong_penalties(lengths: Tensor, max_completion_length: int, buffer_length: int) -> Tensor:
    """Share of the penalty for length that each answer gets: soft overlong punishment (DAPO, arXiv:2503.14476, eq. 13).

    0 up to `max_completion_length - buffer_length` tokens, from there on rising in a line to 1.

    Args:
        lengths: Tokens of each answer, (B,).
        max_completion_length: Most tokens of an answer.
        buffer_length: Tokens over which the penalty rises; 1 or more.

    Returns:
        Shares, (B,).
    """
    return ((lengths - (max_completion_length - buffer_length)) / buffer_length).clamp(0, 1)


def length_adaptive_lambda(lengths: Tensor, alpha: float) -> Tensor:
    """Lambda of each answer, 1 - 1 / (alpha * length), but 0 at least (VAPO, arXiv:2504.05118, eq. 8).

    The longer an answer is, the further its end reaches back: with a fixed lambda below 1 the score of a long answer
    would be gone before its first token.

    Args:
        lengths: Tokens of each answer, (B,).
        alpha: Larger means closer to 1; 0.05 in the paper.

    Returns:
        Lambdas, (B,).
    """
    return (1 - 1 / (alpha * lengths)).clamp(min=0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float | Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16, arXiv:1506.02438).

    The episode ends with the last answer token: the value after it is 0, whatever the critic says there.

    Args:
        rewards: Per-token rewards, (B, C).
        values: Value of the state in which each answer token was chosen, (B, C).
        mask: True for answer tokens, (B, C).
        gamma: Discount.
        lam: Trade-off between bias (0) and variance (1), or that of each answer, (B,).

    Returns:
        Advantages and returns (= advantages + values), each (B, C), 0 after the last answer token.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    next_advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        delta = rewards[:, step] + gamma * next_value - values[:, step]
        next_advantage = torch.where(mask[:, step], delta + gamma * lam * next_advantage, 0.0)
        advantages[:, step] = next_advantage
        next_value = values[:, step]
    return advantages, advantages + values


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each token on, (B, C): what REINFORCE multiplies a token's gradient by."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, lam=1.0)[0]


def group_mean_advantages(
    returns: Tensor,
    num_generations: int,
    scale: str = "group",
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Tensor:
    """Return of each answer minus the mean of its group's (GRPO, arXiv:2402.03300, section 4.1.2), as TRL computes it.

    Args:
        returns: Sum of the rewards of each answer, (N,); the G answers to a prompt stand side by side.
        num_generations: G, 2 or more.
        scale: What the differences are divided by, plus 1e-4: `group`, the standard deviation of the group; `batch`,
            that of all returns of all ranks (arXiv:2508.08221); `none`, nothing (Dr. GRPO, arXiv:2503.20783). The
            deviations are those of samples (n - 1).
        sum_over_ranks: Adds a tensor up over the ranks; by default there is one.

    Returns:
        Advantages, (N,).
    """
    grouped = returns.view(-1, num_generations)
    differences = (grouped - grouped.mean(dim=1, keepdim=True)).flatten()
    if scale == "none":
        return differences
    if scale == "group":
        deviation = grouped.std(dim=1, keepdim=True).expand_as(grouped).flatten()
    else:
        count, total = sum_over_ranks(torch.stack([torch.ones_like(returns).sum(), returns.sum()]))
        squares = sum_over_ranks((returns - total / count).square().sum())
        deviation = (squares / (count - 1)).sqrt()
    return differences / (deviation + 1e-4)


def leave_one_out_advantages(returns: Tensor, num_generations: int) -> Tensor:
    """Return of each answer minus the mean of the OTHERS of its group (RLOO, arXiv:2402.14740, eq. 9).

    Arguments and result as in `group_mean_advantages`.
    """
    grouped = returns.view(-1, num_generations)
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (num_generations - 1)
    return (grouped - others).flatten()


def whiten(
    values: Tensor,
    mask: Tensor,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    shift_mean: bool = True,
) -> Tensor:
    """Shifts and scales to mean 0 and standard deviation 1 over the masked places of all ranks.

    Two passes in float32: some accelerators have no float64, and one pass would lose small deviations
    from a large mean.

    Args:
        values: Values, (N, C).
        mask: True for the places that count, (N, C); the others become 0.
        sum_over_ranks: Adds a tensor up over the ranks; by default there is one.
        shift_mean: False only scales: the mean of rewards says whether an answer should be longer.
    """
    kept = values[mask].float()
    count = sum_over_ranks(mask.sum().float())
    mean = sum_over_ranks(kept.sum()) / count
    variance = sum_over_ranks((kept - mean).square().sum()) / count
    shifted = values - mean if shift_mean else values
    return torch.where(mask, shifted / (variance.sqrt() + 1e-8), 0.0).to(values.dtype)
