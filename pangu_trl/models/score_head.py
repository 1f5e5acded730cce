"""The head of a reward model or critic: the model it belongs to, its positions, what it gives token by token."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn


def innermost(model: nn.Module) -> nn.Module:
    """The transformers model inside an engine and an adapter."""
    model = getattr(model, "module", model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone(model: nn.Module) -> nn.Module:
    """The transformers model below a head, inside an engine and an adapter."""
    model = innermost(model)
    return getattr(model, model.base_model_prefix)


def position_arguments(model: nn.Module, attention_mask: Tensor) -> dict[str, Tensor]:
    """Positions that count real tokens only, for the models that take positions.

    Many models count from the first column when they get a mask without positions, which moves a left-padded row to
    other positions than `generate` used for it. Those of RoBERTa's kind start behind the place of the pad token.
    """
    if "position_ids" not in inspect.signature(innermost(model).forward).parameters:
        return {}
    return {"position_ids": (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0) + first_position(model)}


def first_position(model: nn.Module) -> int:
    """Position of a text's first token: 0, but one behind the pad token's in models of RoBERTa's kind.

    They keep the pad token's row of the position embedding for padding, and have as many positions less.
    """
    maker = "create_position_ids_from_input_ids"
    for module in innermost(model).modules():
        if hasattr(module, "position_embeddings") and isinstance(getattr(module, "padding_idx", None), int):
            # A method, or in some models a function beside the class.
            if hasattr(module, maker) or hasattr(sys.modules[type(module).__module__], maker):
                return module.padding_idx + 1
    return 0


def padded_on_the_right(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Texts (B, T) and their mask with the first real token of each row moved to the first column.

    Encoders read their score there, and models that take no positions count from there.
    """
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    order = (columns + attention_mask.long().argmax(dim=1, keepdim=True)) % len(columns)
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def at_last_token(states: Tensor, attention_mask: Tensor) -> Tensor:
    """What stands at the last real token of each row: (B, T, ...) becomes (B, ...).

    By the mask, not by the pad token, since a policy can end an answer with that one too.
    """
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (columns * attention_mask).argmax(dim=1)
    return states[torch.arange(len(last), device=states.device), last]


@contextmanager
def token_scores(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the score head gives at every token, (rows, T, 1) for each forward pass within the block.

    The model itself returns one score a row. A hook leaves the call to whatever is wrapped around the model, which
    DDP, FSDP and DeepSpeed need. Nothing is collected from models whose head is not called `score`.

    Args:
        model: A sequence classification model, or what is wrapped around it.
    """
    collected: list[Tensor] = []
    head = getattr(innermost(model), "score", None)
    if not isinstance(head, nn.Module):
        yield collected
        return
    handle = head.register_forward_hook(lambda module, inputs, output: collected.append(output))
    try:
        yield collected
    finally:
        handle.remove()
