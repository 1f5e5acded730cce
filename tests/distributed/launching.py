"""Starts the recipes as a user does, with the repository's accelerate configurations, on two CPU processes."""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
RANK = Path(__file__).parent / "rank.py"


def config_for_cpu(name: str, folder: Path, **changes: Any) -> Path:
    """Writes a configuration of accelerate_configs/ for CPU processes, and changes nothing else than it must."""
    config = yaml.safe_load((ROOT / "accelerate_configs" / f"{name}.yaml").read_text("utf-8"))
    config |= {"use_cpu": True, "mixed_precision": "no", "num_processes": 1 if name == "cpu" else 2} | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def launch_command(
    config: Path, recipe: str, options: dict[str, Any], launcher: Sequence[str] = (), takes_notes: bool = True
) -> list[str]:
    """The words of `accelerate launch`.

    Args:
        config: Accelerate configuration.
        recipe: Name of the recipe's script.
        options: Options of the recipe.
        launcher: Further options of the launcher itself.
        takes_notes: Whether rank.py starts the recipe, which leaves its notes in the output folder.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *launcher]
    if "--main_process_port" not in launcher:
        command += ["--main_process_port", "0"]
    command += [*([str(RANK)] if takes_notes else []), str(ROOT / "recipes" / f"{recipe}.py")]
    for name, value in options.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return command


def start(command: list[str], errors: Path, **environment: str) -> subprocess.Popen:
    """Starts a launcher in a process group of its own; what it says goes to the file `errors`."""
    merged = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | environment
    # Ours for tests in this process; the launcher sets its own, and with this one accelerate would not start DeepSpeed.
    merged.pop("ACCELERATE_USE_CPU", None)
    with errors.open("w") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=merged, start_new_session=True)


def wait(*processes: subprocess.Popen, timeout: float = 400) -> list[int]:
    """Waits for launchers and returns their exit codes; nothing of them outlives a test that fails."""
    try:
        return [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends a launcher that still runs, and all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def launch(config: Path, recipe: str, options: dict[str, Any], takes_notes: bool = True, **environment: str) -> None:
    """Runs a recipe to its end, which must be a good one."""
    errors = Path(f"{options['output_dir']}.log")
    errors.parent.mkdir(parents=True, exist_ok=True)
    [code] = wait(start(launch_command(config, recipe, options, takes_notes=takes_notes), errors, **environment))
    assert code == 0, errors.read_text(errors="replace")[-6000:]


def launch_script(config: Path, script: Path, *words: object, errors: Path) -> None:
    """Runs a script of the tests to its end, which must be a good one; what it says goes to the file `errors`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    [code] = wait(start([*command, "--main_process_port", "0", str(script), *map(str, words)], errors))
    assert code == 0, errors.read_text(errors="replace")[-6000:]


def run_here(recipe: str, options: dict[str, Any], takes_notes: bool = True) -> None:
    """Runs a recipe in this process: one process needs no launcher, and the stack is imported already."""
    script = str(ROOT / "recipes" / f"{recipe}.py")
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    with pytest.MonkeyPatch.context() as patch:
        # Not as `__main__`, which would end this process with the recipe.
        if takes_notes:
            patch.setattr(sys, "argv", [str(RANK), script, *words])
            runpy.run_path(str(RANK), run_name="rank")["noting_main"]()()
        else:
            patch.setattr(sys, "argv", [script, *words])
            runpy.run_path(script, run_name="recipe")["main"]()


def logged(folder: Path, name: str) -> list[float]:
    """The values of a figure that the trainer of a run logged."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]
