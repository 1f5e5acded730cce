"""Prints the tables of docs/scaling.md, computed by `pangu-trl plan`; nothing in them was measured on GPUs.

python benchmarks/scaling.py
"""

from pathlib import Path

from pangu_trl.planning.launch import Launch, read_launch
from pangu_trl.planning.memory import GIB, Plan
from pangu_trl.planning.models import load_config
from pangu_trl.planning.settings import read_settings
from pangu_trl.planning.traffic import step_transfers
from pangu_trl.runs.folders import STAGES

ROOT = Path(__file__).parent.parent
MODELS = ("pangu-2.6b", "pangu-13b")
# Configuration and devices of each column.
COLUMNS = [("single_gpu", 1), ("zero3_offload", 1), ("zero2", 8), ("zero3", 8), ("fsdp2", 8), ("zero3_offload", 8)]
SHARDINGS = ("ddp", "zero2", "zero3", "fsdp2")
# Assumptions of the scaling on paper: an A100 at 40 % of its bfloat16 peak; NVLink within 8 GPUs, 200 Gb/s each beyond.
FLOPS, NVLINK, NETWORK = 0.4 * 312e12, 300e9, 25e9
GPUS_OF_A_NODE, SEQUENCES = 8, 512
NUM_GPUS = (8, 16, 32, 64)


def main() -> None:
    print("\n\n".join("\n".join(table) for table in (memory_table(), traffic_table(), scaling_table())))


def memory_table() -> list[str]:
    """Peak GiB of a GPU for every recipe."""
    lines = ["| recipe | " + " | ".join(f"{name}, {count} GPU{'s' * (count > 1)}" for name, count in COLUMNS) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for model in MODELS:
        for path in [path for stage in STAGES for path in sorted((ROOT / "recipes" / model / stage).glob("*.yaml"))]:
            plan = _plan(path, *COLUMNS[0])
            peaks = [_peak(plan, _launch(*column)) for column in COLUMNS]
            lines.append(f"| {path.relative_to(ROOT / 'recipes')} | " + " | ".join(peaks) + " |")
    return lines


def _peak(plan: Plan, launch: Launch) -> str:
    if plan.settings.is_quantised and launch.shards_weights:
        # Which nobody shards.
        return "-"
    return f"{plan.under(launch).peak() / GIB:.1f}"


def traffic_table() -> list[str]:
    """Bytes that each GPU sends for each token that it learns from, by stage and number of GPUs."""
    lines = ["| kB per token, 2.6B | GPUs | " + " | ".join(SHARDINGS) + " |", "|---" * (len(SHARDINGS) + 2) + "|"]
    for stage in STAGES:
        plan = _plan(ROOT / "recipes" / "pangu-2.6b" / stage / "full.yaml", SHARDINGS[0], NUM_GPUS[0])
        tokens = plan.tokens_per_batch * plan.settings["gradient_accumulation_steps"]
        for count in (NUM_GPUS[0], NUM_GPUS[-1]):
            sent = [_sent(plan.under(_launch(name, count))) / tokens / 1e3 for name in SHARDINGS]
            lines.append(f"| {stage} | {count} | " + " | ".join(f"{size:.0f}" for size in sent) + " |")
    return lines


def scaling_table() -> list[str]:
    """Seconds of an SFT step of a fixed number of sequences: computing, and sending if nothing overlaps."""
    lines = ["| GPUs | " + " | ".join(f"{name}: compute + send" for name in SHARDINGS) + " |"]
    lines.append("|---" * (len(SHARDINGS) + 1) + "|")
    for count in NUM_GPUS:
        cells = []
        for name in SHARDINGS:
            plan = _plan(ROOT / "recipes" / "pangu-2.6b" / "sft" / "full.yaml", name, count)
            accumulation = SEQUENCES // (count * plan.settings["per_device_train_batch_size"])
            plan = plan.with_options(gradient_accumulation_steps=accumulation)
            tokens = plan.tokens_per_batch * accumulation
            # Forward, backward twice that, and the forward again for the checkpoints.
            compute = 8 * plan.trained["model"].num_parameters * tokens / FLOPS
            send = _sent(plan) / (NVLINK if count <= GPUS_OF_A_NODE else NETWORK)
            cells.append(f"{compute:.2f} + {send:.2f}")
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return lines


def _plan(recipe: Path, config: str, count: int) -> Plan:
    settings = read_settings(recipe)
    return Plan(settings, _launch(config, count), load_config(settings.model))


def _launch(config: str, count: int) -> Launch:
    return read_launch(ROOT / "accelerate_configs" / f"{config}.yaml", count)


def _sent(plan: Plan) -> int:
    return sum(transfer.sent_by_each(plan.launch.num_devices) for transfer in step_transfers(plan))


if __name__ == "__main__":
    main()
