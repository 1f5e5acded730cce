"""Recipes and plans of a stage, written in a line."""

import pytest

from pangu_trl.planning.launch import Launch
from pangu_trl.planning.memory import Plan
from pangu_trl.planning.models import load_config
from pangu_trl.planning.settings import read_settings


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of a stage and reads it."""

    def write(stage: str, text: str = "", model: str = "pangu-2.6b"):
        path = tmp_path / f"{stage}.yaml"
        is_open = stage not in ("ppo", "grpo") and "max_length" not in text
        # PPO alone is in float32 unless told otherwise.
        path.write_text("max_length: 512\n" * is_open + "bf16: true\n" * (stage == "ppo") + text)
        return read_settings(path, model)

    return write


@pytest.fixture
def plan(recipe):
    def make(stage: str, launch: Launch, text: str = "", model: str = "pangu-2.6b") -> Plan:
        return Plan(recipe(stage, text, model), launch, load_config(model))

    return make
