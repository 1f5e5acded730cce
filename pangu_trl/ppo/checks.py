"""What PPOTrainer refuses before anything is sampled: models, tokenizer and options that cannot work together.

Of data it is `data_checks`.
"""

from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from pangu_trl.models.adapter_kinds import check_adapter_method, check_adapter_of_ppo, check_adapter_state
from pangu_trl.models.modes import check_generation_settings, position_limit
from pangu_trl.models.reward_model import check_score_of_text
from pangu_trl.models.score_head import first_position, innermost
from pangu_trl.models.vocabulary import check_vocabulary, plain_token_ids

from .actor_critic.policy_reading import wrong_reading
from .actor_critic.policy_value import PolicyAndValue
from .actor_critic.quantised import check_quantised
from .config import PPOConfig
from .reward_sources import AdapterReward, ModelReward, RewardSource, StepReward, TextModelReward


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
    """Refuses a tokenizer without an end of sequence, with which no answer could end.

    Raises:
        ValueError: The message says what to set.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "PPOTrainer: the tokenizer must have an eos_token, which ends every answer; it has none. Set it to the "
            "token that the policy ends its answers with, e.g. tokenizer.eos_token = '</s>'."
        )


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
    share_backbone = args.share_backbone
    passed = [("model", policy), ("value_model", value_model), ("ref_model", ref_model)]
    passed += [("reward_model", reward.model) for reward in rewards if isinstance(reward, ModelReward)]
    for name, model in passed:
        if model is not None and not isinstance(model, PreTrainedModel | PeftModel):
            raise ValueError(
                f"PPOTrainer: {name} must be a model of transformers or PEFT; got {type(model).__name__}. Load it with "
                "from_pretrained; other code that scores answers can be a function, as reward_model."
            )
    _check_ensemble(rewards, args)
    if peft_config is not None and isinstance(policy, PeftModel):
        raise ValueError("PPOTrainer: model is a PeftModel already; pass it without peft_config, or merge its adapter.")
    if value_model is not None and not args.has_critic:
        raise ValueError(
            f"PPOTrainer: value_model has no effect with advantage_estimator={args.advantage_estimator!r}, which has "
            "no critic; leave it out."
        )
    if share_backbone != "none" and value_model is not None:
        raise ValueError(
            f"PPOTrainer: share_backbone={share_backbone!r} makes the critic from the policy's backbone; leave "
            "value_model out, or set share_backbone='none'."
        )
    if share_backbone == "all" and ref_model is not None:
        raise ValueError(
            "PPOTrainer: share_backbone='all' keeps one backbone for policy, critic, reward and reference, so that the "
            "reference is the policy as it starts and ref_model has no place. Leave ref_model out, or set "
            "share_backbone='value' or 'none', which take one."
        )
    for reward in rewards:
        if value_model is not None and value_model is getattr(reward, "model", None):
            raise ValueError(
                "PPOTrainer: value_model is reward_model, but the critic learns while the reward must stay. Load a "
                "second copy, or leave value_model out to have it copied."
            )
        if isinstance(reward, AdapterReward) and share_backbone != "all":
            raise ValueError(
                f"PPOTrainer: reward_model {str(reward.adapter)!r} is a path. Load the model, or set "
                "share_backbone='all' if it is the folder of a LoRA adapter of the policy's base model."
            )
    if ref_model is not None and ref_model is policy:
        raise ValueError(
            "PPOTrainer: ref_model is model, but the policy learns while the reference must stay. Load a second copy, "
            "or leave ref_model out to have it copied."
        )
    copies_critic = value_model is None and share_backbone == "none" and args.has_critic
    check_quantised(policy, value_model, rewards, peft_config, copies_critic)
    _check_adapters(policy, value_model, rewards, peft_config, copies_critic)


def _check_ensemble(rewards: list[RewardSource], args: PPOConfig) -> None:
    if args.reward_combination == "sum":
        return
    if len(rewards) < 2 or any(isinstance(reward, StepReward) for reward in rewards):
        raise ValueError(
            f"PPOTrainer: reward_combination={args.reward_combination!r} needs two or more rewards that give one score "
            f"an answer; got {', '.join(reward.name for reward in rewards)}."
        )


def _check_adapters(
    policy: nn.Module,
    value_model: Any,
    rewards: list[RewardSource],
    peft_config: PeftConfig | None,
    copies_critic: bool,
) -> None:
    """Refuses adapters that would not be learnt or saved, in the models that are passed and the one that is copied."""
    copied = None
    if copies_critic:
        copied = next((reward.model for reward in rewards if isinstance(reward, ModelReward)), None)
    critic = "value_model" if copied is None else "reward_model, which the critic is copied from,"
    learning = (("model", policy), (critic, value_model if copied is None else copied))
    if peft_config is not None:
        check_adapter_method("PPOTrainer: peft_config", peft_config)
        check_adapter_of_ppo("PPOTrainer: peft_config", peft_config)
    for name, model in learning:
        if isinstance(model, PeftModel):
            check_adapter_state(f"PPOTrainer: {name}", model)
            check_adapter_method(f"PPOTrainer: {name}", model.active_peft_config)
            check_adapter_of_ppo(f"PPOTrainer: {name}", model.active_peft_config)
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
    models: PolicyAndValue,
    ref_model: nn.Module | None,
    rewards: list[RewardSource],
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
) -> None:
    """Refuses models that cannot work together.

    Args:
        models: Policy and critic.
        ref_model: The reference or None.
        rewards: Parts of the reward.
        tokenizer: The policy's.
        args: Options.

    Raises:
        ValueError: Lengths, vocabularies, heads, pad tokens or trainable tensors are not as they must be.
    """
    if models.policy.config.is_encoder_decoder:
        name = type(innermost(models.policy)).__name__
        raise ValueError(
            f"PPOTrainer: model is a {name}, an encoder with a decoder; a policy must be a causal language model, "
            "which reads prompt and answer as one text."
        )
    check_generation_settings(models.policy)
    value_model = getattr(models, "value_model", None)
    readers = [("model", models.policy), ("value_model", value_model), ("ref_model", ref_model)]
    readers += [("reward_model", reward.model) for reward in rewards if type(reward) is ModelReward]
    for name, model in readers:
        if model is not None:
            _check_reads_as_policy(name, model, tokenizer, args)
    _check_policy_reads(models.policy, tokenizer)
    for reward in rewards:
        if isinstance(reward, TextModelReward):
            check_vocabulary(reward.model, reward.tokenizer, "PPOTrainer: reward_model")
            _check_reward_tokenizer(reward.tokenizer)
    for name, model in (("model", models.policy), ("value_model", value_model)):
        if model is not None and not any(tensor.requires_grad for tensor in model.parameters()):
            raise ValueError(
                f"PPOTrainer: {name} has no trainable tensor, so it could not learn. Load an adapter with "
                "PeftModel.from_pretrained(..., is_trainable=True), or call requires_grad_(True)."
            )
    for name, model, its_tokenizer in scoring_models(models, rewards, tokenizer):
        _check_scores(name, model, its_tokenizer)
    if value_model is not None and not hasattr(value_model, "score"):
        raise ValueError(
            f"PPOTrainer: value_model needs a linear head called `score`; {type(value_model).__name__} has none."
        )
    if args.reward_scaling == "stored":
        config = getattr(getattr(rewards[0], "model", None), "config", None)
        if len(rewards) > 1 or not getattr(config, "reward_std", None) or not hasattr(config, "reward_mean"):
            raise ValueError(
                "PPOTrainer: reward_scaling='stored' needs one reward model whose config.json has reward_mean and "
                "reward_std (not 0). Add them, or use reward_scaling='running'."
            )


def _check_reward_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a reward model's own tokenizer that lacks what every answer needs."""
    if tokenizer.eos_token_id is None:
        likely = tokenizer.sep_token or "</s>"
        raise ValueError(
            "PPOTrainer: reward_processing_class must have an eos_token, which ends every answer; it has none. Set it "
            f"to the token that answers ended with where the reward model was trained, e.g. eos_token = {likely!r}."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "PPOTrainer: reward_processing_class must have a pad_token; it has none. Set it, e.g. to its eos_token."
        )


def scoring_models(
    models: PolicyAndValue, rewards: list[RewardSource], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, Any, PreTrainedTokenizerBase]]:
    """Names, models and tokenizers of the sequence classification models, which look for pad tokens."""
    value_model = getattr(models, "value_model", None)
    scoring = [] if value_model is None else [("value_model", value_model, tokenizer)]
    for reward in rewards:
        if isinstance(reward, ModelReward):
            scoring.append(("reward_model", reward.model, getattr(reward, "tokenizer", tokenizer)))
    return scoring


def _check_policy_reads(policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a policy whose log-probabilities hang on what they must not, or that samples at other positions."""
    name = type(innermost(policy)).__name__
    if first_position(policy):
        raise ValueError(
            f"PPOTrainer: model is a {name}, which counts positions from {first_position(policy)}, and `generate` of "
            "transformers from 0, so that answers would come from another distribution than the one that is learnt. "
            "Take another model as the policy."
        )
    text = plain_token_ids(tokenizer, 5)
    seen = wrong_reading(policy, text, tokenizer.pad_token_id) if len(text) == 5 else None
    if seen is not None:
        raise ValueError(
            f"PPOTrainer: model is a {name}, whose log-probabilities of a text hang on "
            f"{seen}. A policy must read what stands before a token, and of that only the text. Take a causal language "
            "model that heeds attention_mask (of an encoder, is_decoder may make one)."
        )


def _check_reads_as_policy(name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> None:
    """Refuses a model that cannot read the policy's tokens, or not as many."""
    length, positions = args.max_prompt_length + args.max_completion_length, position_limit(model)
    if positions is not None and length > positions:
        raise ValueError(
            f"PPOTrainer: max_prompt_length ({args.max_prompt_length}) + max_completion_length "
            f"({args.max_completion_length}) = {length} is more than the {positions} positions of {name}. Lower one of "
            "the two."
        )
    try:
        check_vocabulary(model, tokenizer, f"PPOTrainer: {name}")
    except ValueError as error:
        if name == "model":
            raise
        raise ValueError(
            f"{error} A reward model with another tokenizer than the policy's needs that as reward_processing_class."
        ) from error


def _check_scores(name: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a model that gives no single score, or looks for another pad token than its tokenizer writes."""
    # A model of text and images has its head by the outer configuration, and its tokens by the inner one.
    config, num_labels = model.config.get_text_config(), model.config.num_labels
    if num_labels != 1:
        raise ValueError(
            f"PPOTrainer: {name} must have num_labels=1; got {num_labels}. Load a reward model "
            "with several attributes with pangu_trl.models.reward_model.load_reward_model, which sums them up."
        )
    if config.pad_token_id not in (None, tokenizer.pad_token_id):
        raise ValueError(
            f"PPOTrainer: {name}.config.pad_token_id is {config.pad_token_id}, the tokenizer pads with "
            f"{tokenizer.pad_token_id} ({tokenizer.pad_token!r}). Keep the pad token that the tokenizer came with, or "
            f"set {name}.config.pad_token_id = tokenizer.pad_token_id."
        )
    check_score_of_text(f"PPOTrainer: {name}", model, tokenizer.pad_token_id)


def check_launch(args: PPOConfig, num_prompts: int | None, is_deepspeed_enabled: bool) -> None:
    """Refuses a launch that the trainer cannot run; call it once the Trainer knows its devices.

    The number of prompts is None for a stream.

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
    if num_prompts is not None and num_prompts < prompts_needed:
        raise ValueError(
            "PPOTrainer: one rollout needs per_device_train_batch_size * num_rollout_batches / num_generations * ranks "
            f"= {prompts_needed} prompts; the training set has {num_prompts}. Give it more, or lower one "
            "of the first two."
        )


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
