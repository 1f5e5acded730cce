"""Ranks that die or wait, disks that are full: the run ends, says why, and goes on from its last whole checkpoint."""

import re
import time
from pathlib import Path

import pytest
import torch
from launching import config_for_cpu, launch, launch_command, start, stop, wait
from safetensors.torch import load_file

from pangu_trl.runs.checkpoints import last_whole_checkpoint

pytestmark = pytest.mark.launches

STEPS = dict(max_steps=4, save_steps=2, save_total_limit=1)
CHECKPOINTS = ["checkpoint-2", "checkpoint-4"]


@pytest.fixture(params=["sft", "ppo"])
def stage(request) -> str:
    return request.param


@pytest.fixture
def uninterrupted(workspace, stage_options, stage) -> Path:
    """Two ranks under ZeRO-3 without a fault, once for all tests."""
    folder = workspace / f"uninterrupted-{stage}"
    if not folder.exists():
        launch(config_for_cpu("zero3", workspace), stage, stage_options(stage, folder, **STEPS))
    return folder


def fail(workspace: Path, stage: str, options: dict, fault: str) -> str:
    """Starts a run in which something goes wrong, waits for its end, and returns what it said."""
    said = Path(f"{options['output_dir']}-failed.log")
    launcher = start(launch_command(config_for_cpu("zero3", workspace), stage, options), said, FAULT=fault)
    assert wait(launcher, timeout=180) != [0]
    return said.read_text(errors="replace")


def assert_resumes_to(whole: Path, workspace: Path, stage: str, options: dict) -> None:
    folder = Path(options["output_dir"])
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
    launch(config_for_cpu("zero3", workspace), stage, options | {"resume_from_checkpoint": "true"})
    expected = load_file(whole / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    # The limit holds again, and what was left unfinished has been written anew.
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4"]


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_resumes_to_the_same_weights(workspace, stage_options, stage, uninterrupted):
    options = stage_options(stage, workspace / f"killed-{stage}", **STEPS)
    said = fail(workspace, stage, options, "kill:3:1")
    assert "SIGKILL" in said or "exitcode  : -9" in said
    assert_resumes_to(uninterrupted, workspace, stage, options)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(workspace, stage_options, stage, uninterrupted):
    options = stage_options(stage, workspace / f"full-{stage}", **STEPS)
    fail(workspace, stage, options, "disk:4:0")
    folder = Path(options["output_dir"])
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == CHECKPOINTS
    assert not (folder / "checkpoint-4" / "complete.json").exists()
    assert_resumes_to(uninterrupted, workspace, stage, options)


@pytest.mark.slow
def test_every_rank_says_what_it_waits_in_and_the_run_ends(workspace, stage_options):
    options = stage_options("sft", workspace / "hanging", ddp_timeout=20, **STEPS)
    said = Path(f"{options['output_dir']}.log")
    process = start(launch_command(config_for_cpu("ddp", workspace), "sft", options), said, FAULT="hang:1:1")
    try:
        reports = {}
        deadline = time.monotonic() + 240
        while len(reports) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.5)
            found = re.findall(
                r"rank (\d) of 2: no progress for \d+ s in phase (\w+) of step (\d+); it is in (\S+)", said.read_text()
            )
            reports |= {rank: found for rank, *found in found}
        assert {rank: report[:2] for rank, report in reports.items()} == dict.fromkeys("01", ["learning", "2"]), reports
        # The one that sleeps, and the one that waits for it in the backward pass.
        assert reports["1"][2] != reports["0"][2]
        assert process.wait(timeout=120) != 0
    finally:
        stop(process)
