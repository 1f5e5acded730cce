"""Every stage under every way of sharing the work: two CPU processes do what one does, save it, and go on from it.

The configurations are those of accelerate_configs/, put on CPU. `make test-distributed` runs all; `make test` a part.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from launching import config_for_cpu, launch, logged
from rank import PROBE, PROBE_COMPLETION
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

pytestmark = pytest.mark.launches

STAGES = ["sft", "reward", "ppo"]
BACKENDS = ["ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"]
# ZeRO-3 runs are in test_nodes.py, test_faults.py and test_recipes.py beside this file, DDP runs in the folders of PPO
# and reward.
QUICK = [("ppo", "fsdp2")]
CELLS = [
    pytest.param((stage, backend), marks=[] if (stage, backend) in QUICK else pytest.mark.slow, id=f"{stage}-{backend}")
    for backend in BACKENDS
    for stage in STAGES
]
LAST_STEP, CHECKPOINT_STEP = 5, 3
# Plain SGD elsewhere, whose step is the gradient. Offloaded states are updated by DeepSpeed's own Adam and by nothing
# else, and PyTorch does not load the states of a sharded optimiser that has none.
WITH_ADAM = ("zero3_offload", "fsdp2")


@dataclass(frozen=True)
class Run:
    """A cell of the matrix: the whole run, the one that was resumed, and one process with the same options."""

    stage: str
    backend: str
    whole: Path
    resumed: Path
    one: Path

    def notes(self, rank: int = 0) -> dict:
        return json.loads((self.whole / f"rank-{rank}.json").read_text())


@pytest.fixture(scope="module", params=CELLS)
def run(request, workspace, stage_options, one_process) -> Run:
    stage, backend = request.param
    changes = {"optim": "adamw_torch", "learning_rate": 1e-3} if backend in WITH_ADAM else {}
    one = one_process(stage, **changes)
    config = config_for_cpu(backend, workspace)
    whole, resumed = (workspace / f"{backend}-{stage}-{name}" for name in ("whole", "resumed"))
    launch(config, stage, stage_options(stage, whole, **changes))
    # A folder of its own, so that nothing but the checkpoint can help.
    shutil.copytree(whole / f"checkpoint-{CHECKPOINT_STEP}", resumed / f"checkpoint-{CHECKPOINT_STEP}")
    launch(config, stage, stage_options(stage, resumed, resume_from_checkpoint="true", **changes))
    return Run(stage, backend, whole, resumed, one)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name if path.parent != folder else ''}.{name}": tensor
        for path in (folder / "model.safetensors", folder / "value_model" / "model.safetensors")
        if path.exists()
        for name, tensor in load_file(path).items()
    }


def read_outputs(folder: Path) -> dict[str, torch.Tensor]:
    """What the model gave for the fixed input before it was saved."""
    notes = json.loads((folder / "rank-0.json").read_text())
    return {name: torch.tensor(value) for name, value in notes["outputs"].items()}


def test_the_model_is_held_as_the_configuration_says(run):
    for rank in (0, 1):
        notes = run.notes(rank)
        assert notes["num_processes"] == 2
        assert notes["dtypes"] == ["torch.float32"]
        if run.backend == "ddp":
            assert notes["distributed_type"] == "DistributedType.MULTI_CPU"
            assert notes["wrapper"] == "DistributedDataParallel"
        elif run.backend == "fsdp2":
            assert notes["distributed_type"] == "DistributedType.FSDP"
            assert notes["dtensors"] == notes["parameters"] > 0
            # Each by itself: two of a model, and with PPO two of the critic.
            assert notes["fsdp_blocks"] == (4 if run.stage == "ppo" else 2)
        else:
            assert notes["distributed_type"] == "DistributedType.DEEPSPEED"
            assert notes["zero_stage"] == int(run.backend[4])
            assert notes["zero3_parts"] == (notes["parameters"] if "zero3" in run.backend else 0)
            assert ("CPUAdam" in notes["optimizer"]) == (run.backend == "zero3_offload")


def test_two_processes_have_the_losses_of_one(run):
    one, two = (logged(folder, "loss") for folder in (run.one, run.whole))
    assert len(one) == LAST_STEP
    assert two == pytest.approx(one, rel=1e-5, abs=1e-5)
    # The steps are large enough for a gradient of the wrong size to show in the losses that follow.
    assert max(abs(loss - one[0]) for loss in one) > 1e-3


def test_two_processes_end_with_the_model_of_one(run):
    one, two = (read_outputs(folder) for folder in (run.one, run.whole))
    for name, expected in one.items():
        if run.stage == "reward":
            # Pairs decide about differences alone; what they leave open is rounding, scaled up to whole steps by Adam.
            expected, two[name] = expected - expected.mean(), two[name] - two[name].mean()
        torch.testing.assert_close(two[name], expected, atol=1e-4, rtol=1e-4)
    if run.backend in WITH_ADAM:
        return
    one, two = weights(run.one), weights(run.whole)
    # DeepSpeed's state dict holds the tied head a second time.
    assert {name.rpartition("lm_head")[0] for name in two.keys() - one.keys()} <= {"."}
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(run):
    assert logged(run.resumed, "loss") == logged(run.whole, "loss")
    whole, resumed = weights(run.whole), weights(run.resumed)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


@torch.no_grad()
def test_the_saved_model_loads_and_gives_what_it_gave_in_training(run):
    expected = read_outputs(run.whole)
    auto_class = AutoModelForSequenceClassification if run.stage == "reward" else AutoModelForCausalLM
    model, info = auto_class.from_pretrained(run.whole, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    logits = model.eval()(PROBE).logits
    if run.stage != "ppo":
        torch.testing.assert_close(logits, expected["logits"], atol=1e-5, rtol=1e-5)
        return
    answers = PROBE[:, -PROBE_COMPLETION:, None]
    logprobs = logits[:, -PROBE_COMPLETION - 1 : -1].log_softmax(-1).gather(-1, answers).squeeze(-1)
    torch.testing.assert_close(logprobs, expected["logprobs"], atol=1e-5, rtol=1e-5)
    critic = AutoModelForSequenceClassification.from_pretrained(run.whole / "value_model").eval()
    states = critic.transformer(PROBE).last_hidden_state[:, -PROBE_COMPLETION - 1 : -1]
    torch.testing.assert_close(critic.score(states).squeeze(-1), expected["values"], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_zero3_in_bfloat16_learns_what_float32_learns(workspace, stage_options, one_process):
    folder = workspace / "zero3-bfloat16"
    config = config_for_cpu("zero3", workspace, mixed_precision="bf16")
    launch(config, "sft", stage_options("sft", folder, bf16=True))
    notes = json.loads((folder / "rank-0.json").read_text())
    assert notes["dtypes"] == ["torch.bfloat16"] and notes["zero3_parts"] == notes["parameters"]
    assert {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()} == {"torch.bfloat16"}
    one, two = (logged(path, "loss") for path in (one_process("sft"), folder))
    # Eight bits of mantissa: the losses agree to two or three digits.
    assert two == pytest.approx(one, rel=1e-2)
    assert two != pytest.approx(one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["zero2", "zero3"])
def test_the_average_of_weights_in_bfloat16_is_that_of_their_float32_masters(backend, workspace, stage_options):
    """Steps that bfloat16 would round away: weights of 0.02 have neighbours 1e-4 apart, and a step moves them 1e-6."""
    folder = workspace / f"ema-{backend}"
    options = dict(bf16=True, ema_decay=0.5, optim="adamw_torch", learning_rate=1e-6, max_steps=3, save_steps=1)
    launch(config_for_cpu(backend, workspace, mixed_precision="bf16"), "ppo", stage_options("ppo", folder, **options))
    # What DeepSpeed starts from, and what its own script finds in its own files after every step.
    base = load_file(workspace / "base" / "model.safetensors")
    average = {name: tensor.bfloat16().double() for name, tensor in base.items()}
    for step in (1, 2, 3):
        masters = get_fp32_state_dict_from_zero_checkpoint(folder / f"checkpoint-{step}")
        masters = {name.removeprefix("policy."): tensor for name, tensor in masters.items()}
        average = {name: 0.5 * tensor + 0.5 * masters[name].double() for name, tensor in average.items()}
    parts = [load_file(path) for path in sorted((folder / "checkpoint-3").glob("ema-*.safetensors"))]
    assert len(parts) == (2 if backend == "zero3" else 1)
    moved = 0
    for name, expected in average.items():
        found = torch.cat([part[name].flatten() for part in parts])[: expected.numel()].double()
        torch.testing.assert_close(found, expected.flatten(), atol=1e-9, rtol=1e-6, msg=name)
        moved += (found != base[name].bfloat16().flatten()).sum().item()
    assert moved > 0.5 * sum(tensor.numel() for tensor in average.values())


@pytest.mark.slow
def test_ppo_under_zero3_in_bfloat16_starts_from_its_own_samples_and_moves(workspace, stage_options):
    folder = workspace / "ppo-zero3-bfloat16"
    launch(config_for_cpu("zero3", workspace, mixed_precision="bf16"), "ppo", stage_options("ppo", folder, bf16=True))
    notes = json.loads((folder / "rank-0.json").read_text())
    assert notes["dtypes"] == ["torch.bfloat16"] and notes["zero3_parts"] == notes["parameters"]
    assert {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()} == {"torch.bfloat16"}
    # Two passes over each rollout: the first begins with what was sampled, the second with what it has learnt.
    divergences = logged(folder, "policy/approx_kl")
    assert divergences[0] == 0 and divergences[2] == 0
    assert divergences[1] > 0 and divergences[3] > 0
