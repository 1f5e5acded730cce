"""Two ranks that learn from vLLM's answers, under DDP, ZeRO-3 and FSDP2; a stand-in takes the place of vLLM."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.launches, pytest.mark.slow]

FOLDER = Path(__file__).parent
# Of a server.
RUNS = [
    ("full", "ddp"),
    ("lora", "ddp"),
    ("full", "zero3"),
    ("one_backbone", "zero3"),
    ("full", "fsdp2"),
    ("lora", "fsdp2"),
]
# Of colocated ones, and how many ranks share one.
COLOCATED = [("full", "ddp", "2"), ("one_backbone", "zero3", "1"), ("lora", "fsdp2", "1")]
# What `accelerate launch` makes of accelerate_configs/fsdp2.yaml.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


@pytest.fixture(params=RUNS + COLOCATED, ids="-".join)
def run(request) -> tuple[str, ...]:
    """Layout, how the weights are shared out, and of colocated ones how many ranks share a vLLM."""
    return request.param


@pytest.fixture
def two_ranks(models_dir, run, run_on_two_ranks) -> Path:
    """The folder in which two processes left what they found; they run once for all tests."""
    folder = models_dir / "-".join(["vllm", *run])
    script = FOLDER / ("two_ranks_vllm.py" if run in RUNS else "two_ranks_colocated.py")
    if not (folder / "served.safetensors").exists():
        run_on_two_ranks(script, models_dir, *run, **(FSDP2 if "fsdp2" in run else {}))
    return folder


def test_both_ranks_learn_from_its_answers_what_they_learn_from_generated_ones(two_ranks):
    served, generated = load_file(two_ranks / "served.safetensors"), load_file(two_ranks / "generated.safetensors")
    for name, tensor in generated.items():
        assert torch.equal(served[name], tensor), name


def test_it_gets_the_policys_whole_weights_bit_for_bit(two_ranks):
    weights, received = load_file(two_ranks / "served.safetensors"), load_file(two_ranks / "received.safetensors")
    expected = {}
    for name, tensor in weights.items():
        name = name.removeprefix("policy.")
        if name.startswith(("value_", "reward_", "lm_head", "base_model.model.lm_head")) or "lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            lora = f"policy.{name.removesuffix('.base_layer.weight')}.lora_"
            # Twice: lora_alpha is 8, the rank 4.
            added = (weights[f"{lora}B.default.weight"] @ weights[f"{lora}A.default.weight"]) * 2.0
            assert added.abs().max() > 0
            tensor = tensor + added
        expected[name.removeprefix("base_model.model.").replace(".base_layer", "")] = tensor
    assert received.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(received[name], tensor), name


@pytest.mark.parametrize("run", RUNS, ids="-".join, indirect=True)
def test_both_ranks_end_with_the_words_of_a_server_that_fails(two_ranks):
    for rank in range(2):
        words = (two_ranks / f"failure-{rank}.txt").read_text("utf-8")
        assert words.startswith("PPOTrainer: vLLM server at http://127.0.0.1:")
        assert "ZeroDivisionError" in words
