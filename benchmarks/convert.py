"""Time and peak memory of `pangu-trl convert` on random checkpoints of a published size.

    python benchmarks/convert.py                 # 350m; writes about 10 GB below --folder and removes them

Each conversion runs in a process of its own, whose peak resident memory the kernel tells (Linux); beside it the same
checkpoint goes through transformers' `from_pretrained` and `save_pretrained`. The last column is the memory that a
conversion should stay below: one and a half times the largest file that it writes, and 1 GB. The last lines give the
model of time and memory, and what it says of 13B.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open

from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM
from pangu_trl.gptpangu.conversion import SIZES, named_config

GB = 1e9
REPORT_PEAK = "\nfor line in open('/proc/self/status'):\n    if line.startswith('VmHWM'): print(line.split()[1])\n"
CONVERT = "import sys; from pangu_trl.cli import main\nassert main(['convert', *sys.argv[1:]]) == 0"
NOTHING = "import pangu_trl.gptpangu.conversion"
TRANSFORMERS = (
    "import sys, pangu_trl, transformers\n"
    "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
    "model.save_pretrained(sys.argv[2])"
)


def run(program: str, *words: object) -> tuple[float, float]:
    """Runs a Python program; returns its seconds and its peak resident memory in GB."""
    started = time.perf_counter()
    command = [sys.executable, "-c", program + REPORT_PEAK, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    return time.perf_counter() - started, int(result.stdout.split()[-1]) * 1024 / GB


def write_published(folder: Path, size: str) -> None:
    """A checkpoint as the published code writes it: one .bin, the head beside the embedding, mask buffers."""
    config = named_config(size)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPTPanguForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    positions = config.max_position_embeddings
    for layer in range(config.num_layers):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, positions, positions, dtype=torch.uint8).tril()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-10000.0)
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "pytorch_model.bin")
    settings = {
        key: value for key, value in config.to_dict().items() if key in vars(GPTPanguConfig()) and value is not None
    }
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "pangu"}, default=str), "utf-8")


def largest_file(folder: Path) -> float:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GB


def first_difference(one: Path, other: Path) -> str | None:
    """Name of a tensor that differs between two folders with one safetensors file each."""
    with safe_open(one / "model.safetensors", "pt") as left, safe_open(other / "model.safetensors", "pt") as right:
        for name in left.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
            if not torch.equal(left.get_tensor(name), right.get_tensor(name)):
                return name
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="350m", help="published size (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the temporary folder)")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="convert-", dir=args.folder))
    try:
        measure(work, args.size)
    finally:
        shutil.rmtree(work)


def measure(work: Path, size: str) -> None:
    write_published(work / "bin", size)
    _, baseline = run(NOTHING)
    cases = [
        ("transformers load + save", ("bin", "peer"), (TRANSFORMERS,)),
        ("hf -> hf", ("bin", "hf"), (CONVERT, "--from", "hf")),
        (
            "hf -> hf, 500MB shards",
            ("bin", "shards"),
            (CONVERT, "--from", "hf", "--max-shard-size", "500MB"),
        ),
        ("hf -> megatron, 1 rank", ("hf", "mg"), (CONVERT, "--from", "hf", "--to", "megatron")),
        (
            "hf -> megatron, 4 ranks",
            ("hf", "mg4"),
            (CONVERT, "--from", "hf", "--to", "megatron", "--tensor-parallel-size", 4),
        ),
        ("hf -> mindspore-numpy", ("hf", "ms"), (CONVERT, "--from", "hf", "--to", "mindspore-numpy")),
        ("megatron, 4 ranks -> hf", ("mg4", "hf2"), (CONVERT, "--from", "megatron", "--size", size)),
        ("mindspore-numpy -> hf", ("ms", "hf3"), (CONVERT, "--from", "mindspore-numpy", "--size", size)),
    ]
    print(f"GPTPangu {size}, random float32 weights; an idle process takes {baseline:.2f} GB")
    print(f"{'':26}{'seconds':>8}{'peak GB':>9}{'largest file GB':>17}{'1.5 x + 1 GB':>14}")
    measured = {}
    for name, (source, destination), (program, *words) in cases:
        seconds, peak = run(program, *words, work / source, work / destination)
        largest = largest_file(work / destination)
        measured[name] = seconds, peak, largest
        print(f"{name:26}{seconds:8.1f}{peak:9.2f}{largest:17.2f}{1.5 * largest + 1:14.2f}", flush=True)
    for other in ("hf2", "hf3"):
        assert (name := first_difference(work / "hf", work / other)) is None, f"{other}: {name} differs"
    print("there and back: every tensor has the same bits")
    predict(measured, baseline, size)


def predict(measured: dict[str, tuple[float, float, float]], baseline: float, size: str) -> None:
    """Prints peak = baseline + a * shard with a from the 500 MB case, checked on the other, and time per GB."""
    _, small_peak, small = measured["hf -> hf, 500MB shards"]
    seconds, large_peak, large = measured["hf -> hf"]
    factor = (small_peak - baseline) / small
    print(f"memory model: {baseline:.2f} GB + {factor:.2f} x largest file")
    print(f"  one file of {large:.2f} GB: {baseline + factor * large:.2f} GB predicted, {large_peak:.2f} GB measured")
    with torch.device("meta"):
        parameters = {name: GPTPanguForCausalLM(named_config(name)).num_parameters() for name in (size, "13b")}
    gigabytes = parameters["13b"] * 2 / GB
    print(
        f"13b in float16 ({gigabytes:.1f} GB) with files of 2 GB: {baseline + factor * 2:.1f} GB of memory, "
        f"{seconds / large * gigabytes / 60:.1f} minutes at the measured {large / seconds:.2f} GB/s (computed)"
    )


if __name__ == "__main__":
    main()
