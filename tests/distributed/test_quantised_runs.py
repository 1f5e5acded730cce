"""QLoRA in PPO as a user starts it: the recipe on bases of 4 and 8 bits, resumed, recomputing, on two processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from launching import config_for_cpu, launch, launch_command, logged, run_here, start, wait
from safetensors.torch import load_file

pytest.importorskip("bitsandbytes", reason="quantised bases need bitsandbytes: pip install 'pangu_trl[quantised]'")
pytestmark = [pytest.mark.launches, pytest.mark.slow]

BITS = [4, 8]
CHECKPOINT_STEP = 3


@pytest.fixture(scope="module")
def options(workspace, stage_options):
    """`options(bits, name, num_processes, **changes)` of a run into a folder of that name."""

    def make(bits: int, name: str, num_processes: int = 1, **changes):
        found = {f"load_in_{bits}bit": True, "use_peft": True, "lora_r": 4, "learning_rate": 0.5}
        return stage_options("ppo", workspace / f"qlora-{bits}-{name}", num_processes, **found | changes)

    return make


@pytest.fixture(scope="module", params=BITS)
def whole(request, options) -> tuple[int, Path]:
    """The bits of a base, and the run of one process on it."""
    settings = options(request.param, "whole")
    run_here("ppo", settings)
    return request.param, settings["output_dir"]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "adapter_model.safetensors")
    assert found and all("lora_" in name and tensor.dtype == torch.float32 for name, tensor in found.items())
    return found


def assert_close(found: Path, expected: Path) -> None:
    assert logged(found, "loss") == pytest.approx(logged(expected, "loss"), rel=1e-4, abs=1e-5)
    expected_weights = adapter(expected)
    # Something was learnt that could differ: lora_B starts at 0.
    assert max(tensor.abs().max() for name, tensor in expected_weights.items() if "lora_B" in name) > 1e-4
    for name, tensor in adapter(found).items():
        torch.testing.assert_close(tensor, expected_weights[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_resumed_run_ends_with_the_same_bits(whole, options):
    bits, folder = whole
    settings = options(bits, "resumed", resume_from_checkpoint="true")
    checkpoint = f"checkpoint-{CHECKPOINT_STEP}"
    shutil.copytree(folder / checkpoint, settings["output_dir"] / checkpoint)
    run_here("ppo", settings)
    assert logged(settings["output_dir"], "loss") == logged(folder, "loss")
    resumed = adapter(settings["output_dir"])
    assert all(torch.equal(resumed[name], tensor) for name, tensor in adapter(folder).items())


def test_recomputed_activations_give_the_same_steps(whole, options):
    bits, folder = whole
    settings = options(bits, "recomputed", gradient_checkpointing=True)
    run_here("ppo", settings)
    assert_close(settings["output_dir"], folder)


def test_two_processes_do_what_one_does(whole, options, tmp_path):
    bits, folder = whole
    settings = options(bits, "ddp", 2)
    launch(config_for_cpu("ddp", tmp_path), "ppo", settings)
    notes = json.loads((settings["output_dir"] / "rank-1.json").read_text())
    assert notes["wrapper"] == "DistributedDataParallel" and notes["num_processes"] == 2
    assert ("torch.uint8" if bits == 4 else "torch.int8") in notes["dtypes"]
    assert_close(settings["output_dir"], folder)


@pytest.mark.parametrize("backend", ["zero3", "fsdp2"])
def test_weights_that_would_be_sharded_are_refused_by_name(options, tmp_path, backend):
    settings = options(4, backend, 2)
    errors = tmp_path / "errors"
    [code] = wait(start(launch_command(config_for_cpu(backend, tmp_path), "ppo", settings), errors))
    said = errors.read_text(errors="replace")
    assert code != 0
    assert "ZeRO-3 and FSDP2 would cut its packed weights into shards. Start with DDP or ZeRO-1 or 2" in said, said[
        -3000:
    ]
