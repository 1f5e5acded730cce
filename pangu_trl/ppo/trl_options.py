"""The options of TRL 1.12's PPOConfig in terms of ours; docs/migrating-from-trl.md has the table."""

import logging
import math
from typing import Any

logger = logging.getLogger(__name__)

# TRL's own defaults where ours differ. Its single optimiser had one learning rate, and its scores were not clipped.
DEFAULTS = dict(
    learning_rate=3e-6,
    response_length=53,
    temperature=0.7,
    local_rollout_forward_batch_size=64,
    num_sample_generations=10,
)
RENAMED = {"response_length": "max_completion_length", "local_rollout_forward_batch_size": "generation_batch_size"}
# Read by TRL's example scripts or filled in by its trainer; they never steered it.
WITHOUT_EFFECT = ("sft_model_path", "reward_model_path", "dataset_num_proc")
FILLED_IN = (
    "world_size",
    "num_total_batches",
    "micro_batch_size",
    "local_batch_size",
    "batch_size",
    "local_mini_batch_size",
    "mini_batch_size",
)
UNSUPPORTED = {
    "stop_token_id": "add the id to model.generation_config.eos_token_id, whose tokens end an answer",
    "model_adapter_name": "pass the policy with the adapter that learns as its only one",
    "ref_adapter_name": "pass ref_model, or let the base model be the reference",
}


def translate_trl_options(options: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Turns fields of TRL's PPOConfig into fields of ours; what is none of TRL's passes through.

    TRL collected `per_device_train_batch_size * gradient_accumulation_steps` answers on a rank and took one optimiser
    step a pass, so that many batches make a rollout and are accumulated.

    Returns:
        Our fields, and `total_episodes`, which becomes `max_steps` only once the number of ranks is known.

    Raises:
        ValueError: A field is set that has no counterpart.
    """
    options = DEFAULTS | options
    for name in FILLED_IN:
        if options.pop(name, None) is not None:
            raise ValueError(f"PPOConfig.from_trl: {name} was computed by TRL's trainer; leave it out.")
    for name, instead in UNSUPPORTED.items():
        if options.pop(name, None) is not None:
            raise ValueError(f"PPOConfig.from_trl: {name} has no counterpart; {instead}.")
    if options.pop("num_mini_batches", 1) != 1:
        raise ValueError(
            "PPOConfig.from_trl: num_mini_batches has no counterpart; set num_rollout_batches to n times "
            "gradient_accumulation_steps for n optimiser steps a pass."
        )
    for name in WITHOUT_EFFECT:
        if options.pop(name, None) is not None:
            logger.info("PPOConfig.from_trl: %s has no effect on the trainer and is left out.", name)
    if options.pop("stop_token", "eos") is None:
        logger.warning(
            "PPOConfig.from_trl: with stop_token=None TRL let answers go on after eos; here they end with it."
        )
    translated = {RENAMED.get(name, name): value for name, value in options.items()}
    translated["log_completions"] = translated.pop("num_sample_generations") > 0
    if translated.get("advantage_estimator", "gae") == "gae":
        translated.setdefault("critic_learning_rate", translated["learning_rate"])
    translated.setdefault("reward_clip", None)
    translated.setdefault("num_rollout_batches", translated.get("gradient_accumulation_steps", 1))
    return translated, translated.pop("total_episodes", None)


def apply_episodes(config: Any, total_episodes: int | None) -> None:
    """Has a PPOConfig end after so many answers over all ranks; None leaves its steps as they are."""
    if total_episodes is not None:
        rollouts = math.ceil(total_episodes / (config.rollout_batch_size * config.world_size))
        config.max_steps = rollouts * config.mini_batches_per_rollout // config.gradient_accumulation_steps
