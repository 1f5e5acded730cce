"""What PPOTrainer refuses before anything is sampled: models, tokenizer and options that cannot work together."""

import logging
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, TrainingArguments

from .config import PPOConfig
from .scoring import RewardSource

logger = logging.getLogger(__name__)


def check_constructor(model: Any, args: PPOConfig, train_dataset: Any, tokenizer: Any, data_collator: Any) -> None:
    """Refuses a call of PPOTrainer that lacks something, passes it in another place, or asks for inexact checkpoints.

    Raises:
        ValueError: The message says what to pass and how.
    """
    if isinstance(model, TrainingArguments):
        raise ValueError("PPOTrainer: the first argument is the policy; pass args=..., model=..., ... by name.")
    if tokenizer is None or train_dataset is None:
        raise ValueError("PPOTrainer: pass train_dataset (prompts) and processing_class (the policy's tokenizer).")
    if data_collator is not None and not isinstance(data_collator, DataCollatorWithPadding):
        raise ValueError(
            "PPOTrainer: prompts are padded by the trainer, so a data_collator of your own would have no effect; leave "
            f"it out. Got {type(data_collator).__name__}."
        )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "PPOTrainer: enable_jit_checkpoint saves in the middle of an optimiser step, where PPO cannot go on "
            "exactly. Leave it out: on SIGTERM a run with a save_strategy finishes its step, saves and stops."
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives the tokenizer a pad token if it has none.

    Raises:
        ValueError: It has no end of sequence, so no answer could end.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "PPOTrainer: the tokenizer must have an eos_token, which ends every answer; it has none. Set it to the "
            "token that the policy ends its answers with, e.g. tokenizer.eos_token = '</s>'."
        )
    if tokenizer.pad_token_id is None:
        logger.warning(
            "The tokenizer has no pad token; its eos token pads. Masks keep the two apart. Set tokenizer.pad_token to "
            "silence this."
        )
        tokenizer.pad_token = tokenizer.eos_token


def check_passed_models(
    policy: nn.Module,
    value_model: Any,
    ref_model: Any,
    rewards: list[RewardSource],
    peft_config: PeftConfig | None,
    args: PPOConfig,
) -> None:
    """Refuses models as the user passes them, before any is copied or given an adapter.

    Args:
        policy: The policy.
        value_model: The critic or None.
        ref_model: The reference or None.
        rewards: Parts of the reward.
        peft_config: Adapter that the policy will get.
        args: Options.

    Raises:
        ValueError: One model in two roles, or adapters that would not be learnt or saved.
    """
    share_backbone, rewards = args.share_backbone, [reward.model for reward in rewards]
    if peft_config is not None and isinstance(policy, PeftModel):
        raise ValueError("PPOTrainer: model is a PeftModel already; pass it without peft_config, or merge its adapter.")
    if share_backbone != "none" and value_model is not None:
        raise ValueError(
            f"PPOTrainer: share_backbone={share_backbone!r} makes the critic from the policy's backbone; leave "
            "value_model out, or set share_backbone='none'."
        )
    if share_backbone == "all" and ref_model is not None:
        raise ValueError("PPOTrainer: with share_backbone='all' the reference is the base model; leave ref_model out.")
    for reward in rewards:
        if value_model is not None and value_model is reward:
            raise ValueError(
                "PPOTrainer: value_model is reward_model, but the critic learns while the reward must stay. Load a "
                "second copy, or leave value_model out to have it copied."
            )
        if isinstance(reward, str | Path) and share_backbone != "all":
            raise ValueError(
                f"PPOTrainer: reward_model {str(reward)!r} is a path. Load the model, or set share_backbone='all' if "
                "it is the folder of a LoRA adapter of the policy's base model."
            )
    if ref_model is not None and ref_model is policy:
        raise ValueError(
            "PPOTrainer: ref_model is model, but the policy learns while the reference must stay. Load a second copy, "
            "or leave ref_model out to have it copied."
        )
    _check_adapters(policy, value_model, rewards, share_backbone)


def _check_adapters(policy: nn.Module, value_model: Any, rewards: list[Any], share_backbone: str) -> None:
    """Refuses adapters that would not be learnt or saved, in the models that are passed and the one that is copied."""
    copied = None
    if value_model is None and share_backbone == "none":
        copied = next((reward for reward in rewards if isinstance(reward, nn.Module)), None)
    critic = "value_model" if copied is None else "reward_model, which the critic is copied from,"
    for name, model in (("model", policy), (critic, value_model if copied is None else copied)):
        if getattr(model, "_hf_peft_config_loaded", False) and not isinstance(model, PeftModel):
            raise ValueError(
                f"PPOTrainer: {name} has an adapter that from_pretrained added to it (the folder is an adapter's). "
                "Merge it, or load it with PeftModel.from_pretrained(..., is_trainable=True)."
            )
    if isinstance(copied, PeftModel):
        raise ValueError(
            "PPOTrainer: reward_model is a PeftModel, of which no critic is copied. Pass value_model, or merge it, or "
            "set share_backbone='all' if the policy has the same base model."
        )


def check_models(
    models: nn.Module,
    ref_model: nn.Module | None,
    rewards: list[RewardSource],
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
) -> None:
    """Refuses models that cannot work together; gives critic and reward models the pad token of their tokenizer.

    Args:
        models: Policy and critic.
        ref_model: The reference or None.
        rewards: Parts of the reward.
        tokenizer: The policy's.
        args: Options.

    Raises:
        ValueError: Lengths, vocabularies, heads, pad tokens or trainable tensors are not as they must be.
    """
    vocab_size = models.policy.config.get_text_config().vocab_size
    value_model = getattr(models, "value_model", None)
    named = [("model", models.policy, None), ("value_model", value_model, None), ("ref_model", ref_model, None)]
    named += [("reward_model", reward.model, reward.tokenizer) for reward in rewards]
    for name, model, its_tokenizer in named:
        if not isinstance(model, nn.Module):
            continue
        config = model.config.get_text_config()
        if its_tokenizer is None:
            _check_positions(name, config, args)
            if config.vocab_size != vocab_size:
                raise ValueError(
                    f"PPOTrainer: {name} has a vocabulary of {config.vocab_size} tokens, the policy one of "
                    f"{vocab_size}; they read the same token ids and must agree. A reward model with another tokenizer "
                    "needs that as reward_processing_class."
                )
        if name in ("value_model", "reward_model"):
            if config.num_labels != 1:
                raise ValueError(f"PPOTrainer: {name} must have num_labels=1; got {config.num_labels}.")
            _align_pad_token(name, config, its_tokenizer or tokenizer)
        if name in ("model", "value_model") and not any(tensor.requires_grad for tensor in model.parameters()):
            raise ValueError(
                f"PPOTrainer: {name} has no trainable tensor, so it could not learn. Load an adapter with "
                "PeftModel.from_pretrained(..., is_trainable=True), or call requires_grad_(True)."
            )
    if value_model is not None and not hasattr(value_model, "score"):
        raise ValueError(
            f"PPOTrainer: value_model needs a linear head called `score`; {type(value_model).__name__} has none."
        )
    if args.reward_scaling == "stored":
        config = getattr(rewards[0].model, "config", None)
        if len(rewards) > 1 or not getattr(config, "reward_std", None) or not hasattr(config, "reward_mean"):
            raise ValueError(
                "PPOTrainer: reward_scaling='stored' needs one reward model whose config.json has reward_mean and "
                "reward_std (not 0). Add them, or use reward_scaling='running'."
            )


def _check_positions(name: str, config: Any, args: PPOConfig) -> None:
    length = args.max_prompt_length + args.max_completion_length
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(
            f"PPOTrainer: max_prompt_length + max_completion_length = {length} is more than the {positions} "
            f"positions of {name}. Lower one of the two."
        )


def _align_pad_token(name: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """A sequence classification model finds the end of a text by its pad token, so it must be the one that pads."""
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    elif config.pad_token_id != tokenizer.pad_token_id:
        raise ValueError(
            f"PPOTrainer: {name}.config.pad_token_id is {config.pad_token_id}, the tokenizer pads with "
            f"{tokenizer.pad_token_id} ({tokenizer.pad_token!r}). Set one to the other."
        )


def check_launch(args: PPOConfig, num_prompts: int, is_deepspeed_enabled: bool) -> None:
    """Refuses a launch that the trainer cannot run; call it once the Trainer knows its devices.

    Raises:
        ValueError: Several GPUs in one process, DeepSpeed asked for but not running, or fewer prompts than one rollout
            needs.
    """
    if args.deepspeed is not None and not is_deepspeed_enabled:
        raise ValueError(
            "PPOTrainer: `deepspeed` is set but accelerate runs without it, as it does where ACCELERATE_USE_CPU is set "
            "without ACCELERATE_USE_DEEPSPEED. Start with `accelerate launch` and a DeepSpeed configuration, or unset "
            "that variable."
        )
    if args.n_gpu > 1:
        raise ValueError(
            "PPOTrainer: several GPUs are visible to one process (nn.DataParallel), which is not supported. Start "
            "with `accelerate launch` or `torchrun`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
        )
    prompts_needed = args.prompts_per_rollout * args.world_size
    if num_prompts < prompts_needed:
        raise ValueError(
            "PPOTrainer: one rollout needs per_device_train_batch_size * num_rollout_batches / num_generations * ranks "
            f"= {prompts_needed} prompts; the training set has {num_prompts}."
        )


def require_reentrant_checkpoints(args: PPOConfig) -> None:
    """Makes gradient checkpoints re-entrant, which a PEFT model under ZeRO-3 needs.

    The other kind compares shapes of saved and recomputed tensors, and ZeRO-3 partitions frozen weights in between.
    """
    if args.activation_checkpointing:
        options = dict(args.activation_checkpointing_kwargs or {})
        if options.get("use_reentrant") is False:
            logger.warning(
                "PEFT under ZeRO-3 needs re-entrant gradient checkpoints: use_reentrant is set to True. Leave it out "
                "of activation_checkpointing_kwargs to silence this."
            )
        args.activation_checkpointing_kwargs = options | {"use_reentrant": True}


def check_texts(args: PPOConfig) -> None:
    """Refuses a ptx loss together with re-entrant gradient checkpoints on several ranks.

    A weight of the policy then takes part in two passes, of which each hands over its gradient apart, and DeepSpeed and
    DDP take one a step.

    Raises:
        ValueError: The message says which of them to leave out.
    """
    is_reentrant = (args.activation_checkpointing_kwargs or {}).get("use_reentrant", False)
    if args.activation_checkpointing and is_reentrant and args.world_size > 1:
        raise ValueError(
            "PPOTrainer: ptx_dataset cannot be learnt with re-entrant gradient checkpoints on several ranks. Set "
            "use_reentrant to false in activation_checkpointing_kwargs; with PEFT under ZeRO-3, which needs re-entrant "
            "ones, leave out ptx_dataset or activation_checkpointing."
        )
