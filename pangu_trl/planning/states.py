"""Bytes of weights, gradients and optimiser states on one device, by how they are shared."""

from collections.abc import Iterator
from dataclasses import dataclass

from .launch import Launch
from .models import ModelShape
from .settings import Settings

# DeepSpeed's defaults, in elements: the bucket that gradients are collected in, and what ZeRO-3 keeps of the weights
# that it has fetched (stage3_max_live_parameters).
REDUCE_BUCKET = 500_000_000
LIVE_PARAMETERS = 1_000_000_000

# When an item is there: `backward` is the start of the backward pass, when all activations are there, and `step` its
# end, when all gradients are.
ALWAYS, BACKWARD, STEP, GENERATION, SAVING = "always", "backward", "step", "generation", "saving"


@dataclass(frozen=True)
class Item:
    """One line of a plan.

    Attributes:
        name: What takes the memory.
        num_bytes: How much, on one device or for one process on the host.
        phase: When: always, backward, step, generation or saving.
        on_host: Whether in the memory of the host rather than of the device.
    """

    name: str
    num_bytes: int
    phase: str = ALWAYS
    on_host: bool = False


@dataclass(frozen=True)
class Precision:
    """Bytes of an element.

    Attributes:
        weights: Of the weights as the device holds them.
        compute: Of activations.
        residual: Of the residual stream, which autocast leaves in float32.
        has_masters: Whether the optimiser keeps weights of its own, in float32.
    """

    weights: int
    compute: int
    residual: int
    has_masters: bool

    def of_trained(self, shape: ModelShape) -> int:
        """Bytes of a weight that learns, and of its gradient: PEFT has adapters in float32 over weights of any kind."""
        is_adapter = shape.num_frozen > 0
        return 4 if is_adapter and not self.has_masters else self.weights


def precision_of(settings: Settings, launch: Launch) -> Precision:
    """Which precision the options of recipe and launcher come to.

    Raises:
        ValueError: They contradict each other.
    """
    in_options = settings["bf16"]
    if launch.uses_deepspeed and launch.bf16 and in_options is False:
        raise ValueError(
            "bf16 is off in the recipe and on in the accelerate configuration, with which the Trainer does not start "
            "under DeepSpeed; set bf16: true in the recipe"
        )
    # TRL trains in bfloat16 where its recipe says nothing, except on CPU.
    by_default = in_options is None and not launch.on_cpu
    bf16 = launch.bf16 or bool(in_options) or by_default
    stored = settings.loaded_size
    if launch.uses_deepspeed:
        size = 2 if bf16 else 4
        return Precision(size, size, size, has_masters=True)
    return Precision(stored, 2 if bf16 else stored, stored, has_masters=False)


def optimizer_bytes(settings: Settings, launch: Launch, weights: int) -> int:
    """Bytes of the optimiser's states for each weight."""
    name = str(settings.get("optim"))
    if "8bit" in name:
        return 2
    moments = {"sgd": 0, "adafactor": 0}.get(name, 2)
    return moments * (4 if launch.uses_deepspeed else weights)


def trained_model(
    name: str, shape: ModelShape, settings: Settings, launch: Launch, precision: Precision
) -> Iterator[Item]:
    """States of a model that learns; frozen weights of a LoRA model included."""
    shards = launch.num_devices
    trainable, size = shape.num_trainable, precision.of_trained(shape)
    weights_shared_by = shards if launch.shards_weights else 1
    frozen = shape.num_frozen * precision.weights
    if settings.is_quantised and shape.num_frozen:
        if launch.shards_weights:
            raise ValueError(
                "load_in_4bit and load_in_8bit cannot be sharded by ZeRO-3 and FSDP2; plan with single_gpu.yaml, "
                "ddp.yaml, zero1.yaml or zero2.yaml"
            )
        kept = shape.num_frozen - shape.num_quantisable
        frozen = int(kept * precision.weights + shape.num_quantisable * settings.quantised_size)
        # The layer that computes has its weights as numbers in the backward pass.
        yield Item(f"{name}: one layer's weights as numbers", shape.largest_matrix * precision.compute, BACKWARD)
    weights = frozen + trainable * size
    yield Item(f"{name}: weights", weights // weights_shared_by, on_host=launch.offload_weights)
    if precision.compute < size and not launch.shards_weights:
        # What autocast makes at every use; only of weights that learn it is kept.
        yield Item(f"{name}: bfloat16 copies", trainable * 2, BACKWARD)
    states_shared_by = shards if launch.uses_deepspeed or launch.sharding == "fsdp2" else 1
    states = trainable * optimizer_bytes(settings, launch, size) // states_shared_by
    yield Item(f"{name}: optimiser states", states, on_host=launch.offload_optimizer)
    if precision.has_masters:
        masters = trainable * 4 // shards
        yield Item(f"{name}: master weights", masters, on_host=launch.offload_optimizer)
        # The step needs the gradients of the part in float32.
        yield Item(f"{name}: float32 gradients", masters, STEP, on_host=launch.offload_optimizer)
    yield from _gradients(name, trainable, launch, size, settings["gradient_accumulation_steps"])


def _gradients(name: str, trainable: int, launch: Launch, size: int, accumulation: int) -> Iterator[Item]:
    shared_by = launch.num_devices if launch.sharding in ("zero2", "zero3", "fsdp2") else 1
    # Where they accumulate, those of the batches before are there from the start.
    yield Item(f"{name}: gradients", trainable * size // shared_by, STEP if accumulation == 1 else ALWAYS)
    if launch.sharding == "ddp" and launch.num_devices > 1:
        yield Item(f"{name}: buckets of DDP", trainable * size)
    if launch.uses_deepspeed:
        bucket = min(REDUCE_BUCKET, trainable) if launch.on_cpu else REDUCE_BUCKET
        # ZeRO-3 keeps it; the others take it for the backward pass, and a CPU gives memory only for what is written.
        phase = ALWAYS if launch.sharding == "zero3" else STEP if launch.on_cpu else BACKWARD
        yield Item(f"{name}: bucket of DeepSpeed", bucket * size, phase)


def frozen_model(name: str, shape: ModelShape, launch: Launch, precision: Precision) -> Iterator[Item]:
    """States of a model that is only asked."""
    shared_by = launch.num_devices if launch.shards_weights else 1
    yield Item(
        f"{name}: weights", shape.num_parameters * precision.weights // shared_by, on_host=launch.offload_weights
    )


def fetched_weights(shapes: list[ModelShape], launch: Launch, precision: Precision) -> Iterator[Item]:
    """What a sharded model holds of the others' parts while it computes."""
    if launch.sharding == "zero3":
        size = max(min(shape.num_parameters, LIVE_PARAMETERS) for shape in shapes) * precision.weights
        yield Item("weights fetched by ZeRO-3", size)
    elif launch.sharding == "fsdp2":
        # The block in use and the next one, whole, and the gradients of one.
        block = max(shape.largest_block for shape in shapes)
        yield Item("blocks fetched by FSDP2", block * (2 * precision.compute + precision.weights))


def saved_weights(shapes: list[ModelShape], launch: Launch, precision: Precision) -> Iterator[Item]:
    """Copies of the weights that saving makes in the memory of the host."""
    if launch.uses_deepspeed or launch.sharding == "fsdp2":
        total = sum(shape.num_parameters for shape in shapes)
        yield Item("weights on their way to disk", total * precision.weights, SAVING, on_host=True)
