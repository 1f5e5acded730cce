"""Before the first step nothing has been learnt, so what is computed twice must be the same twice."""

import torch
from accelerate import Accelerator
from torch import Tensor

from .config import PPOConfig
from .rollout import Rollout

# Mean difference in nats a token that is no fault: rounding, as of the norms of DoRA.
LARGEST_GAP, LARGEST_GAP_OF_16_BITS = 1e-3, 0.05


def largest_gap(args: PPOConfig, dtype: torch.dtype) -> float:
    """The mean difference a token that rounding may leave, of a policy whose weights are of `dtype`."""
    has_16_bits = args.bf16 or args.fp16 or dtype.itemsize == 2
    return LARGEST_GAP_OF_16_BITS if has_16_bits else LARGEST_GAP


def check_first_pass(outputs: dict[str, Tensor], batch: Rollout, accelerator: Accelerator, limit: float) -> None:
    """Refuses models that compute otherwise while they learn than when their answers were scored.

    The ratio of new to old probabilities, and the change of a value, would be noise from the first step on. Dropout is
    switched off by then; some routers, adapters and models have other chance in training mode, or other weights.

    Args:
        outputs: `logprobs` (B, C) and, with a critic, `values` (B, C) of the first mini-batch, before the first step.
        batch: The mini-batch as it was scored.
        accelerator: Adds up over the ranks, so that all stop.
        limit: See `largest_gap`; of values relative to their size.

    Raises:
        ValueError: They differ.
    """
    mask = batch.completion_mask
    pairs = [("policy", "log-probabilities", outputs["logprobs"].detach(), batch.logprobs, 0.0)]
    if "values" in outputs:
        pairs.append(("critic", "values", outputs["values"].detach(), batch.values, 1.0))
    num_tokens = accelerator.reduce(mask.sum(), reduction="sum")
    for whose, what, learning, scored, size in pairs:
        # Of values in units of 1 + their mean size.
        sums = torch.stack([((learning - scored).abs() * mask).sum(), (scored.abs() * mask).sum()])
        gap, mean = (accelerator.reduce(sums, reduction="sum") / num_tokens).tolist()
        # Not `>`, with which a NaN would pass.
        if not gap <= limit * (1 + size * mean):
            raise ValueError(
                f"PPOTrainer: the {whose} gives other {what} while it learns than when its answers were scored: "
                f"{gap:.4f} a token on average, before the first step. Nothing was learnt. Likely causes: chance in "
                "training mode that is no dropout, as in routers that draw their experts (PhiMoE), or a model with "
                "other weights in training mode. Choose another model or adapter, or switch that off in its "
                "configuration."
            )
