"""The K-wise ranking loss, on tensors of B prompts with up to K answers each."""

import torch
from torch import Tensor
from torch.nn import functional


def ordered_pairs(labels: Tensor, mask: Tensor) -> Tensor:
    """Marks the pairs (a, b) of one prompt in which a is preferred to b. Ties and padding give none.

    Args:
        labels: Preference of each answer, higher is better, (B, K).
        mask: True for real answers, False for padding up to K, (B, K).

    Returns:
        Boolean (B, K, K); [i, a, b] is True where answer a of prompt i is preferred to answer b.
    """
    preferred = labels.unsqueeze(2) > labels.unsqueeze(1)
    return preferred & mask.unsqueeze(2) & mask.unsqueeze(1)


def mean_over_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """Averages values (B, K, K) over the marked pairs of each prompt; 0 for a prompt without a pair. Returns (B,)."""
    kept = torch.where(pairs, values, torch.zeros_like(values))
    return kept.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def pairwise_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood that each better answer outscores each worse one, of every prompt.

    Averaged over the ordered pairs of a prompt before averaging over prompts, so that prompts with many answers do not
    dominate (InstructGPT, eq. 1, arXiv:2203.02155). The mean over prompts is left to the caller, who knows how many
    prompts the global batch has; a prompt without an ordered pair has loss 0 and must not be counted.

    Args:
        scores: Reward of each answer, (B, K). Any value at padded places.
        labels: Preference of each answer, higher is better, (B, K).
        mask: True for real answers, False for padding up to K, (B, K).

    Returns:
        The loss of each prompt, (B,).
    """
    differences = scores.unsqueeze(2) - scores.unsqueeze(1)
    return mean_over_pairs(-functional.logsigmoid(differences), ordered_pairs(labels, mask))


def centring_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared sum of the two scores of each ordered pair, which pulls the rewards towards mean zero.

    Eisenstein et al., eq. 2, arXiv:2312.09244, over all pairs of a prompt; with K = 2 it is TRL's
    `center_rewards_coefficient` term. Arguments and result as in `pairwise_loss`.
    """
    sums = scores.unsqueeze(2) + scores.unsqueeze(1)
    return mean_over_pairs(sums.square(), ordered_pairs(labels, mask))
