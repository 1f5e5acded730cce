"""Which engine samples the answers."""

from typing import Any

from pangu_trl.models.sharding import runs_zero3

from ..config import PPOConfig


def chosen_engine(args: PPOConfig, launch: Any) -> str:
    """What `rollout_engine` comes to for a model in the training's own processes: generate or continuous.

    A vLLM server samples for the policy alone; where the reference answers, the choice is that of `auto`.

    Args:
        args: Options.
        launch: Knows whether ZeRO-3 runs: an AcceleratorState, or TrainingArguments.

    Raises:
        ValueError: `rollout_engine` is continuous, and that cannot be; the message says why.
    """
    if args.rollout_engine == "generate":
        return "generate"
    reason = _reason_against_continuous(args, launch)
    if reason is None:
        return "continuous"
    if args.rollout_engine == "continuous":
        raise ValueError(f"PPOTrainer: rollout_engine='continuous' cannot be: {reason} Or set rollout_engine='auto'.")
    return "generate"


def _reason_against_continuous(args: PPOConfig, launch: Any) -> str | None:
    if runs_zero3(launch) and not args.ds3_gather_for_generation:
        return (
            "with ds3_gather_for_generation=False ZeRO-3 gathers the weights for every token, and all ranks must ask "
            "for as many tokens as the one with the longest answer. Gather them once per rollout."
        )
    return None
