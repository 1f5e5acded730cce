"""Weights that are stored in 4 or 8 bits and cannot learn: which they are, and how they compute the same everywhere."""

from types import MethodType
from typing import Any

from torch import Tensor, nn

from .score_head import innermost


def is_quantised(model: Any) -> bool:
    """Whether `from_pretrained` has quantised a model, or the base of one with adapters."""
    return model is not None and bool(getattr(innermost(model), "is_quantized", False))


def is_packed(weight: Tensor) -> bool:
    """Whether a tensor holds codes rather than numbers; bitsandbytes may keep codes in a floating dtype, for FSDP."""
    return not weight.is_floating_point() or getattr(weight, "quant_state", None) is not None


def compute_alike_in_both_modes(model: nn.Module) -> None:
    """Has quantised layers compute in evaluation mode what they compute in training mode.

    On CPUs bitsandbytes rounds otherwise in evaluation mode: activations of 8-bit layers to 8 bits, everything around
    4-bit ones to bfloat16, with weights that it repacks in place and that then pass on no gradient. Answers would be
    scored by another model than the one that learns. The layers have no dropout, so their mode means nothing else.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and is_packed(module.weight):
            # Undoes a repacking, which an earlier pass may have left: bitsandbytes saves the usual order.
            module.state_dict()
            module.training = True
            module.train = MethodType(_stay_in_training_mode, module)


def _stay_in_training_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
