"""Adapters that are more than a plain new LoRA, on two processes: reference, learning, saving and resume."""

import json
from pathlib import Path

import adapters
import pytest
import torch
from launching import config_for_cpu, launch_script
from peft import PeftModel
from rank import PROBE, PROBE_COMPLETION
from safetensors.torch import load_file

from pangu_trl import GPTPanguForCausalLM

pytestmark = [pytest.mark.launches, pytest.mark.slow]

OPTIMISERS = {"zero2": "sgd", "zero3": "sgd", "fsdp2": "adamw"}


@pytest.fixture(scope="module", params=OPTIMISERS)
def backend(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def output(workspace, backend) -> Path:
    """What two processes left."""
    folder = workspace / f"adapters-{backend}"
    folder.mkdir()
    script = Path(adapters.__file__)
    config = config_for_cpu(backend, workspace)
    launch_script(config, script, workspace, folder, OPTIMISERS[backend], errors=workspace / f"{folder.name}.log")
    return folder


@pytest.fixture
def found(output, case) -> dict:
    return json.loads((output / "found.json").read_text("utf-8"))[case]


@pytest.fixture(params=adapters.CASES)
def case(request) -> str:
    return request.param


def logprobs(model: torch.nn.Module) -> torch.Tensor:
    """Of the fixed input, by the model's own call."""
    answers = PROBE[:, -PROBE_COMPLETION:, None]
    with torch.no_grad():
        logits = model.eval()(input_ids=PROBE).logits[:, -PROBE_COMPLETION - 1 : -1]
    return logits.log_softmax(-1).gather(-1, answers).squeeze(-1)


def test_the_reference_is_the_start_or_is_asked_for(found, case, backend, workspace):
    is_copied = case in adapters.COPIED
    assert found["has_reference"] == is_copied
    if is_copied and backend == "zero3":
        assert "under ZeRO-3 pass ref_model, a second copy of the policy, since" in found["refusal"]
    else:
        assert found["refusal"] is None
    make, _ = adapters.CASES[case]
    start = logprobs(make(GPTPanguForCausalLM.from_pretrained(workspace / "base")))
    torch.testing.assert_close(torch.tensor(found["reference"]), start, atol=1e-5, rtol=1e-5)
    assert found["kl"][0] == pytest.approx(0, abs=1e-5)
    assert (torch.tensor(found["logprobs"]) - start).abs().max() > 2e-5


def test_two_processes_learn_what_one_learns(found, case, backend, workspace, tmp_path):
    one = adapters.run(workspace, tmp_path, case, OPTIMISERS[backend])
    assert found["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-5)
    assert found["kl"] == pytest.approx(one["kl"], rel=1e-3, abs=1e-5)
    for name in ("logprobs", "values"):
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(one[name]), atol=1e-4, rtol=1e-4)


def test_the_folder_is_the_policy_and_a_resumed_run_ends_with_the_same_bits(found, case, output, workspace):
    loaded = PeftModel.from_pretrained(GPTPanguForCausalLM.from_pretrained(workspace / "base"), output / case)
    torch.testing.assert_close(logprobs(loaded), torch.tensor(found["logprobs"]), atol=1e-5, rtol=1e-5)
    for name in ("adapter_model.safetensors", "value_head.safetensors"):
        whole, resumed = (load_file(output / folder / name) for folder in (case, f"{case}-resumed"))
        assert whole and whole.keys() == resumed.keys()
        for key, tensor in whole.items():
            assert torch.equal(resumed[key], tensor), key
