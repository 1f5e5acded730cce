"""QLoRA: what may be quantised in PPO, which is a base that carries adapters, and what only asks."""

from typing import Any

from peft import PeftConfig, PeftModel

from pangu_trl.models.quantised import is_quantised

from ..reward_sources import ModelReward, RewardSource


def check_quantised(
    policy: Any, value_model: Any, rewards: list[RewardSource], peft_config: PeftConfig | None, copies_critic: bool
) -> None:
    """Refuses quantised weights where weights have to learn.

    Args:
        policy: The policy as it was passed.
        value_model: The critic or None.
        rewards: Parts of the reward.
        peft_config: Adapter that the policy will get.
        copies_critic: Whether the critic is to be a copy of the first reward model.

    Raises:
        ValueError: The message says which model, and what to do.
    """
    if is_quantised(policy) and peft_config is None and not isinstance(policy, PeftModel):
        raise ValueError(
            "PPOTrainer: model is quantised, and quantised weights cannot be trained, only an adapter on them. Pass "
            "peft_config, or load the model without quantization_config."
        )
    if is_quantised(value_model) and not isinstance(value_model, PeftModel):
        raise ValueError(
            "PPOTrainer: value_model is quantised, and quantised weights cannot be trained. Load it without "
            "quantization_config, or with an adapter that is trainable, or set share_backbone='value' or 'all'."
        )
    copied = next((reward.model for reward in rewards if isinstance(reward, ModelReward)), None)
    if copies_critic and is_quantised(copied):
        raise ValueError(
            "PPOTrainer: reward_model is quantised, of which no critic can be copied that learns. Pass value_model, "
            "loaded without quantization_config, or set share_backbone='value' or 'all'."
        )


def check_quantised_launch(policy: Any, shards_weights: bool) -> None:
    """Refuses quantised weights where an engine would cut them into shards.

    Raises:
        ValueError: ZeRO-3 or FSDP2 runs.
    """
    if shards_weights and is_quantised(policy):
        raise ValueError(
            "PPOTrainer: model is quantised, and ZeRO-3 and FSDP2 would cut its packed weights into shards. Start with "
            "DDP or ZeRO-1 or 2, which leave frozen weights whole, or load the model without quantization_config."
        )
