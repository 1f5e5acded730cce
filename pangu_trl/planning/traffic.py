"""Bytes that each rank sends, by what is shared.

A ring sends (N - 1) / N of a tensor in an all-gather or a reduce-scatter of N ranks, twice that in an all-reduce.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .memory import Plan
from .models import ModelShape
from .states import LIVE_PARAMETERS


@dataclass(frozen=True)
class Transfer:
    """One kind of collective of an optimiser step.

    Attributes:
        name: What is sent.
        collective: all-reduce, all-gather or reduce-scatter.
        num_bytes: Size of the whole tensors, which does not depend on the number of ranks.
    """

    name: str
    collective: str
    num_bytes: int

    def sent_by_each(self, num_ranks: int) -> int:
        """Bytes that leave each rank."""
        rounds = 2 if self.collective == "all-reduce" else 1
        return rounds * self.num_bytes * (num_ranks - 1) // num_ranks


def step_transfers(plan: Plan) -> list[Transfer]:
    """What the ranks send in one optimiser step, everything of a rollout divided by the steps that learn from it."""
    if plan.launch.num_devices == 1:
        return []
    accumulation = plan.settings["gradient_accumulation_steps"]
    transfers = [
        transfer for name, shape in plan.trained.items() for transfer in _learning(name, shape, plan, accumulation)
    ]
    if plan.launch.shards_weights:
        asking = {"ppo": _rollout, "dpo": _reference, "grpo": _generation}.get(plan.settings.stage)
        transfers += asking(plan) if asking else []
    return transfers


def _learning(name: str, shape: ModelShape, plan: Plan, accumulation: int) -> Iterator[Transfer]:
    sharding = plan.launch.sharding
    gradients = shape.num_trainable * plan.precision.of_trained(shape)
    if sharding == "ddp":
        yield Transfer(f"{name}: gradients", "all-reduce", gradients)
        return
    if sharding in ("zero1", "zero2"):
        # DeepSpeed sums whole buckets on every rank and keeps its part; ZeRO-1 does so once per step.
        times = accumulation if sharding == "zero2" else 1
        yield Transfer(f"{name}: gradients", "all-reduce", times * gradients)
        yield Transfer(f"{name}: updated weights", "all-gather", gradients)
        return
    yield Transfer(f"{name}: weights", "all-gather", accumulation * _fetched(shape, plan))
    # FSDP2 sums gradients in the precision that it computes in; under DeepSpeed the weights have the same.
    gradients = shape.num_trainable * plan.precision.compute
    yield Transfer(f"{name}: gradients", "reduce-scatter", accumulation * gradients)


def _fetched(shape: ModelShape, plan: Plan) -> int:
    """Bytes that a forward and a backward pass fetch: the blocks twice, unless ZeRO-3 keeps them in between."""
    if plan.launch.sharding == "fsdp2":
        return (shape.num_parameters + shape.num_in_blocks) * plan.precision.compute
    kept = min(shape.num_parameters, LIVE_PARAMETERS)
    return (2 * shape.num_parameters - kept) * plan.precision.weights


def _rollout(plan: Plan) -> Iterator[Transfer]:
    """Weights that sampling and scoring fetch."""
    settings, size = plan.settings, _size_sent(plan)
    batches = settings["num_rollout_batches"]
    steps = batches * settings["num_ppo_epochs"] / settings["gradient_accumulation_steps"]
    policy = next(iter(plan.trained.values())).num_parameters
    generations = -(-batches * settings["per_device_train_batch_size"] // plan.answers_at_once)
    gathers = settings["ds3_gather_for_generation"] or settings.samples_by_vllm
    every_token = plan.launch.sharding == "zero3" and not gathers
    fetches = generations * settings["max_completion_length"] if every_token else 1
    yield Transfer("sampling: weights of the policy", "all-gather", int(fetches * policy * size / steps))
    scored = sum(shape.num_parameters for shape in (*plan.trained.values(), *plan.frozen.values()))
    yield Transfer("scoring: weights of all models", "all-gather", int(batches * scored * size / steps))


def _reference(plan: Plan) -> Iterator[Transfer]:
    """Weights that DPO's reference fetches: a model of its own, or the policy without its adapter."""
    if plan.settings["precompute_ref_log_probs"]:
        return
    shape = plan.frozen.get("reference") or plan.trained["policy"]
    # Weights that do not change stay where ZeRO-3 keeps any.
    kept = min(shape.num_parameters, LIVE_PARAMETERS) if plan.launch.sharding == "zero3" else 0
    size = plan.settings["gradient_accumulation_steps"] * (shape.num_parameters - kept) * _size_sent(plan)
    yield Transfer("reference: weights", "all-gather", size)


def _generation(plan: Plan) -> Iterator[Transfer]:
    """Weights that GRPO gathers to sample."""
    learnt = plan.settings["per_device_train_batch_size"] * plan.settings["gradient_accumulation_steps"]
    fetched = num_parameters = plan.trained["policy"].num_parameters
    if plan.launch.sharding == "zero3":
        # TRL takes DeepSpeed's hooks off to sample; the new ones keep nothing in the first pass that learns.
        fetched += min(num_parameters, LIVE_PARAMETERS)
    size = fetched * _size_sent(plan) * learnt // plan.answers_at_once
    yield Transfer("sampling: weights of the policy", "all-gather", size)


def _size_sent(plan: Plan) -> int:
    """Bytes of a weight on the wire; FSDP2 casts what it fetches."""
    return plan.precision.compute if plan.launch.sharding == "fsdp2" else plan.precision.weights
