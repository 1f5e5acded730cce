"""What PPOTrainer refuses before anything is sampled: models, tokenizer and options that cannot work together."""

import logging
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from .config import PPOConfig

logger = logging.getLogger(__name__)


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
    policy: nn.Module, value_model: Any, ref_model: Any, reward_model: Any, peft_config: PeftConfig | None
) -> None:
    """Refuses models as the user passes them, before any is copied or given an adapter.

    Raises:
        ValueError: One model in two roles, or adapters that would not be learnt or saved.
    """
    if peft_config is not None and isinstance(policy, PeftModel):
        raise ValueError("PPOTrainer: model is a PeftModel already; pass it without peft_config, or merge its adapter.")
    if value_model is not None and value_model is reward_model:
        raise ValueError(
            "PPOTrainer: value_model is reward_model, but the critic learns while the reward must stay. Load a second "
            "copy, or leave value_model out to have it copied."
        )
    if ref_model is not None and ref_model is policy:
        raise ValueError(
            "PPOTrainer: ref_model is model, but the policy learns while the reference must stay. Load a second copy, "
            "or leave ref_model out to have it copied."
        )
    critic = "reward_model, which the critic is copied from," if value_model is None else "value_model"
    for name, model in (("model", policy), (critic, reward_model if value_model is None else value_model)):
        if getattr(model, "_hf_peft_config_loaded", False) and not isinstance(model, PeftModel):
            raise ValueError(
                f"PPOTrainer: {name} has an adapter that from_pretrained added to it (the folder is an adapter's). "
                "Merge it, or load it with PeftModel.from_pretrained(..., is_trainable=True)."
            )
    if value_model is None and isinstance(reward_model, PeftModel):
        raise ValueError(
            "PPOTrainer: reward_model is a PeftModel, of which no critic is copied. Pass value_model, or merge it."
        )


def check_models(
    policy: nn.Module,
    value_model: nn.Module,
    ref_model: nn.Module | None,
    reward_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
) -> None:
    """Refuses models that cannot work together; gives critic and reward model the tokenizer's pad token.

    Raises:
        ValueError: Lengths, vocabularies, heads, pad tokens or trainable tensors are not as they must be.
    """
    models = {"model": policy, "value_model": value_model, "ref_model": ref_model, "reward_model": reward_model}
    models = {name: model for name, model in models.items() if isinstance(model, nn.Module)}
    vocab_size = policy.config.get_text_config().vocab_size
    for name, model in models.items():
        config = model.config.get_text_config()
        _check_positions(name, config, args)
        if config.vocab_size != vocab_size:
            raise ValueError(
                f"PPOTrainer: {name} has a vocabulary of {config.vocab_size} tokens, the policy one of {vocab_size}; "
                "they read the same token ids and must agree."
            )
        if name in ("value_model", "reward_model"):
            if config.num_labels != 1:
                raise ValueError(f"PPOTrainer: {name} must have num_labels=1; got {config.num_labels}.")
            _align_pad_token(name, config, tokenizer)
        if name in ("model", "value_model") and not any(tensor.requires_grad for tensor in model.parameters()):
            raise ValueError(
                f"PPOTrainer: {name} has no trainable tensor, so it could not learn. Load an adapter with "
                "PeftModel.from_pretrained(..., is_trainable=True), or call requires_grad_(True)."
            )
    if not hasattr(value_model, "score"):
        raise ValueError(
            f"PPOTrainer: value_model needs a linear head called `score`; {type(value_model).__name__} has none."
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


def check_launch(args: PPOConfig, num_prompts: int) -> None:
    """Refuses a launch that the trainer cannot run; call it once the Trainer knows its devices.

    Raises:
        ValueError: Several GPUs in one process, or fewer prompts than one rollout needs.
    """
    if args.n_gpu > 1:
        raise ValueError(
            "PPOTrainer: several GPUs are visible to one process (nn.DataParallel), which is not supported. Start "
            "with `accelerate launch` or `torchrun`, or make one GPU visible with CUDA_VISIBLE_DEVICES."
        )
    prompts_needed = args.rollout_batch_size * args.world_size
    if num_prompts < prompts_needed:
        raise ValueError(
            "PPOTrainer: one rollout needs per_device_train_batch_size * num_rollout_batches * ranks = "
            f"{prompts_needed} prompts; the training set has {num_prompts}."
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
