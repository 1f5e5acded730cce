"""Two ranks, DDP and DeepSpeed ZeRO: the same steps as one process, and a resume that ends with the same bits."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.launches

SCRIPT = Path(__file__).parent / "two_ranks.py"
RUNS = [
    ("full", 0),
    pytest.param(("one_backbone", 3), marks=pytest.mark.slow),
    pytest.param(("one_backbone", 0), marks=pytest.mark.slow),
    pytest.param(("value_head", 0), marks=pytest.mark.slow),
    pytest.param(("full", 2), marks=pytest.mark.slow),
    pytest.param(("full", 3), marks=pytest.mark.slow),
    pytest.param(("lora", 3), marks=pytest.mark.slow),
    pytest.param(("value_head", 3), marks=pytest.mark.slow),
]


@pytest.fixture(params=RUNS, ids=lambda run: "-".join(map(str, run)))
def run(request) -> tuple[str, int]:
    """Layout and ZeRO stage; 0 is DDP."""
    return request.param


@pytest.fixture
def two_ranks(models_dir, run) -> Path:
    """The folder in which two processes left their weights; they run once for all tests."""
    layout, stage = run
    folder = models_dir / f"{layout}-{stage}"
    if not (folder / "resumed_after_signal.safetensors").exists():
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        # Where this is set accelerate leaves DeepSpeed out; the options ask for the CPU themselves.
        environment.pop("ACCELERATE_USE_CPU", None)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        result = subprocess.run(
            [*launch, str(SCRIPT), str(models_dir), layout, str(stage)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert result.returncode == 0, result.stderr[-4000:]
    return folder


def test_two_ranks_take_the_same_steps_as_one_process(two_ranks, run):
    script = runpy.run_path(str(SCRIPT))
    for texts, run_name in ((True, "same_step"), (False, "same_step_recomputed")):
        single = script["make_trainer"](
            two_ranks.parent, f"{two_ranks.name}-single", layout=run[0], texts=texts, **script["SAME_STEP"]
        )
        start = {name: tensor.detach().clone() for name, tensor in single.model.named_parameters()}
        single.train()
        if texts:
            expected = script["evaluate"](single)
            found = json.loads((two_ranks / "metrics.json").read_text("utf-8"))
            assert found == {name: pytest.approx(value, abs=1e-4, rel=1e-4) for name, value in expected.items()}
        double = load_file(two_ranks / f"{run_name}.safetensors")
        for name, tensor in single.model.named_parameters():
            torch.testing.assert_close(double[name], tensor.detach(), atol=1e-5, rtol=1e-5, msg=f"{run_name} {name}")
        assert max((double[name] - start[name]).abs().max() for name in start) > 1e-3


@pytest.mark.parametrize("name", ["resumed", "resumed_after_signal"])
def test_two_ranks_resumed_across_the_end_of_an_epoch_end_bit_identical(two_ranks, name):
    # One stopped by SIGTERM to the second rank alone, which both saved after the same step.
    whole = load_file(two_ranks / "whole.safetensors")
    resumed = load_file(two_ranks / f"{name}.safetensors")
    assert any(tensor_name.startswith("average.") for tensor_name in whole)
    for tensor_name in whole:
        assert torch.equal(resumed[tensor_name], whole[tensor_name]), tensor_name


def test_the_average_is_saved_whole(two_ranks, run):
    whole = load_file(two_ranks / "whole.safetensors")
    is_adapter = run[0] in ("lora", "one_backbone")
    saved = load_file(
        two_ranks / "saved" / "ema" / ("adapter_model.safetensors" if is_adapter else "model.safetensors")
    )
    assert saved
    for name, tensor in saved.items():
        name = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.") if is_adapter else name
        assert torch.equal(tensor, whole[f"average.{name}"]), name
