"""Prefix sharing: a prompt is encoded once, and its K answers attend to it and to themselves.

A row of tokens holds prompt, answer 1, ..., answer K of one ranking, then those of the next. The positions of every
answer go on from its own prompt, so each answer is computed as if it stood behind the prompt alone.

Under SDPA the attention of a row is taken apart by an implementation of our own, registered with transformers: no mask
over the whole row, and no work on pairs of tokens that do not see each other. Under flex attention the same structure
is a block mask.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.score_head import token_scores
from pangu_trl.models.sharding import is_sharded

SHARED_PREFIX_SDPA = "sdpa_shared_prefix"

# Arguments of attention functions that change which tokens see each other, or by how much.
UNSUPPORTED_ARGUMENTS = ("position_bias", "s_aux", "softcap")


@dataclass(frozen=True)
class PrefixLayout:
    """Where prompts and answers stand in the rows of a batch.

    Attributes:
        rows: For each row its rankings in order, each as the lengths of its prompt and of its answers.
        width: Tokens of a row, T; what the rankings leave free at its end is padding.
        answer_ends: Index of the last token of every answer in the flattened rows, (N,), prompt by prompt.
    """

    rows: tuple[tuple[tuple[int, ...], ...], ...]
    width: int
    answer_ends: Tensor

    @classmethod
    def from_batch(cls, batch: Mapping[str, Tensor]) -> "PrefixLayout":
        """Reads the layout of a batch of `PackedRankingCollator`."""
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
        return cls(tuple(map(tuple, groups)), width, ends[answer_lengths > 0])

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt with one answer."""
        return max(group[0] + max(group[1:]) for row in self.rows for group in row)

    def segment_ids(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ranking and answer of every token, both (R, T). Padding is ranking -1; a prompt is answer 0."""
        shape = (len(self.rows), self.width)
        ranking_ids, answer_ids = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
        for row, groups in enumerate(self.rows):
            start = 0
            for ranking, group in enumerate(groups):
                for answer, length in enumerate(group):
                    ranking_ids[row, start : start + length] = ranking
                    answer_ids[row, start : start + length] = answer
                    start += length
        return ranking_ids.to(device), answer_ids.to(device)

    def block_mask(self, device: torch.device) -> BlockMask:
        """The structure for flex attention."""
        ranking_ids, answer_ids = self.segment_ids(device)

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_ranking = ranking_ids[row, query] == ranking_ids[row, key]
            key_answer = answer_ids[row, key]
            return same_ranking & (query >= key) & ((key_answer == 0) | (key_answer == answer_ids[row, query]))

        return create_block_mask(sees, len(self.rows), None, self.width, self.width, device=device)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefix_layout: PrefixLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA over rows of prompts and answers; plain SDPA where there is no `prefix_layout`.

    Args:
        module: The attention layer.
        query: (R, heads, T, head width).
        key: (R, key heads, T, head width).
        value: (R, key heads, T, head width).
        attention_mask: Not read where there is a layout.
        dropout: Probability, as transformers passes it.
        scaling: Factor of the products, as transformers passes it.
        prefix_layout: Where prompts and answers stand.
        **kwargs: Further arguments of transformers' attention functions.

    Returns:
        (R, T, heads, head width), and no probabilities.

    Raises:
        ValueError: The layer asks for attention that cannot be shared, such as a sliding window within an answer.
    """
    if prefix_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    _refuse_unsupported_attention(prefix_layout, kwargs)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        output, _ = sdpa_attention_forward(
            module, queries, keys, values, mask, dropout=dropout, scaling=scaling, is_causal=True
        )
        return output

    # Split rather than sliced: the gradient of a slice is a zero-filled tensor of the whole size.
    rows = zip(prefix_layout.rows, query.split(1), key.split(1), value.split(1), strict=True)
    return torch.cat([_attend_row(attend, *row) for row in rows]), None


def _attend_row(
    attend: Callable[..., Tensor], groups: tuple[tuple[int, ...], ...], query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    lengths = [length for group in groups for length in group]
    padding = query.shape[2] - sum(lengths)
    pieces = zip(*(tensor.split([*lengths, padding], dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for prompt_length, *answer_lengths in groups:
        prompt_query, prompt_key, prompt_value = next(pieces)
        outputs.append(attend(prompt_query, prompt_key, prompt_value, None))
        for length in answer_lengths:
            answer_query, answer_key, answer_value = next(pieces)
            # The whole prompt, and of the answer the tokens so far.
            visible = torch.ones(1, 1, length, prompt_length + length, dtype=torch.bool, device=query.device)
            visible = visible.tril(prompt_length)
            keys = torch.cat([prompt_key, answer_key], dim=2)
            values = torch.cat([prompt_value, answer_value], dim=2)
            outputs.append(attend(answer_query, keys, values, visible))
    outputs.append(outputs[0].new_zeros(1, padding, *outputs[0].shape[2:]))
    return torch.cat(outputs, dim=1)


def _refuse_unsupported_attention(layout: PrefixLayout, kwargs: Mapping[str, Any]) -> None:
    for name in UNSUPPORTED_ARGUMENTS:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"prefix_sharing: this model's attention uses {name}, which cannot be shared. Switch it off."
            )
    window = kwargs.get("sliding_window")
    if window is not None and window < layout.longest:
        raise ValueError(
            f"prefix_sharing: prompt and answer must fit in the sliding window of {window} tokens; got "
            f"{layout.longest}. Switch prefix_sharing off, or lower max_length."
        )


AttentionInterface.register(SHARED_PREFIX_SDPA, shared_prefix_attention)
# Without a layout it is SDPA, and needs SDPA's masks: a name without masks would see padding, in silence.
AttentionMaskInterface.register(SHARED_PREFIX_SDPA, sdpa_mask)


def enable_prefix_sharing(model: PreTrainedModel, max_length: int | None) -> None:
    """Checks that a reward model can share prefixes, and sets its attention up for it.

    Args:
        model: Sequence classification model, not wrapped.
        max_length: Most tokens of a prompt with one answer, None if there is no limit.

    Raises:
        ValueError: It cannot; the message says why.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    if not isinstance(getattr(model, "score", None), nn.Module):
        raise ValueError(f"prefix_sharing: the score head must be the module 'score' of the model; {name} has none.")
    if not model._supports_attention_backend or getattr(model, "_is_stateful", False):
        raise ValueError(
            f"prefix_sharing: every layer must be attention that runs through transformers' attention interface; "
            f"{name} has others. Switch prefix_sharing off."
        )
    window = getattr(config, "sliding_window", None)
    layer_types = set(
        getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    )
    if layer_types - {"full_attention", "sliding_attention"}:
        raise ValueError(
            "prefix_sharing: every layer must be full or sliding attention; "
            f"{name} has {', '.join(sorted(layer_types))}. Switch prefix_sharing off."
        )
    if "sliding_attention" in layer_types and (max_length is None or max_length > window):
        raise ValueError(
            f"prefix_sharing: max_length must be at most the sliding window of {window} tokens of {name}; got "
            f"{max_length}. Lower max_length, or switch prefix_sharing off."
        )
    implementation = config._attn_implementation
    if implementation not in ("sdpa", "flex_attention", SHARED_PREFIX_SDPA):
        raise ValueError(
            f"prefix_sharing: attn_implementation must be sdpa or flex_attention; {name} has {implementation}. "
            "Load the model with one of them, or switch prefix_sharing off."
        )
    if implementation == "sdpa":
        model.set_attn_implementation(SHARED_PREFIX_SDPA)
    if implementation != "flex_attention" and not is_sharded(model):
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
    layout = PrefixLayout.from_batch(batch)
    device = batch["input_ids"].device
    if reward_model.config.get_text_config()._attn_implementation == "flex_attention":
        structure = {"attention_mask": layout.block_mask(device)}
    else:
        # A 4-D mask is handed through as it is, so that transformers builds none; the attention does not read it.
        unread = torch.ones(1, 1, 0, 0, dtype=torch.bool, device=device)
        structure = {"attention_mask": unread, "prefix_layout": layout}
    with token_scores(reward_model) as scores:
        model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **structure)
    return scores[0].flatten()[layout.answer_ends]
