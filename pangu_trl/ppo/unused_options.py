"""What the Trainer takes and PPO has no use for: refused by name, since an option without effect misleads."""

from typing import Any

from .config import PPOConfig

# Options of TrainingArguments whose value PPO would not look at, the only value that says nothing, and why.
OWN_EVALUATION = "evaluation answers prompts and has figures of its own (docs/ppo.md)"
OWN_LOSS = "the losses of PPO have no place for it"
OWN_ORDER = "a rollout takes prompts and answers in an order of its own, which resuming repeats"
UNUSED: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0.0, OWN_LOSS),
    "neftune_noise_alpha": (
        None,
        "noise on the embeddings would make it another policy than the one that sampled",
    ),
    "use_liger_kernel": (False, OWN_LOSS),
    "liger_kernel_config": (None, OWN_LOSS),
    "auto_find_batch_size": (False, "the size of a rollout hangs on per_device_train_batch_size; lower that"),
    "torch_compile": (False, "policy and critic change their widths with every mini-batch"),
    "torch_compile_backend": (None, "policy and critic change their widths with every mini-batch"),
    "torch_compile_mode": (None, "policy and critic change their widths with every mini-batch"),
    "optim_target_modules": (None, "the groups of the optimiser are those of policy and critic"),
    "average_tokens_across_devices": (True, "losses are means over the answer tokens of all devices"),
    "include_num_input_tokens_seen": ("no", "what the loop fetches are prompts, not the tokens that are learnt from"),
    "train_sampling_strategy": ("random", OWN_ORDER),
    "length_column_name": ("length", OWN_ORDER),
    "dataloader_in_order": (True, OWN_ORDER),
    "dataloader_multiprocessing_context": (None, OWN_ORDER),
    "ignore_data_skip": (False, OWN_ORDER),
    "label_names": (None, OWN_EVALUATION),
    "prediction_loss_only": (False, OWN_EVALUATION),
    "include_for_metrics": ([], OWN_EVALUATION),
    "batch_eval_metrics": (False, OWN_EVALUATION),
    "eval_do_concat_batches": (True, OWN_EVALUATION),
    "eval_use_gather_object": (False, OWN_EVALUATION),
    "eval_accumulation_steps": (None, OWN_EVALUATION),
    "bf16_full_eval": (False, OWN_EVALUATION),
    "fp16_full_eval": (False, OWN_EVALUATION),
}
# Arguments of the Trainer's constructor.
UNUSED_ARGUMENTS = {
    "model_init": "pass the policy as model",
    "compute_loss_func": OWN_LOSS,
    "compute_metrics": f"{OWN_EVALUATION}; pass a function that scores answers as reward_model or judge",
    "preprocess_logits_for_metrics": OWN_EVALUATION,
}


def check_unused(args: PPOConfig, arguments: dict[str, Any]) -> None:
    """Refuses options and arguments of the constructor that PPO would not look at.

    Args:
        args: Options.
        arguments: What PPOTrainer hands to the Trainer's constructor.

    Raises:
        ValueError: Naming the first of them and why.
    """
    for name, (default, reason) in UNUSED.items():
        # transformers fills in a list or its own default where an option is None.
        value = getattr(args, name, default)
        if value != default and value not in (None, False, []):
            raise ValueError(f"PPOTrainer: {name} has no effect here: {reason}. Leave it out; got {value!r}.")
        if default is True and value is False:
            raise ValueError(f"PPOTrainer: {name} cannot be switched off: {reason}. Leave it out.")
    for name, reason in UNUSED_ARGUMENTS.items():
        if arguments.get(name) is not None:
            raise ValueError(f"PPOTrainer: {name} has no effect here: {reason}. Leave it out.")
    optimizer = arguments.get("optimizer_cls_and_kwargs")
    if optimizer is not None and "lr" in optimizer[1]:
        raise ValueError(
            "PPOTrainer: optimizer_cls_and_kwargs must not hold 'lr', as policy and critic have learning rates of "
            f"their own; set learning_rate and critic_learning_rate. Got {optimizer[1]['lr']!r}."
        )
