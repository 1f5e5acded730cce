"""Golden models of the reference implementation, and what compares one forward pass with another."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import pangu_trl


@pytest.fixture
def load_golden(fixtures: Path) -> Callable[..., tuple["pangu_trl.GPTPanguForCausalLM", dict[str, Tensor]]]:
    """`load_golden(name, attention)` -> the model of a fixture in eval mode, and its golden tensors."""

    def load(name: str, attention: str = "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(fixtures / name, attn_implementation=attention)
        return model.eval(), load_file(fixtures / name / "golden.safetensors")

    return load
