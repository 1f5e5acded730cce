"""What to change in a run that does not fit."""

from collections.abc import Iterator
from dataclasses import replace

from .launch import Launch
from .memory import Plan
from .settings import Settings

# Beyond that a run wants more than a longer list of machines.
MOST_DEVICES = 64


def fits(plan: Plan, device_memory: int) -> bool:
    """Whether the peak of a device is within its memory."""
    return plan.peak() <= device_memory


def changes_to_fit(plan: Plan, device_memory: int) -> tuple[list[str], Plan]:
    """Makes one change after another, the cheapest first, until the run fits.

    Changes that save nothing are left out.

    Returns:
        The changes in words, and the plan with all of them, which may still not fit.
    """
    made: dict[str, str] = {}
    while not fits(plan, device_memory):
        better = next(((words, new) for words, new in _candidates(plan) if new.peak() < plan.peak()), None)
        if better is None:
            break
        words, plan = better
        # Of one option that changed several times, the last value counts.
        made[words.split(":")[0].split()[-1]] = words
    return list(made.values()), plan


def _candidates(plan: Plan) -> Iterator[tuple[str, Plan]]:
    settings, launch = plan.settings, plan.launch

    def with_options(**options: object) -> Plan:
        return replace(plan, settings=Settings(settings.stage, settings.model, settings.options | options))

    def with_launch(**changes: object) -> Plan:
        return plan.under(replace(launch, **changes))

    if not settings.checkpoints_activations:
        yield "gradient_checkpointing: true", with_options(gradient_checkpointing=True)
    if settings["use_peft"] and settings["dtype"] == "float32" and not launch.uses_deepspeed and not launch.on_cpu:
        yield "dtype: bfloat16 for the weights under the adapter", with_options(dtype="bfloat16")
    batch, accumulation = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    if batch > 1 and settings.stage != "ppo":
        yield (
            f"per_device_train_batch_size: {batch // 2}, gradient_accumulation_steps: {accumulation * 2}",
            with_options(per_device_train_batch_size=batch // 2, gradient_accumulation_steps=accumulation * 2),
        )
    elif batch > 1:
        rollouts = settings["num_rollout_batches"]
        yield (
            f"per_device_train_batch_size: {batch // 2}, gradient_accumulation_steps: {accumulation * 2}, "
            f"num_rollout_batches: {rollouts * 2}",
            with_options(
                per_device_train_batch_size=batch // 2,
                gradient_accumulation_steps=accumulation * 2,
                num_rollout_batches=rollouts * 2,
            ),
        )
    if launch.num_devices > 1:
        yield from ((f"accelerate_configs/{name}.yaml", with_launch(sharding=name)) for name in _more_sharded(launch))
    if not settings["use_peft"]:
        yield "use_peft: true (LoRA), at a learning rate for adapters", with_options(use_peft=True)
    if settings["use_peft"] and settings.get("share_backbone") == "none":
        yield "share_backbone: all, with a reward adapter of the same base model", with_options(share_backbone="all")
    if not launch.offload_weights:
        offloaded = with_launch(sharding="zero3", offload_optimizer=True, offload_weights=True)
        yield "accelerate_configs/zero3_offload.yaml", offloaded
    if launch.num_devices < MOST_DEVICES:
        sharding = "zero3" if launch.sharding == "none" else launch.sharding
        count = 2 * launch.num_devices
        yield f"{sharding} on {count} devices", with_launch(num_devices=count, sharding=sharding)


def _more_sharded(launch: Launch) -> tuple[str, ...]:
    return {"ddp": ("zero2", "zero3"), "zero1": ("zero2", "zero3"), "zero2": ("zero3",)}.get(launch.sharding, ())
