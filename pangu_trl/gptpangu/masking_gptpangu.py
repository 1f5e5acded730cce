"""Positions and attention masks of GPTPangu: padding on either side, packed sequences, ready-made masks.

What differs from the models of transformers: positions are derived from the mask, so that a padded row is computed as
if it were alone; packed sequences stay apart whatever else is given, or are refused; a 4-D mask may be boolean, integer
or additive under every implementation.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, packed_sequence_mask_function
from transformers.utils import is_tracing
from transformers.utils.generic import is_flash_attention_requested

from .arguments_gptpangu import CACHE_ARGUMENT
from .configuration_gptpangu import GPTPanguConfig


def check_attention_mask(attention_mask: Any, inputs_embeds: Tensor, past_key_values: Cache | None) -> None:
    """Refuses masks that are neither 2-D nor 4-D, and 2-D masks of another width than cached and new tokens."""
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim == 4:
        return
    length = inputs_embeds.shape[1]
    if attention_mask.ndim != 2:
        raise ValueError(
            "GPTPanguModel: attention_mask must be 2-D (batch, past + new tokens) or 4-D (batch, 1 or heads, new "
            f"tokens, past + new tokens); got shape {tuple(attention_mask.shape)}."
        )
    past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
    # A static cache counts in a tensor: reading it would stall an accelerator and break a compiled graph.
    if isinstance(past_length, int) and attention_mask.shape[1] != past_length + length:
        raise ValueError(
            f"GPTPanguModel: attention_mask must cover the {past_length} cached and the {length} new tokens; got shape "
            f"{tuple(attention_mask.shape)}."
        )


def derive_positions(inputs_embeds: Tensor, attention_mask: Tensor | None, past_key_values: Cache | None) -> Tensor:
    """Positions (B or 1, T): a running count of the real tokens, or of all tokens without a 2-D mask."""
    columns = _columns_of_new_tokens(inputs_embeds, past_key_values)
    if attention_mask is None or len(attention_mask.shape) != 2:
        return columns.unsqueeze(0)
    real = attention_mask.to(inputs_embeds.device).bool()
    return (real.long().cumsum(dim=-1) - 1).clamp(min=0)[:, columns]


def check_positions(position_ids: Tensor, limit: int, past_key_values: Cache | None, derived: bool) -> None:
    """Refuses positions that the tables do not have; an accelerator waits for it only where lengths do not answer.

    Args:
        position_ids: Positions of the new tokens, (B or 1, T).
        limit: Rows of the position tables.
        past_key_values: The cache, as `forward` was given it.
        derived: Whether the positions come from `derive_positions`, and thus lie below the number of tokens.

    Raises:
        ValueError: A position below 0 or not below `limit`.
    """
    if is_tracing(position_ids) or position_ids.is_meta or position_ids.numel() == 0:
        return
    # Single steps of generation are taken for derived where reading them would stall every token.
    if derived or (position_ids.shape[-1] == 1 and position_ids.device.type != "cpu"):
        capacity = past_key_values.get_max_length(0) if past_key_values is not None else -1
        past_length = past_key_values.get_seq_length() if past_key_values is not None and capacity < 0 else 0
        if max(capacity, past_length + position_ids.shape[-1]) <= limit:
            return
    first, last = (int(bound) for bound in position_ids.aminmax())
    if first < 0 or last >= limit:
        raise ValueError(
            f"GPTPanguModel: position {first if first < 0 else last} does not exist, the model has "
            f"max_position_embeddings={limit} (positions 0 to {limit - 1}). Shorten the prompt or the number of new "
            "tokens."
        )


def make_attention_mask(
    config: GPTPanguConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    position_ids: Tensor | None,
) -> Any:
    """The mask in the form that the attention implementation takes.

    transformers looks for packed sequences only where there is neither a mask nor a cache, and elsewhere mixes them
    in silence. Here they are found with a 2-D mask too; what cannot be computed is an error.

    Args:
        config: Names the attention implementation.
        inputs_embeds: Embedded new tokens, (B, T, H).
        attention_mask: As in `GPTPanguModel.forward`.
        past_key_values: The cache that the caller passed, None if `forward` is about to make one.
        position_ids: Positions that the caller passed, (B, T) or (1, T); None if they were derived.

    Raises:
        ValueError: Packed sequences that cannot be kept apart, or a 4-D mask that the implementation does not take.
    """
    if attention_mask is not None and len(attention_mask.shape) != 2:
        return _ready_mask(config, inputs_embeds, attention_mask)
    arguments = dict(config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    arguments[CACHE_ARGUMENT] = past_key_values
    batch_size, length = inputs_embeds.shape[:2]
    flash = is_flash_attention_requested(config)
    if position_ids is None or length == 1:
        return create_causal_mask(**arguments)
    if attention_mask is None and past_key_values is None and not (flash and batch_size > 1):
        return create_causal_mask(**arguments, position_ids=position_ids)

    tracing = is_tracing(position_ids)
    separable = past_key_values is None and not flash
    if tracing and not separable:
        return create_causal_mask(**arguments)
    real = None
    if attention_mask is not None:
        real = attention_mask[:, _columns_of_new_tokens(inputs_embeds, past_key_values)].bool()
    sequences = number_packed_sequences(position_ids.expand(batch_size, -1), real)
    # A traced graph cannot branch on values, so it always separates.
    if not tracing and not sequences.any():
        return create_causal_mask(**arguments)
    if not separable:
        raise ValueError(
            "GPTPanguModel: position_ids restart, which means packed sequences, and they would see each other here. "
            "Pass them without past_key_values (generate takes padded batches only) and, under flash attention, in "
            f"one row without attention_mask; got {batch_size} rows, attention_mask "
            f"{'given' if attention_mask is not None else 'not given'}, past_key_values "
            f"{'given' if past_key_values is not None else 'not given'}, {config._attn_implementation}."
        )
    return create_causal_mask(**arguments, and_mask_function=packed_sequence_mask_function(sequences))


def number_packed_sequences(position_ids: Tensor, real: Tensor | None) -> Tensor:
    """The packed sequence that each token belongs to, (B, T), counted from 0.

    A real token whose position is not above that of the real token before it starts a new one.

    Args:
        position_ids: Positions, (B, T).
        real: True for real tokens, (B, T); None if all are.
    """
    if real is None:
        real = torch.ones_like(position_ids, dtype=torch.bool)
    positions = position_ids.masked_fill(~real, -1)
    columns = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    latest_real = columns.masked_fill(~real, 0).cummax(dim=-1).values
    starts = real[:, 1:] & (positions[:, 1:] <= positions.gather(-1, latest_real)[:, :-1])
    return nn.functional.pad(starts.long().cumsum(dim=-1), (1, 0))


def _columns_of_new_tokens(inputs_embeds: Tensor, past_key_values: Cache | None) -> Tensor:
    """Where the new tokens stand among all tokens, (T,)."""
    past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
    return torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_length


def _ready_mask(config: GPTPanguConfig, inputs_embeds: Tensor, attention_mask: Any) -> Any:
    """A 4-D mask of any type as the implementation takes it: blocks for flex, boolean for SDPA, else additive."""
    if not isinstance(attention_mask, Tensor):
        return attention_mask
    flex = config._attn_implementation == "flex_attention"
    if is_flash_attention_requested(config) or (flex and attention_mask.is_floating_point()):
        raise ValueError(
            f"GPTPanguModel: {config._attn_implementation} takes no 4-D attention_mask of type {attention_mask.dtype}. "
            "Load the model with attn_implementation='sdpa' or 'eager'; 'flex_attention' takes a boolean one."
        )
    lowest = torch.finfo(inputs_embeds.dtype).min
    if attention_mask.is_floating_point():
        # Minus infinity in a whole row, as padding has, would give NaN.
        return attention_mask.clamp(min=lowest).to(inputs_embeds.dtype)
    visible = attention_mask.bool()
    if flex:
        return _flex_block_mask(visible)
    if "sdpa" in config._attn_implementation:
        return visible
    return torch.zeros_like(visible, dtype=inputs_embeds.dtype).masked_fill(~visible, lowest)


def _flex_block_mask(visible: Tensor) -> BlockMask:
    """Blocks of a boolean mask (B, 1 or heads, T, past + T). A mask added to the scores crashes flex on CPU."""
    batch_size, num_heads, query_length, key_length = visible.shape
    return create_block_mask(
        lambda row, head, query, key: visible[row, head if num_heads > 1 else 0, query, key],
        B=batch_size,
        H=num_heads if num_heads > 1 else None,
        Q_LEN=query_length,
        KV_LEN=key_length,
        device=visible.device,
    )
