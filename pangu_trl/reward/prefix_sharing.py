"""Prefix sharing: a prompt is encoded once, and its K answers attend to it and to themselves.

A row of tokens holds prompt, answer 1, ..., answer K of one ranking, then those of the next
(`pangu_trl.models.packed_attention`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.packed_attention import PackedLayout, check_packable, layout_arguments, use_packed_attention
from pangu_trl.models.score_head import token_scores
from pangu_trl.models.sharding import is_sharded


def enable_prefix_sharing(model: PreTrainedModel, max_length: int | None) -> None:
    """Checks that a reward model can share prefixes, and sets its attention up for it.

    Args:
        model: Sequence classification model, not wrapped.
        max_length: Most tokens of a prompt with one answer, None if there is no limit.

    Raises:
        ValueError: It cannot; the message says why.
    """
    if not isinstance(getattr(model, "score", None), nn.Module):
        raise ValueError(
            f"prefix_sharing: the score head must be the module 'score' of the model; {type(model).__name__} has none."
        )
    check_packable(model, max_length, "prefix_sharing")
    use_packed_attention(model)
    if model.config.get_text_config()._attn_implementation != "flex_attention" and not is_sharded(model):
        _try_sharing(model)


@torch.no_grad()
def _try_sharing(model: PreTrainedModel) -> None:
    """Shares one prompt of one token between two answers: some models do not hand the layout on to their attention."""
    tokens = torch.zeros(1, 3, dtype=torch.long, device=model.device)
    batch = {"input_ids": tokens, "position_ids": torch.tensor([[0, 1, 1]], device=model.device)}
    batch |= {"row": torch.tensor([0]), "prompt_lengths": torch.tensor([1]), "answer_lengths": torch.tensor([[1, 1]])}
    try:
        with evaluation_mode(model):
            score_packed_answers(model, model, batch)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"prefix_sharing: {type(model).__name__} cannot share a prefix; its attention fails with: {error}. Switch "
            "prefix_sharing off."
        ) from error


def score_packed_answers(model: nn.Module, reward_model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Reward of every answer of a packed batch, (N,), prompt by prompt.

    Args:
        model: What to call: the reward model, or what training wrapped around it.
        reward_model: The sequence classification model itself, after `enable_prefix_sharing`.
        batch: A batch of `PackedRankingCollator`.
    """
    layout, answer_ends = read_layout(batch)
    structure = layout_arguments(reward_model, layout, batch["input_ids"].device)
    with token_scores(reward_model) as scores:
        model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **structure)
    return scores[0].flatten()[answer_ends]


def read_layout(batch: Mapping[str, Tensor]) -> tuple[PackedLayout, Tensor]:
    """The layout of a batch of `PackedRankingCollator`.

    Returns:
        The layout, and the index of the last token of every answer in the flattened rows, (N,), prompt by prompt.
    """
    rows, prompt_lengths, answer_lengths = batch["row"], batch["prompt_lengths"], batch["answer_lengths"]
    num_rows, width = batch["input_ids"].shape
    totals = prompt_lengths + answer_lengths.sum(dim=1)
    stands_before = (rows.unsqueeze(1) == rows.unsqueeze(0)).tril(-1)
    starts = (stands_before * totals).sum(dim=1) + rows * width
    ends = (starts + prompt_lengths).unsqueeze(1) + answer_lengths.cumsum(dim=1) - 1
    groups: list[list[tuple[int, ...]]] = [[] for _ in range(num_rows)]
    for row, prompt_length, lengths in zip(
        rows.tolist(), prompt_lengths.tolist(), answer_lengths.tolist(), strict=True
    ):
        groups[row].append((prompt_length, *(length for length in lengths if length)))
    return PackedLayout(tuple(map(tuple, groups)), width), ends[answer_lengths > 0]
