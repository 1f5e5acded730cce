"""Launchers and ranks that are told to stop: nothing is left running, and the run goes on to the same bits."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from launching import config_for_cpu, launch, launch_command, start, stop
from safetensors.torch import load_file

from pangu_trl.runs.checkpoints import last_whole_checkpoint

pytestmark = [pytest.mark.launches, pytest.mark.slow]

STEPS = dict(max_steps=60, save_steps=10, save_total_limit=2)
ENGINES = {"cpu": 1, "ddp": 2}


def processes_of(folder: Path) -> list[int]:
    """Process ids of the launcher and the ranks of a run, by its output folder on their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


def started(process: subprocess.Popen, folder: Path, said: Path) -> None:
    """Waits for the first checkpoint."""
    deadline = time.monotonic() + 240
    while not (folder / "checkpoint-10" / "complete.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, said.read_text(errors="replace")[-4000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(workspace, stage_options):
    """`whole("ddp")`: the folder of an uninterrupted run."""

    def run(engine: str) -> Path:
        folder = workspace / f"never-stopped-{engine}"
        if not folder.exists():
            options = stage_options("sft", folder, ENGINES[engine], **STEPS)
            launch(config_for_cpu(engine, workspace), "sft", options, takes_notes=False)
        return folder

    return run


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize(
    "engine, target, number",
    [
        ("cpu", "launcher", signal.SIGTERM),
        ("cpu", "launcher", signal.SIGKILL),
        ("cpu", "launcher", signal.SIGHUP),
        ("cpu", "group", signal.SIGINT),
        ("cpu", "rank", signal.SIGTERM),
        ("ddp", "launcher", signal.SIGTERM),
        ("ddp", "launcher", signal.SIGKILL),
        ("ddp", "group", signal.SIGINT),
        ("ddp", "rank", signal.SIGINT),
    ],
)
def test_told_to_stop_a_run_leaves_no_process_and_goes_on(workspace, stage_options, whole, engine, target, number):
    folder = workspace / f"stopped-{engine}-{target}-{number}"
    options = stage_options("sft", folder, ENGINES[engine], **STEPS)
    config, said = config_for_cpu(engine, workspace), workspace / f"{folder.name}.log"
    process = start(launch_command(config, "sft", options, takes_notes=False), said)
    try:
        started(process, folder, said)
        if target == "group":
            os.killpg(process.pid, number)
        else:
            ranks = [pid for pid in processes_of(folder) if pid != process.pid]
            os.kill(process.pid if target == "launcher" else ranks[0], number)
        deadline = time.monotonic() + 45
        while processes_of(folder) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.1)
        assert processes_of(folder) == []
        assert process.wait(5) != 0
    finally:
        stop(process)
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)
    text = said.read_text(errors="replace")
    assert "is saved. To go on: " in text and " --resume_from_checkpoint true\n" in text, text[-3000:]
    step = int(last_whole_checkpoint(folder).rpartition("-")[2])
    assert f"; {folder / f'checkpoint-{step}'} is saved." in text
    launch(config, "sft", options | {"resume_from_checkpoint": "true"}, takes_notes=False)
    expected = load_file(whole(engine) / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
