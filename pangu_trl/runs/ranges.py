"""Numbers that an option cannot have, whichever trainer it belongs to: refused by name before anything is loaded."""

import math
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

AT_LEAST_ONE = (
    "dataloader_prefetch_factor",
    "dataset_num_proc",
    "eval_accumulation_steps",
    "gradient_accumulation_steps",
    "lora_r",
    "max_completion_length",
    "max_length",
    "max_prompt_length",
    "num_generations",
    "num_iterations",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",
    "steps_per_generation",
    "vllm_tensor_parallel_size",
)
NOT_NEGATIVE = (
    "beta",
    "center_rewards_coefficient",
    "critic_learning_rate",
    "critic_warmup_steps",
    "critic_weight_decay",
    "data_seed",
    "dataloader_num_workers",
    "delta",
    "dynamic_sampling_rounds",
    "entropy_coef",
    "epsilon",
    "epsilon_high",
    "eval_delay",
    "kl_coef",
    "learning_rate",
    "lm_coefficient",
    "lora_alpha",
    "max_grad_norm",
    "min_completion_length",
    "missing_eos_penalty",
    "neftune_noise_alpha",
    "overlong_buffer_length",
    "overlong_penalty",
    "ptx_coef",
    "ref_model_sync_steps",
    "repetition_penalty",
    "reward_std_coef",
    "rpo_alpha",
    "seed",
    "short_completion_penalty",
    "sft_alpha",
    "sum_to_zero_coefficient",
    "top_k",
    "vf_coef",
    "vllm_importance_sampling_clip_min",
    "vllm_server_timeout",
    "warmup_steps",
    "weight_decay",
)
POSITIVE = (
    "adaptive_lam_alpha",
    "adam_epsilon",
    "adaptive_kl_target",
    "cliprange",
    "cliprange_high",
    "cliprange_value",
    "ddp_timeout",
    "eval_steps",
    "logging_steps",
    "reward_clip",
    "save_steps",
    "target_kl",
    "temperature",
    "top_p",
    "vllm_gpu_memory_utilization",
)
UP_TO_ONE = (
    "adam_beta1",
    "adam_beta2",
    "critic_lam",
    "critic_warmup_lam",
    "gamma",
    "label_smoothing",
    "label_smoothing_factor",
    "lam",
    "lora_dropout",
    "min_p",
    "top_entropy_quantile",
    "top_p",
    "vllm_gpu_memory_utilization",
    "warmup_ratio",
)


def check_numbers(config: Any) -> None:
    """Refuses options of a configuration that are no numbers, infinite, or outside of their range.

    Also whole numbers that are not whole, and switches that are words: any word counts as true.

    Args:
        config: An instance of any dataclass of options; a field that is None is left at its default.

    Raises:
        ValueError: Naming the first such option, its range and its value.
    """
    _check_types(config)
    names = {field.name: field.default for field in fields(config)}
    _check(config, names, AT_LEAST_ONE, "1 or more", lambda value: value >= 1)
    _check(config, names, NOT_NEGATIVE, "0 or more", lambda value: value >= 0)
    _check(config, names, POSITIVE, "greater than 0", lambda value: value > 0)
    _check(config, names, UP_TO_ONE, "between 0 and 1", lambda value: 0 <= value <= 1)
    # transformers takes any other number of steps below 1 as if it were unset, and trains no step in -1 epochs.
    _check(
        config, names, ["max_steps"], "1 or more, or -1 for num_train_epochs", lambda value: value >= 1 or value == -1
    )
    if "num_train_epochs" in names and not getattr(config, "max_steps", -1) >= 1:
        _check(config, names, ["num_train_epochs"], "greater than 0", lambda value: value > 0)
    # What has no range of its own, or is infinite.
    for name, default in names.items():
        value = getattr(config, name, None)
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not math.isfinite(number) and number != default:
                raise _out_of_range(config, name, "a finite number")


def _check_types(config: Any) -> None:
    """Of the options that are nothing but numbers or switches."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        types = set(get_args(hints[field.name]) or [hints[field.name]])
        may_be_none = type(None) in types
        types.discard(type(None))
        value = getattr(config, field.name)
        if not types or types - {bool, int, float} or value == _default(field) or (value is None and may_be_none):
            continue
        if types == {bool}:
            fits, what = isinstance(value, bool), "true or false"
        else:
            fits = isinstance(value, Real if float in types else Integral) and isinstance(value, bool) <= (
                bool in types
            )
            what = "a number" if float in types else "a whole number"
        if not fits:
            raise _out_of_range(config, field.name, what)


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _check(config: Any, names: Iterable[str], checked: Iterable[str], what: str, fits: Any) -> None:
    for name in checked:
        value = getattr(config, name, None) if name in names else None
        if isinstance(value, int | float) and not isinstance(value, bool) and not fits(value):
            raise _out_of_range(config, name, what)


def _out_of_range(config: Any, name: str, what: str) -> ValueError:
    return ValueError(f"{type(config).__name__}: {name} must be {what}; got {getattr(config, name)!r}.")
