"""Weights that are sharded over the ranks, by DeepSpeed's ZeRO-3 or PyTorch's FSDP2: asked, gathered, prepared."""

import copy
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import TrainingArguments


def runs_zero3(owner: AcceleratorState | TrainingArguments) -> bool:
    """Whether a run shards the weights of what it trains by ZeRO-3."""
    plugin = owner.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def is_sharded(part: nn.Module | nn.Parameter) -> bool:
    """Whether every rank holds another part of a weight, or of any weight of a module, as under ZeRO-3."""
    parameters = part.parameters() if isinstance(part, nn.Module) else [part]
    return any(hasattr(parameter, "ds_tensor") for parameter in parameters)


def local_part(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a weight: its shard under ZeRO-3, otherwise all of it."""
    return parameter.ds_tensor if is_sharded(parameter) else parameter.detach()


def master_part(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a weight in float32: of the copy that DeepSpeed learns on, where it keeps one.

    Steps too small for bfloat16 add up in that copy alone. All ranks call it: under ZeRO-1 and 2 it is put together.
    """
    part = local_part(parameter)
    if part.dtype == torch.float32 or "deepspeed" not in sys.modules:
        return part.float()
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

    if not is_sharded(parameter):
        master = safe_get_full_fp32_param(parameter)
        return part.float() if master is None else master
    master = safe_get_local_fp32_param(parameter)
    # The shard of the last rank may be padded, and its master not.
    padded = part.float()
    padded.flatten()[: master.numel()].copy_(master.flatten())
    return padded


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole weight; under ZeRO-3 the parameter itself is empty."""
    return parameter.ds_shape if is_sharded(parameter) else parameter.shape


def put_together(parameter: Any, part: Tensor) -> Tensor:
    """The tensor of a weight's size whose part of this rank is given; all ranks call it.

    Under ZeRO-3 the shards stand one after the other, padded.
    """
    if not is_sharded(parameter):
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)


@contextmanager
def gathered(parameters: Sequence[nn.Parameter], engine: nn.Module | None = None) -> Iterator[None]:
    """Makes weights whole on every rank inside the context, under ZeRO-3; others are whole already.

    Args:
        parameters: The weights; all ranks name the same.
        engine: Its own gathering and releasing, module by module, rests meanwhile.
    """
    if not any(is_sharded(parameter) for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        offload = _parameter_offload(engine)
        if offload is not None:
            _remove_hooks(offload)
        try:
            yield
        finally:
            if offload is not None:
                _add_hooks(offload)


def _parameter_offload(engine: nn.Module | None) -> Any:
    """What hooks ZeRO-3 into a module: a part of the optimiser, or all that an engine has in its place."""
    optimizer = getattr(engine, "optimizer", None)
    return getattr(optimizer, "parameter_offload", optimizer)


def _remove_hooks(offload: Any) -> None:
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []


def _add_hooks(offload: Any) -> None:
    # The order of modules that was recorded before has nothing to do with the passes in between.
    coordinator = offload.param_coordinator
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
    offload._register_deepspeed_module(offload.module)


@contextmanager
def whole_weights(root: nn.Module, part: nn.Module) -> Iterator[None]:
    """Gathers the weights of a part of an FSDP2 module once and keeps them whole until the context ends.

    `generate` goes past the module that holds embeddings and head, whose hooks would gather those, and would gather
    every block anew for every token. Without collectives in between, ranks may also end at different lengths.

    Args:
        root: The module that was sharded as a whole; every rank enters with it. Any other module stays as it is.
        part: The module inside that is to run. What `root` holds outside of sharded blocks becomes whole too.
    """
    modules = []
    if isinstance(root, FSDPModule):
        modules = [
            root,
            *(module for module in part.modules() if isinstance(module, FSDPModule) and module is not root),
        ]
        _initialize(root)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            # The root keeps its weights from forward to backward, as FSDP2 itself decides.
            module.set_reshard_after_forward(module is not root, recurse=False)
            module.reshard()


def _initialize(root: FSDPModule) -> None:
    """Has FSDP2 find out which module is the root, which the first forward pass decides, ours being of a part."""
    root.pass_nothing = types.MethodType(lambda self: None, root)
    register_fsdp_forward_method(root, "pass_nothing")
    root.pass_nothing()
    del root.pass_nothing


def prepare_frozen(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Readies a model that does not learn: sharded by DeepSpeed or FSDP2, otherwise placed on the device."""
    model.eval().requires_grad_(False)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return _frozen_engine(model, accelerator.state.deepspeed_plugin.deepspeed_config)
    if accelerator.distributed_type == DistributedType.FSDP:
        return _frozen_shards(model, accelerator)
    return accelerator.prepare_model(model, evaluation_mode=True)


def _frozen_engine(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """An engine without optimiser: sharded as what trains under ZeRO-3, and whole below."""
    import deepspeed

    config = copy.deepcopy(config)
    for training_only in ("optimizer", "scheduler"):
        config.pop(training_only, None)
    zero = config["zero_optimization"]
    zero.pop("offload_optimizer", None)
    if zero["stage"] == 3:
        width = model.config.get_text_config().hidden_size
        # As the Trainer fills in what a configuration leaves to it. What is not there keeps DeepSpeed's default, or
        # weights that are kept in what learns would be fetched anew for each rollout in what is frozen.
        zero |= {
            name: size
            for name, size in (
                ("reduce_bucket_size", width * width),
                ("stage3_prefetch_bucket_size", int(0.9 * width * width)),
                ("stage3_param_persistence_threshold", 10 * width),
            )
            if zero.get(name) == "auto"
        }
    else:
        zero["stage"] = 0
    engine, *_ = deepspeed.initialize(model=model, config=config)
    # DeepSpeed's `eval` returns nothing.
    engine.eval()
    return engine


def _frozen_shards(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP version {plugin.fsdp_version} is not supported; set fsdp_version: 2 in the configuration of "
            "accelerate, as accelerate_configs/fsdp2.yaml does."
        )
    fully_shard(
        model,
        reshard_after_forward=plugin.reshard_after_forward,
        offload_policy=plugin.cpu_offload,
        mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
    )
    return model.eval()
