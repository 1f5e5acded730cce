"""The reference of the KL penalty where the user passed none: the policy as it was passed in."""

import copy
import logging

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from pangu_trl.models.adapter_kinds import learns_base_weights, starts_as_base
from pangu_trl.models.adapter_selection import active_adapter

logger = logging.getLogger(__name__)


def check_reference(ref_model: nn.Module | None, is_needed: bool) -> None:
    """Refuses a reference that would take memory and never be asked.

    Args:
        ref_model: What the user passed.
        is_needed: Whether there is a penalty, or an evaluation.

    Raises:
        ValueError: It is not needed.
    """
    if ref_model is not None and not is_needed:
        raise ValueError(
            "PPOTrainer: ref_model has no effect with kl_coef 0 and without eval_dataset, whose win rate it is for; "
            "leave it out."
        )


def make_reference(policy: PreTrainedModel | PeftModel, zero3: bool) -> PreTrainedModel | PeftModel | None:
    """A frozen copy of the policy as it starts; None where that is the policy with its adapter off.

    The copy holds only what the policy learns, and shares the rest with it.

    Args:
        policy: The policy with its adapter, before anything is learnt.
        zero3: Whether ZeRO-3 shards the weights, so that none can be copied.

    Raises:
        ValueError: A copy is needed and cannot be made; the message says why and what to pass.
    """
    reason = _why_a_copy(policy)
    if reason is None:
        logger.info("The reference is the policy with its adapter off, which is the policy as it was passed in.")
        return None
    if zero3:
        raise ValueError(
            f"PPOTrainer: under ZeRO-3 pass ref_model, a second copy of the policy, since {reason} and sharded weights "
            "cannot be copied."
        )
    # Users of other libraries may expect the base model of a trained adapter here.
    level = logging.WARNING if isinstance(policy, PeftModel) else logging.INFO
    message = "The reference is a frozen copy of the policy as it was passed in, since %s. Pass ref_model for another."
    logger.log(level, message, reason)
    shared = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
    return copy.deepcopy(policy, shared).requires_grad_(False).eval()


def _why_a_copy(policy: nn.Module) -> str | None:
    """Why switching the adapter off does not give the policy as it starts, and for ever."""
    if not isinstance(policy, PeftModel):
        return "all of the policy learns"
    outside = learns_base_weights(policy)
    if outside:
        return f"its adapter leaves weights of the base model trainable ({len(outside)}, the first is {outside[0]})"
    if not starts_as_base(policy):
        adapter = active_adapter(policy)
        return f"its adapter {adapter!r} starts as more than its base model, as a trained one does, or may do so"
    return None
