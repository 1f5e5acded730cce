"""The models of a run: those that the user passed, and those that are made from them."""

import copy

from accelerate.utils import set_seed
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from .checks import require_reentrant_checkpoints
from .config import PPOConfig
from .policy_value import PolicyAndValue
from .rollout import RewardFunction


def complete_models(
    policy: PreTrainedModel | PeftModel,
    value_model: PreTrainedModel | PeftModel | None,
    ref_model: PreTrainedModel | None,
    reward_model: PreTrainedModel | RewardFunction,
    peft_config: PeftConfig | None,
    args: PPOConfig,
) -> tuple[PolicyAndValue, PreTrainedModel | None]:
    """Puts the adapter on the policy and copies the models that were not passed.

    Returns:
        Policy and critic, and the reference; None if that is the policy with its adapter off.

    Raises:
        ValueError: A model is missing that cannot be copied.
    """
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    if peft_config is not None:
        # The adapter's first weights are random, and must not depend on what ran before.
        set_seed(args.seed)
        # ZeRO-3 wants one dtype for all trainable weights.
        policy = get_peft_model(policy, peft_config, autocast_adapter_dtype=not zero3)
    if value_model is None:
        if not isinstance(reward_model, nn.Module) or zero3:
            raise ValueError("PPOTrainer: pass value_model; it is copied from reward_model only without ZeRO-3.")
        value_model = copy.deepcopy(reward_model).requires_grad_(True)
    if ref_model is None and not isinstance(policy, PeftModel):
        if zero3:
            raise ValueError("PPOTrainer: under ZeRO-3 a full policy needs ref_model, a second copy of it.")
        ref_model = copy.deepcopy(policy)
    if zero3 and (isinstance(policy, PeftModel) or isinstance(value_model, PeftModel)):
        require_reentrant_checkpoints(args)
    return PolicyAndValue(policy, value_model), ref_model
