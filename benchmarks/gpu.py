"""What one GPU does with the parts of this package that a CPU says nothing about: one command, one table.

    python benchmarks/gpu.py --output gpu.json              # 20 minutes at most, meant for one card of 80 GB
    python benchmarks/gpu.py --sizes tiny --minutes 5       # on a CPU, as the tests run it

It has never run on a GPU. Random weights of GPTPangu and Llama shapes, bfloat16 on an accelerator and float32 without:

* attention: a forward and backward pass by attention implementation, and how far its gradient is from SDPA's.
* equality: logits in bfloat16 on the device against float32 on the CPU, four blocks of the full width.
* reward: an optimiser step on K = 4 ranked answers, prefixes shared and not, and TRL's RewardTrainer on all pairs.
* ppo: seconds of a rollout spent on generation, scoring and learning by layout; the peak beside `pangu-trl plan`.
* qlora: a training step of a LoRA adapter on 4-bit weights.

What is missing, does not fit or finds no time left is skipped by name. A case that fails is named in the table, the
others go on, and the exit status is 1.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_bench import SIZES, Bench
from gpu_models import attention, equality, qlora
from gpu_training import ppo, reward

PARTS = {"attention": attention, "equality": equality, "reward": reward, "ppo": ppo, "qlora": qlora}


def cases(parts: list[str], sizes: list[str]) -> Iterator[tuple[str, str]]:
    """The small size of every part first: what is left out for want of time is the large ones."""
    return ((part, size) for size in sizes for part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["350M", "2.6B"], help="shapes to run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--minutes", type=float, default=20, help="no case starts after these (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the table as JSON too")
    args = parser.parse_args()
    bench = Bench(deadline=time.monotonic() + 60 * args.minutes)
    name = torch.get_device_module(bench.device).get_device_name() if bench.on_accelerator else "CPU"
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}\n")
    print("| part | case | figures |\n|---|---|---|")
    for part, size in cases(args.parts, args.sizes):
        PARTS[part](bench, size, SIZES[size])
    if args.output is not None:
        about = {"device": name, "torch": torch.__version__, "python": sys.version.split()[0]}
        shapes = {size: asdict(SIZES[size]) for size in args.sizes}
        args.output.write_text(json.dumps(about | {"sizes": shapes, "rows": bench.rows}, indent=2) + "\n", "utf-8")
    return 1 if any("failed" in row for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
