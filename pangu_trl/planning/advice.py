"""What to change in a run that does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

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
        options: New values of options.
        launch: New values of the launch.
    """

    subject: str
    words: str
    options: dict[str, Any] = field(default_factory=dict)
    launch: dict[str, Any] = field(default_factory=dict)

    def applied_to(self, plan: Plan) -> Plan:
        """The run with the change."""
        if self.options:
            plan = plan.with_options(**self.options)
        return plan.under(replace(plan.launch, **self.launch)) if self.launch else plan


def changes_to_fit(plan: Plan, device_memory: int) -> tuple[list[str], Plan]:
    """Makes one change after another, the cheapest first, until the run fits.

    Changes that save nothing are left out, and so are those that later ones make needless.

    Returns:
        The changes in words, and the plan with all of them, which may still not fit.
    """
    made: dict[str, Change] = {}
    found = plan
    while not fits(found, device_memory):
        change = next((change for change in _candidates(found) if change.applied_to(found).peak() < found.peak()), None)
        if change is None:
            break
        made[change.subject], found = change, change.applied_to(found)
    for subject in list(made):
        others = [change for change in made.values() if change.subject != subject]
        without = reduce(lambda changed, change: change.applied_to(changed), others, plan)
        if fits(without, device_memory):
            del made[subject]
            found = without
    return [change.words for change in made.values()], found


def _candidates(plan: Plan) -> Iterator[Change]:
    settings, launch = plan.settings, plan.launch
    if not settings.checkpoints_activations:
        yield _options(activation_checkpointing=True)
    for name in _more_sharded(launch):
        yield _configuration(name)
    if settings["use_peft"] and settings["dtype"] == "float32" and not launch.uses_deepspeed and not launch.on_cpu:
        yield _options("for the weights under the adapter", dtype="bfloat16")
    if settings.get("merge_lora_for_generation"):
        yield _options("slower", merge_lora_for_generation=False)
    if settings.stage == "ppo" and plan.answers_at_once > 1:
        yield _options(generation_batch_size=plan.answers_at_once // 2)
    batch, accumulation = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    if batch > 1:
        smaller = {"per_device_train_batch_size": batch // 2, "gradient_accumulation_steps": accumulation * 2}
        if settings.stage == "ppo":
            smaller["num_rollout_batches"] = settings["num_rollout_batches"] * 2
        yield _options(**smaller)
    if not settings["use_peft"]:
        yield _options("LoRA, at a learning rate for adapters", use_peft=True)
    if settings["use_peft"] and settings.get("share_backbone") == "none":
        yield _options("with a reward adapter of the same base model", share_backbone="all")
    if not launch.offload_weights:
        yield _configuration("zero3_offload", sharding="zero3", offload_optimizer=True, offload_weights=True)
    if launch.num_devices < MOST_DEVICES:
        sharding, count = "zero3" if launch.sharding == "none" else launch.sharding, 2 * launch.num_devices
        more = {"num_devices": count, "sharding": sharding}
        yield Change("devices", f"{sharding} on {count} devices", launch=more)


def _options(remark: str = "", **options: Any) -> Change:
    # As a recipe has them.
    words = ", ".join(f"{name}: {str(value).lower()}" for name, value in options.items())
    return Change(next(iter(options)), f"{words} ({remark})" if remark else words, options=options)


def _configuration(name: str, **changes: Any) -> Change:
    return Change("configuration", f"accelerate_configs/{name}.yaml", launch={"sharding": name} | changes)


def _more_sharded(launch: Launch) -> tuple[str, ...]:
    if launch.num_devices == 1:
        return ()
    return {"ddp": ("zero2", "zero3"), "zero1": ("zero2", "zero3"), "zero2": ("zero3",)}.get(launch.sharding, ())
