"""What the tests of TRL's trainers share: a saved policy to start from, small options, and the LoRA to learn."""

from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments


@pytest.fixture
def start_dir(policy, tokenizer, tmp_path) -> Path:
    """A policy on disk: TRL loads reference models, and PEFT the base of an adapter, from where the model came from."""
    folder = tmp_path / "start"
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def options(tmp_path):
    """Makes the options of a trainer: two steps on the CPU in float32, otherwise what TRL does by default."""

    def make(config_class: type[TrainingArguments], **given) -> TrainingArguments:
        defaults = dict(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=4,
            max_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        )
        return config_class(**defaults | given)

    return make


@pytest.fixture(params=["full", "lora"])
def lora(request) -> LoraConfig | None:
    """Nothing, or an adapter that leaves it to PEFT to find the modules of GPTPangu."""
    return LoraConfig(r=4, task_type="CAUSAL_LM") if request.param == "lora" else None


@pytest.fixture(scope="session")
def pairs(reviews) -> Dataset:
    """A prompt, its own completion and that of another review."""
    return Dataset.from_list(
        [
            {"prompt": review["prompt"], "chosen": review["completion"], "rejected": other["completion"]}
            for review, other in zip(reviews, reviews[1:] + reviews[:1], strict=True)
        ]
    )
