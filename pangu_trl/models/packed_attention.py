"""Rows that hold several sequences one behind another, which do not see each other; some may share a prompt.

The positions of every sequence start anew, and those of answers go on from their own prompt, so that each is computed
as if it stood alone and without padding.

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

PACKED_SDPA = "sdpa_packed"

# Arguments of attention functions that change which tokens see each other, or by how much.
UNSUPPORTED_ARGUMENTS = ("position_bias", "s_aux", "softcap")


@dataclass(frozen=True)
class PackedLayout:
    """Where sequences stand in the rows of a batch.

    Attributes:
        rows: For each row its groups in order, each as the lengths of a prompt and of the answers that share it. A
            sequence that shares nothing is a prompt without answers.
        width: Tokens of a row, T; what the groups leave free at its end is padding.
        tails: For each row and group the number of tokens behind it that see its prompt and nothing else, not even
            themselves, as padding does that is computed on. Empty: there are none.
    """

    rows: tuple[tuple[tuple[int, ...], ...], ...]
    width: int
    tails: tuple[tuple[int, ...], ...] = ()

    def groups_with_tails(self) -> list[list[tuple[tuple[int, ...], int]]]:
        """The groups of each row, each with the number of tokens in its tail."""
        tails = self.tails or tuple((0,) * len(groups) for groups in self.rows)
        return [list(zip(groups, sizes, strict=True)) for groups, sizes in zip(self.rows, tails, strict=True)]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt, with its longest answer."""
        return max(group[0] + max(group[1:], default=0) for row in self.rows for group in row)

    def segment_ids(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Group and answer of every token, both (R, T). Padding is group -1; a prompt is answer 0, a tail -1."""
        shape = (len(self.rows), self.width)
        group_ids, answer_ids = torch.full(shape, -1), torch.zeros(shape, dtype=torch.long)
        for row, groups in enumerate(self.groups_with_tails()):
            start = 0
            for index, (group, tail) in enumerate(groups):
                for answer, length in [*enumerate(group), (-1, tail)]:
                    group_ids[row, start : start + length] = index
                    answer_ids[row, start : start + length] = answer
                    start += length
        return group_ids.to(device), answer_ids.to(device)

    def block_mask(self, device: torch.device) -> BlockMask:
        """The structure for flex attention."""
        group_ids, answer_ids = self.segment_ids(device)

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same_group = group_ids[row, query] == group_ids[row, key]
            key_answer = answer_ids[row, key]
            is_own_answer = (key_answer > 0) & (key_answer == answer_ids[row, query])
            return same_group & (query >= key) & ((key_answer == 0) | is_own_answer)

        return create_block_mask(sees, len(self.rows), None, self.width, self.width, device=device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA over packed rows; plain SDPA where there is no `packed_layout`.

    Args:
        module: The attention layer.
        query: (R, heads, T, head width).
        key: (R, key heads, T, head width).
        value: (R, key heads, T, head width).
        attention_mask: Not read where there is a layout.
        dropout: Probability, as transformers passes it.
        scaling: Factor of the products, as transformers passes it.
        packed_layout: Where sequences stand.
        **kwargs: Further arguments of transformers' attention functions.

    Returns:
        (R, T, heads, head width), and no probabilities.

    Raises:
        ValueError: The layer asks for attention that packed rows cannot have, such as a sliding window.
    """
    if packed_layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    _refuse_unsupported_attention(packed_layout, kwargs)

    def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        output, _ = sdpa_attention_forward(
            module, queries, keys, values, mask, dropout=dropout, scaling=scaling, is_causal=True
        )
        return output

    # Split rather than sliced: the gradient of a slice is a zero-filled tensor of the whole size.
    rows = zip(packed_layout.groups_with_tails(), query.split(1), key.split(1), value.split(1), strict=True)
    return torch.cat([_attend_row(attend, *row) for row in rows]), None


def _attend_row(
    attend: Callable[..., Tensor],
    groups: list[tuple[tuple[int, ...], int]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    lengths = [length for group, tail in groups for length in (*group, *([tail] if tail else []))]
    padding = query.shape[2] - sum(lengths)
    pieces = zip(*(tensor.split([*lengths, padding], dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for (prompt_length, *answer_lengths), tail in groups:
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
        if tail:
            tail_query, _, _ = next(pieces)
            visible = torch.ones(1, 1, tail, prompt_length, dtype=torch.bool, device=query.device)
            outputs.append(attend(tail_query, prompt_key, prompt_value, visible))
    outputs.append(outputs[0].new_zeros(1, padding, *outputs[0].shape[2:]))
    return torch.cat(outputs, dim=1)


def _refuse_unsupported_attention(layout: PackedLayout, kwargs: Mapping[str, Any]) -> None:
    for name in UNSUPPORTED_ARGUMENTS:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"this model's attention uses {name}, which packed rows cannot have. Switch prefix_sharing and "
                "padding_free off."
            )
    window = kwargs.get("sliding_window")
    if window is not None and window < layout.longest:
        raise ValueError(
            f"packed rows: prompt and answer must fit in the sliding window of {window} tokens; got {layout.longest}. "
            "Switch prefix_sharing and padding_free off, or lower the greatest length."
        )


AttentionInterface.register(PACKED_SDPA, packed_attention)
# Without a layout it is SDPA, and needs SDPA's masks: a name without masks would see padding, in silence.
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def check_packable(model: PreTrainedModel, max_length: int | None, option: str) -> None:
    """Refuses a model that cannot compute packed rows, as far as its configuration tells.

    Args:
        model: Not wrapped.
        max_length: Most tokens of a prompt with one answer, None if there is no limit.
        option: What asks for packed rows, for the message.

    Raises:
        ValueError: It cannot; the message says why.
    """
    config, name = model.config.get_text_config(), type(model).__name__
    if not model._supports_attention_backend or getattr(model, "_is_stateful", False):
        raise ValueError(
            f"{option}: every layer must be attention that runs through transformers' attention interface; "
            f"{name} has others. Switch {option} off."
        )
    window = getattr(config, "sliding_window", None)
    layer_types = set(
        getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    )
    if layer_types - {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"{option}: every layer must be full or sliding attention; "
            f"{name} has {', '.join(sorted(layer_types))}. Switch {option} off."
        )
    if "sliding_attention" in layer_types and (max_length is None or max_length > window):
        raise ValueError(
            f"{option}: max_length must be at most the sliding window of {window} tokens of {name}; got "
            f"{max_length}. Lower max_length, or switch {option} off."
        )
    implementation = config._attn_implementation
    if implementation not in ("sdpa", "flex_attention", PACKED_SDPA):
        raise ValueError(
            f"{option}: attn_implementation must be sdpa or flex_attention; {name} has {implementation}. "
            f"Load the model with one of them, or switch {option} off."
        )


def use_packed_attention(model: PreTrainedModel) -> None:
    """Has a model that `check_packable` let pass compute its attention by `packed_attention`, if it uses SDPA."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation(PACKED_SDPA)


def layout_arguments(model: PreTrainedModel, layout: PackedLayout, device: torch.device) -> dict[str, Any]:
    """How `forward` of a model is told the layout of its rows."""
    if model.config.get_text_config()._attn_implementation == "flex_attention":
        return {"attention_mask": layout.block_mask(device)}
    # A 4-D mask is handed through as it is, so that transformers builds none; the attention does not read it.
    unread = torch.ones(1, 1, 0, 0, dtype=torch.bool, device=device)
    return {"attention_mask": unread, "packed_layout": layout}
