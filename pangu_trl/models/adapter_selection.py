"""Several adapters on one base model, each pass under its own; the only place that switches them.

PEFT's own `set_adapter` and `disable_adapter` freeze the adapters that are switched off, so a second pass in the same
step would take the gradient of the first away without a word.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .quantised import is_packed

# Names that no adapter of a user's has, and no module of a model: a parameter's name then says whose it is.
VALUE_ADAPTER = "pangu_trl_value"
REWARD_ADAPTER = "pangu_trl_reward"

_Selection = list[tuple[Any, bool]]


def active_adapter(model: PeftModel) -> str:
    """Name of the adapter that a model computes with, which is the one that learns.

    Raises:
        ValueError: There is not exactly one.
    """
    names = list(model.active_adapters)
    if len(names) != 1:
        raise ValueError(
            f"one adapter must be active, which is then trained and saved; active are {', '.join(names) or 'none'} of "
            f"{', '.join(model.peft_config)}. Choose one with model.set_adapter('NAME'), or merge the others into the "
            "base model"
        )
    return names[0]


@contextmanager
def selected_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Runs `model` under one adapter, None for none, and leaves `requires_grad` of all of them alone."""
    layers = _adapter_layers(model)
    with _selection(layers, [([name], False) if name else (layer._active_adapter, True) for layer in layers]):
        yield


def pin_adapter_for_recompute(model: nn.Module) -> None:
    """Has gradient checkpoints recompute each block under the adapter of its forward pass.

    The recomputation runs in the backward pass, when another adapter may be selected; its gradients would be wrong
    without an error. Call it after gradient checkpointing was enabled.
    """
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = _pinned(module._gradient_checkpointing_func, _adapter_layers(module))


def _pinned(checkpoint: Callable[..., Any], layers: list[nn.Module]) -> Callable[..., Any]:
    def checkpoint_under_current_adapter(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        selection = [(layer._active_adapter, layer._disable_adapters) for layer in layers]

        def run(*inputs: Any, **options: Any) -> Any:
            with _selection(layers, selection):
                return function(*inputs, **options)

        return checkpoint(run, *args, **kwargs)

    return checkpoint_under_current_adapter


@contextmanager
def merged_policy_adapter(model: PeftModel) -> Iterator[None]:
    """Adds the LoRA of the active adapter to the base weights, for fast generation, and puts the very same bits back.

    Subtracting what was added would leave rounding errors that grow with every rollout, so copies of the weights are
    kept instead. Layers that cannot be merged in place stay as they are: quantised ones, a head that is tied to the
    embedding, DoRA, other methods than LoRA.

    Args:
        model: A PEFT model.
    """
    adapter, embedding = active_adapter(model), model.get_input_embeddings().weight
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    layers = [layer for layer in layers if can_merge(layer, adapter, embedding)]
    saved = [layer.get_base_layer().weight.data.clone() for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.merge(adapter_names=[adapter])
        yield
    finally:
        for layer, weight in zip(layers, saved, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()


def can_merge(layer: LoraLayer, adapter: str, embedding: Tensor) -> bool:
    """Whether an adapter of a layer is a plain sum onto a weight that nothing else uses.

    Args:
        layer: Any layer with LoRA.
        adapter: Name of the adapter.
        embedding: Weight of the model's input embedding, which a head may share.
    """
    base = layer.get_base_layer()
    if not isinstance(base, nn.Linear | Conv1D) or adapter not in layer.lora_A or adapter in layer.lora_variant:
        return False
    return not is_packed(base.weight) and base.weight is not embedding and not layer.lora_bias[adapter]


def _adapter_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


@contextmanager
def _selection(layers: list[nn.Module], selection: _Selection) -> Iterator[None]:
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    _select(layers, selection)
    try:
        yield
    finally:
        _select(layers, before)


def _select(layers: list[nn.Module], selection: _Selection) -> None:
    for layer, (active, disabled) in zip(layers, selection, strict=True):
        layer._active_adapter, layer._disable_adapters = active, disabled
