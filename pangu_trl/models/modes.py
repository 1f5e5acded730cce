"""Modes of a loaded model, entered and left again, and how many tokens it takes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from .score_head import first_position


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and gives every submodule its own mode back at the end.

    Takes the unwrapped model: engines keep a mode of their own. Gradients are left to the caller.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@contextmanager
def contiguous_states(model: nn.Module) -> Iterator[None]:
    """Has the head get the last states of a batch in one piece while a model generates.

    Models cut them out of the states of all tokens, so that they lie apart. PyTorch then multiplies row by row, for
    which a CPU in bfloat16 copies a frozen head once a row: 4 GB for 80 rows, 576 units and 49,152 words.
    """
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    head = owner.get_output_embeddings()
    if head is None:
        yield
        return

    def in_one_piece(_: nn.Module, states: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(state.contiguous() if isinstance(state, Tensor) else state for state in states)

    hook = head.register_forward_pre_hook(in_one_piece)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def without_generation_defaults(model: nn.Module) -> Iterator[None]:
    """Hides a model's own generation settings, which `generate` would add to ours where ours say nothing.

    A repetition penalty, say, would sample from another distribution than the one whose log-probabilities are learnt.
    What is known of special tokens stays. Router logits, which some models add a loss of while they generate and fail
    at, are not asked for.
    """
    # A PEFT model copies whatever it finds here, on its base model, before it generates.
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    saved = owner.generation_config
    owner.generation_config = GenerationConfig(
        bos_token_id=saved.bos_token_id, eos_token_id=saved.eos_token_id, pad_token_id=saved.pad_token_id
    )
    config = owner.config.get_text_config()
    asks_router = getattr(config, "output_router_logits", None)
    if asks_router:
        config.output_router_logits = False
    try:
        yield
    finally:
        owner.generation_config = saved
        if asks_router:
            config.output_router_logits = asks_router


def check_generation_settings(model: nn.Module) -> None:
    """Refuses generation settings that transformers does not save, which the first checkpoint would find out.

    Of an adapter alone they are not saved.

    Raises:
        ValueError: The message says which and how to set them.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or isinstance(model, PeftModel):
        return
    try:
        settings.validate(strict=True)
    except ValueError as error:
        raise ValueError(
            f"the generation settings of {model.name_or_path or type(model).__name__} contradict each other, so that "
            "transformers would refuse to save the model after the training. Correct model.generation_config (of a "
            f"folder, its generation_config.json), for sampling options with do_sample=True. {error}"
        ) from error


# Noise of routers in training mode. Not `router_jitter_noise`: PhiMoE chooses its experts by that in every mode.
ROUTER_NOISE = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout to 0: with dropout the ratio of new to old probabilities is noise from the first step on.

    Modules of dropout, also those that PEFT has of its own, and, for the models that call dropout as a function,
    attributes that hold its probability (`dropout`, `attention_dropout`, `resid_pdrop`, `layerdrop`, ...). So with the
    noise that routers of experts multiply their inputs by.
    """
    for module in model.modules():
        is_dropout = isinstance(module, _DropoutNd) or "dropout" in type(module).__name__.lower()
        for name, value in vars(module).items():
            if not ("drop" in name or name in ROUTER_NOISE or (is_dropout and name == "p")):
                continue
            if isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
            elif isinstance(value, dict):
                # Of each adapter, as LoHa has it.
                value |= {key: 0.0 for key, chance in value.items() if isinstance(chance, float)}


def position_limit(model: PreTrainedModel | PeftModel | PreTrainedConfig) -> int | None:
    """Most tokens that a model (or the model of a configuration) has positions for; None if it has no such limit."""
    is_config = isinstance(model, PreTrainedConfig)
    config = model if is_config else model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and limit < 1:
        # As XLNet says that it has none.
        return None
    return limit if limit is None or is_config else limit - first_position(model)


def sequence_limit(model: PreTrainedModel | PeftModel | PreTrainedConfig, max_length: int | None) -> int:
    """Most tokens of an example: `max_length`, and never more than the model has positions for.

    Records that are longer are left out and counted by the tokenising that gets this limit; a prompt that leaves no
    room is an error there, before training starts.
    """
    limits = [limit for limit in (max_length, position_limit(model)) if limit is not None]
    return min(limits, default=sys.maxsize)
