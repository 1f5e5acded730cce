"""The models of a run: those that the user passed, and those that are made from them."""

import copy

from accelerate.utils import set_seed
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from pangu_trl.models.adapter_kinds import check_new_adapter, moves_base_weights
from pangu_trl.models.adapter_selection import active_adapter
from pangu_trl.models.sharding import runs_zero3

from ..config import PPOConfig
from ..reward_sources import AdapterReward, ModelReward, RewardSource
from .policy_value import PolicyAndValue
from .reference import make_reference
from .shared_backbone import add_reward_and_value_adapters, head_dtype, read_reward_adapter


def build_models(
    policy: PreTrainedModel | PeftModel,
    value_model: PreTrainedModel | PeftModel | None,
    ref_model: PreTrainedModel | None,
    rewards: list[RewardSource],
    peft_config: PeftConfig | None,
    args: PPOConfig,
    needs_reference: bool = True,
) -> tuple[PolicyAndValue, PreTrainedModel | None]:
    """Puts the adapters on the policy and copies the models that were not passed.

    Returns:
        Policy and critic, and the reference; None if that is the policy with its adapter off, or nothing asks it.

    Raises:
        ValueError: A model is missing that cannot be copied.
    """
    zero3 = runs_zero3(args)
    if peft_config is not None:
        # The adapter's first weights are random, and must not depend on what ran before.
        set_seed(args.seed)
        # ZeRO-3 wants one dtype for all trainable weights.
        policy = get_peft_model(policy, peft_config, autocast_adapter_dtype=not zero3)
        check_new_adapter("PPOTrainer: peft_config", policy)
    if ref_model is None and needs_reference:
        ref_model = make_reference(policy, zero3)
    if args.share_backbone == "all":
        return _one_backbone(policy, rewards, zero3, args.has_critic), ref_model
    if not args.has_critic:
        return PolicyAndValue(policy), ref_model
    if args.share_backbone == "value":
        return PolicyAndValue(policy, value_head=_value_head(policy, zero3)), ref_model
    return PolicyAndValue(policy, value_model or _copied_critic(rewards, zero3)), ref_model


def _copied_critic(rewards: list[RewardSource], zero3: bool) -> PreTrainedModel:
    """The critic starts as a copy of the first reward that is a model."""
    reward_model = next((reward.model for reward in rewards if isinstance(reward, ModelReward)), None)
    if reward_model is None or zero3:
        raise ValueError(
            "PPOTrainer: pass value_model; it is copied from a reward model only if there is one and without ZeRO-3. "
            "Or set share_backbone='value' for a value head on the policy."
        )
    return copy.deepcopy(reward_model).requires_grad_(True)


def _value_head(policy: PreTrainedModel | PeftModel, zero3: bool) -> nn.Linear:
    """Starts at zero: no value is known of a backbone that was not trained to judge."""
    head = nn.Linear(policy.config.get_text_config().hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    return head.to(device=policy.device, dtype=head_dtype(policy, zero3))


def _one_backbone(policy: PeftModel, rewards: list[RewardSource], zero3: bool, has_critic: bool) -> PolicyAndValue:
    if not isinstance(policy, PeftModel):
        raise ValueError(
            "PPOTrainer: share_backbone='all' needs a policy with LoRA, since policy, critic and reward model are "
            "adapters of one base model. Pass peft_config."
        )
    method = policy.peft_config[active_adapter(policy)].peft_type
    if method != PeftType.LORA:
        raise ValueError(
            "PPOTrainer: share_backbone='all' puts the reward adapter beside the policy's, which must be LoRA too; "
            f"got {method.value}. Use LoRA, or share_backbone='none' or 'value'."
        )
    moved = moves_base_weights(policy)
    if moved is not None:
        raise ValueError(
            "PPOTrainer: share_backbone='all' needs base weights that stay as they are, since the reward adapter "
            f"stands on them; the policy's adapter {moved}. Set bias='none' and init_lora_weights=True, or "
            "share_backbone='none' or 'value'."
        )
    source = next((reward for reward in rewards if isinstance(reward, AdapterReward)), None)
    if source is None:
        raise ValueError(
            "PPOTrainer: share_backbone='all' needs a reward model that is a LoRA adapter of the policy's base model; "
            "pass its folder, or the PeftModel, as reward_model."
        )
    adapter = read_reward_adapter(source.adapter, policy, zero3)
    value_head, reward_head = add_reward_and_value_adapters(policy, adapter, zero3, has_critic)
    return PolicyAndValue(policy, value_head=value_head, reward_head=reward_head)
