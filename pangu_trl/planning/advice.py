"""What to change in a run that does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .launch import Launch
from .memory import Plan

# Beyond that a run wants more than a longer list of machines.
MOST_DEVICES = 64


def fits(plan: Plan, device_memory: int) -> bool:
    """Whether the peak of a device is within its memory."""
    return plan.peak() <= device_memory


@dataclass(frozen=True)
class Change:
    """One change of a run.

    Attributes:
        subject: The option or part of the launch that changes; of several changes of one the last counts.
        words: What the user is told.
        plan: The run after it.
    """

    subject: str
    words: str
    plan: Plan


def changes_to_fit(plan: Plan, device_memory: int) -> tuple[list[str], Plan]:
    """Makes one change after another, the cheapest first, until the run fits.

    Changes that save nothing are left out.

    Returns:
        The changes in words, and the plan with all of them, which may still not fit.
    """
    made: dict[str, str] = {}
    while not fits(plan, device_memory):
        change = next((change for change in _candidates(plan) if change.plan.peak() < plan.peak()), None)
        if change is None:
            break
        made[change.subject], plan = change.words, change.plan
    return list(made.values()), plan


def _candidates(plan: Plan) -> Iterator[Change]:
    settings, launch = plan.settings, plan.launch
    if not settings.checkpoints_activations:
        yield _with_options(plan, activation_checkpointing=True)
    if launch.num_devices > 1:
        for name in _more_sharded(launch):
            yield _with_configuration(plan, name)
    if settings["use_peft"] and settings["dtype"] == "float32" and not launch.uses_deepspeed and not launch.on_cpu:
        yield _with_options(plan, "for the weights under the adapter", dtype="bfloat16")
    if settings.get("merge_lora_for_generation"):
        yield _with_options(plan, "slower", merge_lora_for_generation=False)
    if settings.stage == "ppo" and plan.answers_at_once > 1:
        yield _with_options(plan, generation_batch_size=plan.answers_at_once // 2)
    batch, accumulation = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    if batch > 1:
        smaller = {"per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": accumulation * 2}
        if settings.stage == "ppo":
            smaller["num_rollout_batches"] = settings["num_rollout_batches"] * 2
        yield _with_options(plan, **smaller)
    if not settings["use_peft"]:
        yield _with_options(plan, "LoRA, at a learning rate for adapters", use_peft=True)
    if settings["use_peft"] and settings.get("share_backbone") == "none":
        yield _with_options(plan, "with a reward adapter of the same base model", share_backbone="all")
    if not launch.offload_weights:
        yield _with_configuration(plan, "zero3_offload", sharding="zero3", offload_optimizer=True, offload_weights=True)
    if launch.num_devices < MOST_DEVICES:
        sharding = "zero3" if launch.sharding == "none" else launch.sharding
        count = 2 * launch.num_devices
        more = plan.under(replace(launch, num_devices=count, sharding=sharding))
        yield Change("devices", f"{sharding} on {count} devices", more)


def _with_options(plan: Plan, remark: str = "", **options: object) -> Change:
    # As a recipe has them.
    words = ", ".join(f"{name}: {str(value).lower()}" for name, value in options.items())
    return Change(next(iter(options)), f"{words} ({remark})" if remark else words, plan.with_options(**options))


def _with_configuration(plan: Plan, name: str, **changes: object) -> Change:
    launch = replace(plan.launch, **{"sharding": name} | changes)
    return Change("configuration", f"accelerate_configs/{name}.yaml", plan.under(launch))


def _more_sharded(launch: Launch) -> tuple[str, ...]:
    return {"ddp": ("zero2", "zero3"), "zero1": ("zero2", "zero3"), "zero2": ("zero3",)}.get(launch.sharding, ())
