"""Forward passes over the real tokens of a padded batch alone, as one row of sequences that do not see each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from .modes import evaluation_mode
from .packed_attention import PackedLayout, check_packable, layout_arguments, use_packed_attention
from .score_head import first_position, innermost, position_arguments
from .sharding import is_sharded

OPTION = "padding_free"

# Tokens that a beginning must have at least, for rows to share it: the answers' attention to it costs a call each.
LEAST_SHARED = 8


@dataclass(frozen=True)
class PackedBatch:
    """The N real tokens of a padded batch (B, T), row behind row, and padding that is to be computed.

    Attributes:
        input_ids: Tokens, (1, N).
        positions: Position of each token in its own sequence, from 0, (1, N).
        layout: Where the sequences stand.
        places: Which of the N tokens each column of the batch is, (B, T); for padding a neighbour.
    """

    input_ids: Tensor
    positions: Tensor
    layout: PackedLayout
    places: Tensor

    @classmethod
    def of(
        cls, input_ids: Tensor, attention_mask: Tensor, kept: Tensor | None = None, padding_counts: bool = False
    ) -> "PackedBatch":
        """Takes the padding out of a batch, which may stand on either side; both (B, T).

        Args:
            input_ids: Tokens, (B, T).
            attention_mask: 1 for real tokens, (B, T).
            kept: True for the real tokens and for padding behind them that is to be computed, (B, T); None for none.
            padding_counts: Whether positions go on in such padding; otherwise it has that of the last real token.
        """
        real = attention_mask.bool()
        kept = real if kept is None else kept
        counted = kept if padding_counts else real
        tails = (kept & ~real).sum(dim=1).tolist()
        lengths = [(n, tail) for n, tail in zip(real.sum(dim=1).tolist(), tails, strict=True) if n]
        layout = PackedLayout(
            (tuple((n,) for n, _ in lengths),), int(kept.sum()), (tuple(tail for _, tail in lengths),)
        )
        positions = (counted.long().cumsum(dim=1) - 1)[kept]
        return cls(input_ids[kept].unsqueeze(0), positions.unsqueeze(0), layout, _places(kept))

    @classmethod
    def sharing(cls, input_ids: Tensor, attention_mask: Tensor) -> "PackedBatch":
        """Takes the padding out of a batch, and all copies but the first of a beginning that rows share.

        Args:
            input_ids: Tokens, padded on the right, (B, T), no row without any. Rows that begin alike, as answers to
                one prompt do, share where they follow each other.
            attention_mask: 1 for real tokens, (B, T).
        """
        real = attention_mask.bool()
        lengths = real.sum(dim=1).tolist()
        same = (input_ids[1:] == input_ids[:-1]) & real[1:] & real[:-1]
        groups = shared_beginnings(lengths, same.long().cumprod(dim=1).sum(dim=1).tolist())
        rows, firsts, shared = [], [], []
        for beginning, size in groups:
            of_group = lengths[len(firsts) : len(firsts) + size]
            rows.append((beginning, *(length - beginning for length in of_group)) if size > 1 else tuple(of_group))
            shared += [0] + [beginning] * (size - 1)
            firsts += [len(firsts)] * size
        columns = torch.arange(real.shape[1], device=real.device)
        is_copy = columns < torch.tensor(shared, device=real.device).unsqueeze(1)
        kept = real & ~is_copy
        places = _places(kept)
        positions = (real.long().cumsum(dim=1) - 1)[kept]
        layout = PackedLayout((tuple(rows),), int(kept.sum()))
        return cls(
            input_ids[kept].unsqueeze(0), positions.unsqueeze(0), layout, torch.where(is_copy, places[firsts], places)
        )

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """What `forward` of a model, or of its backbone, takes."""
        arguments = {"input_ids": self.input_ids, "position_ids": self.positions + first_position(model)}
        return arguments | layout_arguments(innermost(model), self.layout, self.input_ids.device)


def is_padding_free(model: nn.Module) -> bool:
    """Whether `make_padding_free` has let this model do without padding."""
    return getattr(innermost(model), "is_padding_free", False)


def token_places(model: nn.Module, attention_mask: Tensor) -> Tensor:
    """Where the tokens of a batch (B, T) stand among those that a pass of the model computes, one row after the other.

    To find what hooks collect: the rows as they are, or without their padding. Of padding a neighbour's place.
    """
    if is_padding_free(model):
        return _places(attention_mask)
    return torch.arange(attention_mask.numel(), device=attention_mask.device).view_as(attention_mask)


def shared_beginnings(lengths: list[int], common: list[int]) -> list[tuple[int, int]]:
    """Which neighbouring rows share how much: for each group the tokens of its beginning and its number of rows.

    A row joins the group before it if that saves tokens; each row keeps a token of its own.

    Args:
        lengths: Tokens of each of B rows.
        common: Tokens with which each row and the next begin alike, B - 1.
    """
    groups = [(lengths[0] - 1, 1)]
    for length, alike in zip(lengths[1:], common, strict=True):
        beginning, size = groups[-1]
        joint = min(beginning, alike, length - 1)
        if joint >= LEAST_SHARED and size * joint > (size - 1) * beginning:
            groups[-1] = (joint, size + 1)
        else:
            groups.append((length - 1, 1))
    return groups


def _places(attention_mask: Tensor) -> Tensor:
    return (attention_mask.flatten().long().cumsum(dim=0) - 1).clamp(min=0).view_as(attention_mask)


def make_padding_free(model: nn.Module, max_length: int | None, compute: Callable[[], Tensor]) -> None:
    """Lets a model do without padding, if that gives the same figures.

    Args:
        model: A transformers model, or one with an adapter.
        max_length: Most tokens of a sequence, None if there is no limit.
        compute: Figures of a small padded batch by this model. They are compared with and without padding, unless the
            weights are sharded.

    Raises:
        ValueError: It gives others, or cannot; the message says why, and the model is as it was.
    """
    inner = innermost(model)
    _check(model, max_length)
    implementation = inner.config.get_text_config()._attn_implementation
    if is_sharded(model):
        use_packed_attention(inner)
        inner.is_padding_free = True
        return
    with torch.no_grad(), evaluation_mode(model):
        expected = compute()
        use_packed_attention(inner)
        inner.is_padding_free = True
        reason = difference(compute, expected)
    if reason is not None:
        inner.is_padding_free = False
        inner.set_attn_implementation(implementation)
        raise ValueError(f"{OPTION}: {type(inner).__name__} cannot do without padding: {reason}. Switch {OPTION} off.")


def _check(model: nn.Module, max_length: int | None) -> None:
    inner = innermost(model)
    if isinstance(model, PeftModel) and any(config.is_prompt_learning for config in model.peft_config.values()):
        raise ValueError(
            f"{OPTION}: this adapter puts tokens of its own before every sequence, for which a packed row has no "
            f"place. Switch {OPTION} off."
        )
    if not position_arguments(model, torch.ones(1, 1)):
        raise ValueError(
            f"{OPTION}: {type(inner).__name__} takes no position_ids, so that it would count through all sequences of "
            f"a row. Switch {OPTION} off."
        )
    check_packable(inner, max_length, OPTION)


def difference(compute: Callable[[], Tensor], expected: Tensor) -> str | None:
    """What the figures of a faster way have wrong, in words; None if rounding explains all."""
    try:
        found = compute()
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
        return f"it fails with {error!r}"
    # What 16 bits round away, and far less than another mask or position makes.
    tolerance = 1e-4 if found.dtype.itemsize > 2 else 0.05
    gap = (found.float() - expected.float()).abs().max().item()
    scale = 1 + expected.float().abs().max().item()
    return None if gap <= tolerance * scale else f"its figures differ by {gap:.2g}"
