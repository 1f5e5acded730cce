"""What options of PPOConfig cannot be, alone and together: refused by name before anything is loaded."""

from dataclasses import fields
from typing import Any

from pangu_trl.data.records import is_finite_number

from .estimator_options import ESTIMATORS_OF_GROUPS
from .generation_options import OF_VLLM

# Options that say how another one works, that one, and its value that has no use for them.
NEEDS = {
    "vllm_importance_sampling_mode": ("vllm_importance_sampling_correction", False),
    "vllm_importance_sampling_clip_max": ("vllm_importance_sampling_correction", False),
    "vllm_importance_sampling_clip_min": ("vllm_importance_sampling_correction", False),
    "overlong_penalty": ("overlong_buffer_length", 0),
    "critic_warmup_lam": ("critic_warmup_steps", 0),
}
# Options of words; each says in its own field which there are.
CHOICES = (
    "advantage_estimator",
    "rollout_engine",
    "vllm_mode",
    "vllm_model_impl",
    "scale_rewards",
    "share_backbone",
    "kl_estimator",
    "judge_form",
    "reward_scaling",
    "reward_combination",
    "loss_aggregation",
    "vllm_importance_sampling_mode",
)


def check_options(config: Any) -> None:
    """Refuses a PPOConfig that cannot work, or that sets an option which would have no effect.

    Raises:
        ValueError: Naming the options, what they must be and what they are.
    """
    _check_ranges(config)
    _check_effects(config)
    _check_rollouts(config)
    _check_policy_loss(config)
    _check_estimator(config)


def _check_ranges(config: Any) -> None:
    for name in ("num_rollout_batches", "num_ppo_epochs", "kl_horizon"):
        check(config, getattr(config, name) >= 1, name, "1 or more")
    check(config, config.ema_decay is None or 0 < config.ema_decay < 1, "ema_decay", "between 0 and 1")
    weights = config.reward_weights
    is_numbers = isinstance(weights, list) and weights and all(map(is_finite_number, weights))
    check(config, weights is None or is_numbers, "reward_weights", "a list of numbers, one for each reward")
    for option in fields(config):
        if option.name in CHOICES:
            choices = option.metadata["choices"]
            check(config, getattr(config, option.name) in choices, option.name, f"one of {', '.join(choices)}")


def _check_effects(config: Any) -> None:
    defaults = {option.name: option.default for option in fields(config)}
    for name, (switch, off) in NEEDS.items():
        if getattr(config, name) != defaults[name] and getattr(config, switch) == off:
            raise ValueError(
                f"PPOConfig: {name} has no effect without {switch}; set that, or leave {name} out. Got "
                f"{getattr(config, name)!r}."
            )
    needed = [("vllm_mode", "rollout_engine", "vllm")]
    for mode, names in OF_VLLM.items():
        needed += [(name, "rollout_engine", "vllm") for name in names] + [(name, "vllm_mode", mode) for name in names]
    for name, switch, value in needed:
        if getattr(config, name) != defaults[name] and getattr(config, switch) != value:
            raise ValueError(
                f"PPOConfig: {name} has no effect with {switch}={getattr(config, switch)!r}; set {switch}={value!r}, "
                f"or leave {name} out. Got {getattr(config, name)!r}."
            )
    if config.adaptive_kl_target is not None and not config.has_kl_penalty:
        raise ValueError(
            "PPOConfig: adaptive_kl_target multiplies kl_coef, which would stay 0; set kl_coef to where it is to start."
        )
    if config.reward_std_coef != 1.0 and config.reward_combination != "mean_minus_std":
        raise ValueError(
            f"PPOConfig: reward_std_coef has no effect with reward_combination={config.reward_combination!r}; leave it "
            f"out. Got {config.reward_std_coef!r}."
        )
    if config.reward_weights is not None and config.reward_combination != "sum":
        raise ValueError(
            f"PPOConfig: reward_weights have no effect with reward_combination={config.reward_combination!r}, whose "
            f"rewards count alike; leave them out. Got {config.reward_weights!r}."
        )


def _check_rollouts(config: Any) -> None:
    if config.num_rollout_batches % config.gradient_accumulation_steps != 0:
        raise ValueError(
            "PPOConfig: num_rollout_batches must be a multiple of gradient_accumulation_steps, so that every pass "
            f"over a rollout is a whole number of optimiser steps; got num_rollout_batches="
            f"{config.num_rollout_batches}, gradient_accumulation_steps={config.gradient_accumulation_steps}."
        )
    if config.rollout_batch_size % config.num_generations != 0:
        raise ValueError(
            "PPOConfig: per_device_train_batch_size * num_rollout_batches, the answers of a rollout on a device, "
            f"must be a multiple of num_generations; got {config.rollout_batch_size} and {config.num_generations}."
        )


def _check_policy_loss(config: Any) -> None:
    high = config.cliprange if config.cliprange_high is None else config.cliprange_high
    check(
        config,
        config.delta is None or config.delta > 1 + high,
        "delta",
        f"above 1 + cliprange_high = {1 + high:g}, up to where the plain clip holds",
    )
    check(
        config,
        config.overlong_buffer_length <= config.max_completion_length,
        "overlong_buffer_length",
        f"at most max_completion_length = {config.max_completion_length}",
    )
    lowest, highest = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
    # A ratio of 1 needs no correction, and is to pass unchanged.
    check(config, lowest is None or lowest <= 1, "vllm_importance_sampling_clip_min", "1 or less")
    check(config, highest is None or highest >= 1, "vllm_importance_sampling_clip_max", "1 or more")


def _check_estimator(config: Any) -> None:
    """Refuses options that the estimator does not look at, and groups of one."""
    estimator, defaults = config.advantage_estimator, {option.name: option.default for option in fields(config)}
    has_groups = estimator in ESTIMATORS_OF_GROUPS
    unused = ("gamma", "whiten_rewards") if has_groups else ()
    if not has_groups:
        unused += ("dynamic_sampling_rounds",)
    if estimator != "grpo":
        unused += ("scale_rewards",)
    for name in unused:
        if getattr(config, name) != defaults[name]:
            raise ValueError(
                f"PPOConfig: {name} has no effect with advantage_estimator={estimator!r}; leave it out. Got "
                f"{getattr(config, name)!r}."
            )
    if not config.has_critic and config.share_backbone == "value":
        raise ValueError(
            f"PPOConfig: share_backbone='value' makes a critic, and advantage_estimator={estimator!r} has none; set "
            "share_backbone='none'."
        )
    check(config, not has_groups or config.num_generations >= 2, "num_generations", f"2 or more with {estimator!r}")


def check(config: Any, fits: bool, name: str, what: str) -> None:
    """Refuses an option that does not fit.

    Raises:
        ValueError: Naming option, what it must be, and its value.
    """
    if not fits:
        raise ValueError(f"PPOConfig: {name} must be {what}; got {getattr(config, name)!r}.")
