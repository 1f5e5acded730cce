"""What an accelerate configuration says about memory: how many devices share what, and in which precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SHARDINGS = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")


@dataclass(frozen=True)
class Launch:
    """How the processes of a run share their work.

    Attributes:
        num_devices: Processes, one to a device.
        sharding: none, ddp, zero1, zero2, zero3 or fsdp2.
        bf16: Whether the launcher asks for bfloat16.
        offload_optimizer: Whether optimiser states and master weights are in the memory of the host.
        offload_weights: Whether the weights are too.
        on_cpu: Whether the devices are CPU processes.
    """

    num_devices: int
    sharding: str
    bf16: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False
    on_cpu: bool = False

    @property
    def uses_deepspeed(self) -> bool:
        return self.sharding.startswith("zero")

    @property
    def shards_weights(self) -> bool:
        return self.sharding in ("zero3", "fsdp2")


def read_launch(path: str | Path, num_devices: int | None = None) -> Launch:
    """Reads an accelerate configuration.

    Args:
        path: A file as those of accelerate_configs/.
        num_devices: Devices in place of the file's `num_processes`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file describes something else than one of the supported ways to share a run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such accelerate configuration; accelerate_configs/ has some to start from")
    config = yaml.safe_load(Path(path).read_text("utf-8"))
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise ValueError(f"{path}: must be an accelerate configuration with 'distributed_type'")
    count = config.get("num_processes", 1) if num_devices is None else num_devices
    machines = config.get("num_machines", 1)
    if count % machines:
        raise ValueError(
            f"{path}: {machines} machines start equally many processes, and {count} devices were asked for; take a "
            f"multiple of {machines}, or another num_machines"
        )
    deepspeed = config.get("deepspeed_config") or {}
    sharding = _sharding(path, config, deepspeed)
    if sharding == "none" and count > 1:
        raise ValueError(
            f"{path}: distributed_type 'NO' starts one process, and {count} devices were asked for; take "
            "accelerate_configs/ddp.yaml or one of the others"
        )
    fsdp = config.get("fsdp_config") or {}
    return Launch(
        num_devices=count,
        sharding=sharding,
        bf16=config.get("mixed_precision") == "bf16",
        offload_optimizer=deepspeed.get("offload_optimizer_device") == "cpu" or bool(fsdp.get("fsdp_offload_params")),
        offload_weights=deepspeed.get("offload_param_device") == "cpu" or bool(fsdp.get("fsdp_offload_params")),
        on_cpu=bool(config.get("use_cpu")),
    )


def _sharding(path: str | Path, config: dict[str, Any], deepspeed: dict[str, Any]) -> str:
    kind = config["distributed_type"]
    if kind == "DEEPSPEED":
        if "deepspeed_config_file" in deepspeed:
            raise ValueError(f"{path}: names a DeepSpeed file; write zero_stage and offloading here for the plan")
        sharding = f"zero{deepspeed.get('zero_stage', 2)}"
    elif kind == "FSDP":
        sharding = f"fsdp{(config.get('fsdp_config') or {}).get('fsdp_version', 1)}"
    else:
        sharding = {"NO": "none"}.get(kind, "ddp" if kind.startswith("MULTI_") else kind)
    if sharding not in SHARDINGS:
        raise ValueError(f"{path}: the plan knows {', '.join(SHARDINGS)}; got {sharding}")
    return sharding
