"""The recipe on ONE backbone, started and gone on with as a user does it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch(reward_adapter, prompts, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in prompts), "utf-8")
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": row["prompt"]}) for row in prompts), "utf-8")

    def run(**options) -> subprocess.CompletedProcess:
        options = (
            dict(
                model_name_or_path=reward_adapter.parent / "base",
                reward_model=reward_adapter,
                train_data=tmp_path / "prompts.jsonl",
                ptx_data=tmp_path / "texts.jsonl",
                output_dir=tmp_path / "run",
                share_backbone="all",
                use_peft=True,
                lora_r=4,
                max_prompt_length=48,
                max_completion_length=8,
                per_device_train_batch_size=4,
                num_ppo_epochs=2,
                max_steps=4,
                save_strategy="steps",
                save_steps=2,
                ema_decay=0.9,
                report_to="none",
            )
            | options
        )
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return subprocess.run(
            [sys.executable, str(ROOT / "recipes" / "ppo.py"), *words],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    return run


def test_one_backbone_trains_and_goes_on_from_the_last_whole_checkpoint(launch, tmp_path):
    first = launch()
    assert first.returncode == 0, first.stderr[-3000:]
    for name in ("adapter_model.safetensors", "value_model/adapter_model.safetensors", "ema/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).exists(), name
    (tmp_path / "run" / "checkpoint-4" / "ppo_state.json").unlink()
    second = launch(resume_from_checkpoint="true", max_steps=6)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "checkpoint-4 is left out" in second.stderr
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text("utf-8"))["global_step"] == 6


def test_an_option_without_effect_is_refused(launch, reward_adapter):
    result = launch(value_model=reward_adapter)
    assert result.returncode != 0
    assert "value_model has no effect with share_backbone=all" in result.stderr
