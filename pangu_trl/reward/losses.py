"""K-wise ranking losses, on tensors of B prompts with up to K answers each."""

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


def has_pair(labels: Tensor, mask: Tensor) -> Tensor:
    """Marks the prompts that have an ordered pair, (B,); arguments as `ordered_pairs`."""
    return ordered_pairs(labels, mask).flatten(1).any(dim=1)


def mean_over_pairs(values: Tensor, pairs: Tensor) -> Tensor:
    """Averages values (B, K, K) over the marked pairs of each prompt; 0 for a prompt without a pair. Returns (B,)."""
    kept = torch.where(pairs, values, torch.zeros_like(values))
    return kept.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def preference_shares(annotator_labels: Tensor) -> Tensor:
    """Share of the annotators who prefer answer a to answer b; who finds them equal counts half for each.

    Args:
        annotator_labels: Preference of each answer by each of A annotators, (B, A, K); NaN where there is none.

    Returns:
        (B, K, K); [i, a, b] and [i, b, a] add up to 1. NaN for a pair that no annotator of the prompt has judged.
    """
    better, worse = annotator_labels.unsqueeze(3), annotator_labels.unsqueeze(2)
    judged = ~(better.isnan() | worse.isnan())
    wins = (better > worse).float() + 0.5 * (better == worse).float()
    return torch.where(judged, wins, 0.0).sum(dim=1) / judged.sum(dim=1)


def pairwise_loss(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor,
    margin_coefficient: float = 0.0,
    margins: Tensor | None = None,
    label_smoothing: float = 0.0,
    shares: Tensor | None = None,
) -> Tensor:
    """Mean negative log-likelihood that each better answer outscores each worse one, of every prompt.

    Averaged over the ordered pairs of a prompt before averaging over prompts, so that prompts with many answers do not
    dominate (InstructGPT, eq. 1, arXiv:2203.02155). The mean over prompts is left to the caller, who knows how many
    prompts the global batch has; a prompt without an ordered pair has loss 0 and must not be counted.

    Args:
        scores: Reward of each answer, (B, K). Any value at padded places.
        labels: Preference of each answer, higher is better, (B, K).
        mask: True for real answers, False for padding up to K, (B, K).
        margin_coefficient: The better answer has to win by this much for each unit that the labels lie apart (Llama 2,
            eq. 2, arXiv:2307.09288, with the gap of the labels as the margin).
        margins: And by this much in every pair of the prompt, (B,).
        label_smoothing: Probability that an annotation is the wrong way round (conservative loss, Mitchell 2023,
            ericmitchell.ai/cdpo.pdf): the target of a pair is 1 - this in the place of 1.
        shares: Probability that the first of two answers is the better one, (B, K, K), in the place of 1, as
            `preference_shares` gives it; the cross-entropy is least where the model gives this probability.

    Returns:
        The loss of each prompt, (B,).
    """
    scores = _without_padding(scores, mask)
    differences = scores.unsqueeze(2) - scores.unsqueeze(1)
    if margin_coefficient:
        differences = differences - margin_coefficient * (labels.unsqueeze(2) - labels.unsqueeze(1))
    if margins is not None:
        differences = differences - margins.view(-1, 1, 1)
    pairs = ordered_pairs(labels, mask)
    losses = -functional.logsigmoid(differences)
    if label_smoothing or shares is not None:
        targets = torch.ones_like(losses) if shares is None else torch.where(pairs, shares, 0.0)
        targets = targets * (1 - 2 * label_smoothing) + label_smoothing
        losses = targets * losses - (1 - targets) * functional.logsigmoid(-differences)
    return mean_over_pairs(losses, pairs)


def plackett_luce_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of the whole order: the best answer is drawn first, then the best of the rest, and so on.

    The Plackett-Luce model, as ListMLE trains it (Xia et al., 2008). Answers with equal labels are drawn from the same
    set, that of all answers which are no better (Breslow, 1974). With K = 2 it is `pairwise_loss`. It is a sum over the
    answers, so a prompt counts for more the more it has. Arguments and result as in `pairwise_loss`.
    """
    no_better = (labels.unsqueeze(2) >= labels.unsqueeze(1)) & mask.unsqueeze(1)
    scores = _without_padding(scores, mask)
    candidates = scores.unsqueeze(1).expand(no_better.shape)
    lowest = torch.finfo(scores.dtype).min
    log_totals = candidates.masked_fill(~no_better, lowest).logsumexp(dim=2)
    drawn = mask & has_pair(labels, mask).unsqueeze(1)
    return torch.where(drawn, log_totals - scores, torch.zeros_like(scores)).sum(dim=1)


def attribute_loss(predicted: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the attributes of the answers to each prompt (HelpSteer2, arXiv:2406.08673).

    Regression, as HelpSteer2 and ArmoRM (arXiv:2406.12845, stage 1) train their heads: annotated levels mean the same
    in every prompt, so that attributes can be weighed against each other.

    Args:
        predicted: What the head gives to each answer, (B, K, A).
        values: Annotated value of each of A attributes, (B, A, K); NaN where there is none.
        mask: True for real answers, False for padding up to K, (B, K).

    Returns:
        The loss of each prompt, (B,), averaged over its known values; 0 for a prompt without one.
    """
    values = values.transpose(1, 2)
    known = mask.unsqueeze(2) & ~values.isnan()
    errors = torch.where(known, predicted - values, 0.0).square()
    return errors.sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)


def tokenwise_loss(
    token_scores: Tensor, input_ids: Tensor, sequence_lengths: Tensor, labels: Tensor, mask: Tensor
) -> Tensor:
    """DeepSpeed-Chat's loss: two answers are compared at every position from the first token that differs.

    Up to the end of the longer one, so that the scores of padding behind the shorter one count, as they do there. Equal
    answers are compared at the last place, as there. New is the mean over all ordered pairs of a prompt.

    Args:
        token_scores: Output of the score head at every token, (B, K, T). Any value where an answer is not real.
        input_ids: Prompt and answer, padded on the right with one id, (B, K, T).
        sequence_lengths: Tokens of prompt and answer, (B, K).
        labels: As in `pairwise_loss`, (B, K).
        mask: As in `pairwise_loss`, (B, K).

    Returns:
        The loss of each prompt, (B,).
    """
    prompts, better, worse = ordered_pairs(labels, mask).nonzero(as_tuple=True)
    differs = input_ids[prompts, better] != input_ids[prompts, worse]
    ends = torch.maximum(sequence_lengths[prompts, better], sequence_lengths[prompts, worse]).unsqueeze(1)
    positions = torch.arange(input_ids.shape[2], device=input_ids.device)
    from_difference = (differs.cumsum(dim=1) > 0) & (positions < ends)
    compared = torch.where(differs.any(dim=1, keepdim=True), from_difference, positions == len(positions) - 1)
    gaps = token_scores[prompts, better] - token_scores[prompts, worse]
    losses = torch.where(compared, -functional.logsigmoid(gaps), torch.zeros_like(gaps))
    values = token_scores.new_zeros(*labels.shape, labels.shape[1])
    pair_losses = losses.sum(dim=1) / compared.sum(dim=1).clamp(min=1)
    values = values.index_put((prompts, better, worse), pair_losses)
    return mean_over_pairs(values, ordered_pairs(labels, mask))


def centring_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean squared sum of the two scores of each ordered pair, which pulls the rewards towards mean zero.

    Eisenstein et al., eq. 2, arXiv:2312.09244, over all pairs of a prompt; with K = 2 it is TRL's
    `center_rewards_coefficient` term. Arguments and result as in `pairwise_loss`.
    """
    scores = _without_padding(scores, mask)
    sums = scores.unsqueeze(2) + scores.unsqueeze(1)
    return mean_over_pairs(sums.square(), ordered_pairs(labels, mask))


def sum_to_zero_penalty(scores: Tensor, mask: Tensor) -> Tensor:
    """Squared mean of the rewards of a batch, a scalar: pulls the sum over the batch to zero (after arXiv:2505.07271).

    Unlike `centring_loss` it leaves each pair free, and holds back rewards that drift apart as a whole. The mean takes
    the place of the paper's sum, so that its weight does not depend on the size of the batch.

    Args:
        scores: Reward of each answer, (B, K). Any value at padded places.
        mask: True for real answers, (B, K).
    """
    return (_without_padding(scores, mask).sum() / mask.sum().clamp(min=1)).square()


def _without_padding(scores: Tensor, mask: Tensor) -> Tensor:
    """0 at padded places: an infinity there would make gradients NaN even where its loss is masked."""
    return torch.where(mask, scores, torch.zeros_like(scores))
