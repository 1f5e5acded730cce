"""DDP on two ranks: the same step as one process, and a resume that ends with the same bits."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parent / "two_ranks.py"


@pytest.fixture
def two_ranks(models_dir) -> Path:
    """The folder in which two processes left their weights; they run once for all tests."""
    if not (models_dir / "whole.safetensors").exists():
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        result = subprocess.run(
            [*launch, str(SCRIPT), str(models_dir)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-4000:]
    return models_dir


def test_two_ranks_take_the_same_steps_as_one_process(two_ranks):
    script = runpy.run_path(str(SCRIPT))
    weights = script["weights"]
    single = script["make_trainer"](two_ranks, "single", **script["SAME_STEP"])
    start = weights(single)
    single.train()
    double = load_file(two_ranks / "same_step.safetensors")
    for name, tensor in weights(single).items():
        torch.testing.assert_close(double[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    assert max((double[name] - start[name]).abs().max() for name in start) > 1e-3


def test_two_ranks_resumed_across_the_end_of_an_epoch_end_bit_identical(two_ranks):
    whole = load_file(two_ranks / "whole.safetensors")
    resumed = load_file(two_ranks / "resumed.safetensors")
    for name in whole:
        assert torch.equal(resumed[name], whole[name]), name
