"""Weights too coarse to learn: a step of training is often smaller than what half precision can tell apart."""

import logging

import torch
from transformers import Trainer

logger = logging.getLogger(__name__)


def check_coarse_weights(trainer: Trainer) -> None:
    """Looks at the dtype of the weights that learn, where no engine keeps float32 copies of them.

    DeepSpeed and FSDP keep such copies. bfloat16 has 8 bits of mantissa: a weight moves only by a step of 1/256 of
    itself or more, and smaller ones are rounded away.

    Raises:
        ValueError: They are float16, in which training diverges.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
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
        logger.warning(
            "%s: %d of %d weights that learn are bfloat16, and no float32 copy of them is kept, so that most small "
            "updates are rounded away: 16 steps at a learning rate of 1e-6 move 1.5 %% of such weights, and 88 %% in "
            "float32. Load the model with dtype float32 (bf16: true then still computes in bfloat16), train an adapter "
            "with use_peft, or use DeepSpeed, which keeps copies; any of these silences this.",
            name,
            coarse,
            sum(parameter.numel() for parameter in learning),
        )
