"""Recipes in this process, on a tiny model and real texts."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pangu_trl.data import write_jsonl

RECIPES = Path(__file__).parent.parent.parent / "recipes"
TRAINERS = {
    "sft": "SFTTrainer",
    "reward": "KWiseRewardTrainer",
    "ppo": "PPOTrainer",
    "dpo": "EncodedPairsTrainer",
    "grpo": "EncodedPromptsTrainer",
}
DATA = {"dpo": "reward", "grpo": "ppo"}


@pytest.fixture
def base(tmp_path, policy, tokenizer) -> str:
    """Folder of a language model."""
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def data(tmp_path, reviews, rankings) -> SimpleNamespace:
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "sft.jsonl", reviews)
    write_jsonl(folder / "reward.jsonl", list(rankings))
    write_jsonl(folder / "ppo.jsonl", [{"prompt": review["prompt"]} for review in reviews])
    return SimpleNamespace(**{stage: folder / f"{stage}.jsonl" for stage in ("sft", "reward", "ppo")})


@pytest.fixture
def run_recipe(monkeypatch, data) -> Callable[..., Any]:
    """Runs the `main` of a recipe with these options; returns its trainer."""

    def run(stage: str, inspect: Callable[[Any], None] = lambda trainer: None, **options: Any) -> Any:
        spec = importlib.util.spec_from_file_location(f"{stage}_recipe", RECIPES / f"{stage}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        trainers = []

        class Recorded(getattr(module, TRAINERS[stage])):
            def train(self, *args: Any, **kwargs: Any) -> Any:
                trainers.append(self)
                inspect(self)
                return super().train(*args, **kwargs)

        setattr(module, TRAINERS[stage], Recorded)
        defaults = dict(
            train_data=data.__dict__[DATA.get(stage, stage)],
            max_steps=2,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            report_to="none",
            save_strategy="no",
            lora_r=4,
            logging_steps=1,
            disable_tqdm=True,
        )
        if stage == "grpo":
            defaults |= dict(max_completion_length=6, num_generations=2)
        if stage == "ppo":
            defaults |= dict(max_prompt_length=48, max_completion_length=6, num_ppo_epochs=2)
        words: list[str] = []
        for name, value in (defaults | options).items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        monkeypatch.setattr(sys, "argv", [f"{stage}.py", *words])
        module.main()
        return trainers[0]

    return run
