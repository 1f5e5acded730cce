"""`pangu-trl env`: what a bug report needs to say about a machine, without names or paths of it."""

import argparse
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import pangu_trl

from .options import add_json, print_json

SUMMARY = "say which versions and devices there are, for a bug report"
EXAMPLE = "pangu-trl env --json"

_LIBRARIES = (
    "torch transformers trl accelerate datasets deepspeed peft safetensors tokenizers sentencepiece jieba rjieba "
    "pyarrow numpy huggingface_hub wandb swanlab trackio tensorboard bitsandbytes vllm torch_npu"
).split()
# Settings that change how a run computes. Of all others not even the names are told: they may be private.
_VARIABLES = (
    "ACCELERATE_USE_CPU CUDA_VISIBLE_DEVICES ASCEND_RT_VISIBLE_DEVICES HF_HUB_OFFLINE HF_DATASETS_OFFLINE "
    "OMP_NUM_THREADS PYTORCH_CUDA_ALLOC_CONF TOKENIZERS_PARALLELISM NCCL_P2P_DISABLE NCCL_IB_DISABLE"
).split()
# Programs that list devices without torch, which takes seconds to import.
_LISTERS = {
    "nvidia": ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
    "ascend": ["npu-smi", "info", "-l"],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    facts = collect()
    if args.json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:28}  {'; '.join(value) if isinstance(value, list) else value}")


def collect() -> dict[str, str | list[str]]:
    """Facts by name: versions, the system, processors and memory, devices, settings of the environment."""
    facts: dict[str, str | list[str]] = {
        "pangu_trl": pangu_trl.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": str(os.cpu_count()),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    facts["devices"] = _devices() or ["none found"]
    for library in _LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            continue
    return facts | {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def _devices() -> list[str]:
    found = []
    for maker, words in _LISTERS.items():
        if shutil.which(words[0]) is None:
            continue
        try:
            result = subprocess.run(words, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if result.returncode == 0:
            found += [f"{maker}: {' '.join(line.split())}" for line in result.stdout.splitlines() if line.strip()]
    return found
