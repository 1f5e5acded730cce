"""Weights too coarse to learn: a step of training is often smaller than what half precision can tell apart."""

import logging

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import Trainer

logger = logging.getLogger(__name__)


def check_coarse_weights(trainer: Trainer) -> None:
    """Looks at the dtype of the weights that learn, where no engine keeps float32 copies of them.

    With `bf16` the modules that learn whole beside an adapter, such as a score head, become float32, as PEFT keeps the
    adapter itself: what they compute is bfloat16 all the same.

    DeepSpeed and FSDP keep such copies. bfloat16 has 8 bits of mantissa: a weight moves only by a step of 1/256 of
    itself or more, and smaller ones are rounded away.

    Raises:
        ValueError: They are float16, in which training diverges.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    beside = [parameter for parameter in _beside_adapters(trainer.model) if parameter.dtype == torch.bfloat16]
    if trainer.args.bf16:
        for parameter in beside:
            parameter.data = parameter.data.float()
    learning = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    name = type(trainer).__name__
    if any(parameter.dtype == torch.float16 for parameter in learning):
        raise ValueError(
            f"{name}: weights that learn are float16, in which their updates overflow or vanish and training diverges. "
            "Load the model with dtype float32 (fp16: true then still computes in float16), or train an adapter with "
            "use_peft."
        )
    coarse = sum(parameter.numel() for parameter in learning if parameter.dtype == torch.bfloat16)
    if coarse:
        cures = "train an adapter with use_peft"
        if coarse == sum(parameter.numel() for parameter in beside):
            cures = "set bf16 to true, which keeps what learns beside an adapter (modules_to_save) in float32"
        logger.warning(
            "%s: %d of %d weights that learn are bfloat16, and no float32 copy of them is kept, so that most small "
            "updates are rounded away: 16 steps at a learning rate of 1e-6 move 1.5 %% of such weights, and 88 %% in "
            "float32. Load the model with dtype float32 (bf16: true then still computes in bfloat16), %s, or use "
            "DeepSpeed, which keeps copies; any of these silences this.",
            name,
            coarse,
            sum(parameter.numel() for parameter in learning),
            cures,
        )


def _beside_adapters(model: nn.Module) -> list[nn.Parameter]:
    """What PEFT trains whole beside an adapter."""
    wrappers = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    return [parameter for wrapper in wrappers for parameter in wrapper.parameters() if parameter.requires_grad]
