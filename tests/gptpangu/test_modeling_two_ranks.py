"""Two processes with gloo: tensor parallelism equals one process; ZeRO-3 loads a head that is not the embedding."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pangu_trl

pytestmark = pytest.mark.launches

SCRIPT = Path(__file__).parent / "two_ranks.py"


def make_model(tied: bool) -> pangu_trl.GPTPanguForCausalLM:
    """Weights large enough that a wrong sum shows. A vocabulary of 83 does not divide by two."""
    torch.manual_seed(int(tied))
    config = pangu_trl.GPTPanguConfig(
        vocab_size=80 if tied else 83,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        max_position_embeddings=32,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    return pangu_trl.GPTPanguForCausalLM(config).eval()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, run_on_two_ranks) -> Path:
    """The folder in which two processes left what they computed."""
    folder = tmp_path_factory.mktemp("two_ranks")
    for name, tied in (("tied", True), ("untied", False), ("differing", False)):
        make_model(tied).save_pretrained(folder / name)
    config_file = folder / "differing" / "config.json"
    config = json.loads(config_file.read_text("utf-8"))
    config_file.write_text(json.dumps(config | {"tie_word_embeddings": True}), "utf-8")
    run_on_two_ranks(SCRIPT, folder)
    return folder


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_tensor_parallelism_equals_one_process(two_ranks, kind):
    computed = load_file(two_ranks / f"{kind}.safetensors")
    model = make_model(kind == "tied")
    expected = runpy.run_path(str(SCRIPT))["compute"](model)
    assert computed.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            computed[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_tensor_parallel_model_saves_the_whole_weights(two_ranks, kind):
    saved = pangu_trl.GPTPanguForCausalLM.from_pretrained(two_ranks / f"{kind}-saved")
    for name, parameter in make_model(kind == "tied").named_parameters():
        assert torch.equal(saved.get_parameter(name), parameter), name


def test_zero3_does_not_overwrite_a_head_that_differs_from_the_embedding(two_ranks):
    loaded, model = load_file(two_ranks / "zero3.safetensors"), make_model(tied=False)
    assert torch.equal(loaded["embedding"], model.transformer.wte.weight)
    assert torch.equal(loaded["head"], model.lm_head.weight)
