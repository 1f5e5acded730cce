"""Trainers for the tests of the reward model."""

import copy
from pathlib import Path

import pytest
from datasets import Dataset

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer


@pytest.fixture
def make_trainer(reward_model, tokenizer, rankings, tmp_path):
    """A trainer of a copy of the tiny reward model: steps of SGD on the eight rankings, nothing saved."""

    def make(train_dataset: Dataset = rankings, folder: str | Path = "run", **options) -> KWiseRewardTrainer:
        defaults = dict(
            output_dir=str(tmp_path / folder),
            per_device_train_batch_size=8,
            max_length=128,
            max_steps=1,
            learning_rate=0.1,
            lr_scheduler_type="constant",
            optim="sgd",
            max_grad_norm=0.0,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
        )
        return KWiseRewardTrainer(
            model=copy.deepcopy(reward_model),
            args=KWiseRewardConfig(**defaults | options),
            train_dataset=train_dataset,
            eval_dataset=rankings,
            processing_class=tokenizer,
        )

    return make
