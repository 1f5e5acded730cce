"""From a batch of rankings to the scores of its answers, whichever way the batch is laid out."""

import torch
from torch import Tensor, nn

from pangu_trl.models.padding_free import token_places
from pangu_trl.models.score_head import innermost, token_scores
from pangu_trl.models.sequence_scores import sequence_scores

from .prefix_sharing import score_packed_answers


def answer_scores(
    model: nn.Module, batch: dict[str, Tensor], weights: list[float] | None = None, whole_rows: bool = False
) -> Tensor:
    """Reward of every answer, (B, K) in float32; 0 at padded places.

    Args:
        model: The reward model, or what training wrapped around it.
        batch: Of `RankingCollator`, or of `PackedRankingCollator` with `prefix_sharing`.
        weights: Of attributes, whose weighted sum is the reward; None of a head with one output.
        whole_rows: Whether each answer is computed with its prompt even without gradients, for those who collect what
            the head gets.
    """
    if weights is not None:
        attributes = answer_attributes(model, batch, len(weights))
        return attributes @ attributes.new_tensor(weights)
    mask = batch["answer_mask"]
    if "row" in batch:
        found = score_packed_answers(model, innermost(model), batch)
    else:
        real = batch["attention_mask"][mask]
        found = sequence_scores(model, batch["input_ids"][mask], real, real.bool() if whole_rows else None)
    return torch.zeros(mask.shape, dtype=torch.float32, device=found.device).masked_scatter(mask, found.float())


def answer_attributes(model: nn.Module, batch: dict[str, Tensor], num_attributes: int) -> Tensor:
    """What the head gives to every answer, (B, K, A) in float32; 0 at padded places."""
    mask = batch["answer_mask"]
    found = sequence_scores(model, batch["input_ids"][mask], batch["attention_mask"][mask])
    padded = torch.zeros((*mask.shape, num_attributes), dtype=torch.float32, device=mask.device)
    return padded.masked_scatter(mask.unsqueeze(2), found.float().view(-1, num_attributes))


def scores_at_tokens(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Reward of every answer (B, K), and what the head gives at its tokens and the padding that is compared (B, K, T).

    In float32; other places have no meaning. See `compared_tokens`.
    """
    mask, compared = batch["answer_mask"], compared_tokens(batch)
    with token_scores(model) as collected:
        found = sequence_scores(model, batch["input_ids"][mask], batch["attention_mask"][mask], compared)
    rewards = torch.zeros(mask.shape, dtype=torch.float32, device=found.device).masked_scatter(mask, found.float())
    of_tokens = collected[0].float().flatten()[token_places(model, compared)]
    padded = torch.zeros(batch["input_ids"].shape, dtype=torch.float32, device=found.device)
    return rewards, padded.masked_scatter(mask.unsqueeze(2), of_tokens)


def compared_tokens(batch: dict[str, Tensor]) -> Tensor:
    """True for the tokens of the N real answers up to the end of the longest answer to their prompt, (N, T)."""
    mask = batch["answer_mask"]
    ends = (batch["prompt_lengths"] + batch["answer_lengths"].amax(dim=1)).unsqueeze(1).expand_as(mask)[mask]
    return torch.arange(batch["input_ids"].shape[2], device=ends.device) < ends.unsqueeze(1)
