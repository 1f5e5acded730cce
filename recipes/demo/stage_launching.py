"""How a demo starts its stages: every one is a command that works alone, and is printed before it runs."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pangu_trl import cli
from pangu_trl.runs.process import end_with_parent

ROOT = Path(__file__).resolve().parents[2]
# What a stage's process keeps when it frees memory: blocks of the size of activations, as fresh pages for each took
# half of the time where they are dear (a virtual machine on an AMD CPU without AVX512); no larger ones, and at most
# half a GiB at the end of its heap. What is new comes in large pages. And few of the products that oneDNN compiles for
# lengths that do not come again.
LEAN = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "THP_MEM_ALLOC_ENABLE": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
# How `pangu-trl` ends after Ctrl-C.
INTERRUPTED = 130


def launch_recipe(stage: str, config: Path, options: Mapping[str, object]) -> None:
    """Trains one stage on CPU, in processes of its own.

    After Ctrl-C, which reaches them too, they are waited for: a recipe saves a checkpoint before it ends. A second one
    ends them at once.

    Args:
        stage: Name of the recipe.
        config: YAML file of its options.
        options: Those on top of it.

    Raises:
        subprocess.CalledProcessError: It failed.
        KeyboardInterrupt: It was interrupted, and has ended.
    """
    words = [stage, "--config", short(config), "--accelerate", "cpu"]
    words += [word for name, value in options.items() for word in (f"--{name}", short(value))]
    print("$ pangu-trl " + " ".join(words), flush=True)
    # Without the working folder, where a clone of this name would pass for the package.
    command = [sys.executable, "-P", "-m", "pangu_trl", *words]
    environment = LEAN | os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent)
    try:
        process.wait()
    except KeyboardInterrupt:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
        raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)


def run_command(*words: object) -> None:
    """Runs a `pangu-trl` command in this process, which has the imports done.

    Raises:
        SystemExit: It failed.
        KeyboardInterrupt: It was interrupted.
    """
    words = [short(word) for word in words]
    print("$ pangu-trl " + " ".join(words), flush=True)
    exit_status = cli.main(words)
    if exit_status == INTERRUPTED:
        raise KeyboardInterrupt
    if exit_status != 0:
        raise SystemExit(f"The demo stopped: `pangu-trl {words[0]}` failed, see above.")


def short(value: object) -> str:
    """A path as the user would type it from here."""
    if isinstance(value, Path) and value.is_absolute() and value.is_relative_to(Path.cwd()):
        return str(value.relative_to(Path.cwd()))
    return str(value)


def move_aside(run_dir: Path) -> None:
    """Renames a folder that holds an earlier run; nothing is overwritten."""
    if not run_dir.exists():
        return
    number = 1
    while (kept := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    run_dir.rename(kept)
    print(f"{short(run_dir)} held an earlier run; it is now {short(kept)}.")
