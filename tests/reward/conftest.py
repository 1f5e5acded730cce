"""Trainers for the tests of the reward model."""

import copy
from pathlib import Path

import pytest
from datasets import Dataset
from sgd_steps import SGD_STEPS
from transformers import PreTrainedModel

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer


@pytest.fixture
def make_trainer(reward_model, tokenizer, rankings, tmp_path):
    """A trainer of a copy of the tiny reward model, or of the given model, on the eight rankings."""

    def make(
        train_dataset: Dataset = rankings,
        folder: str | Path = "run",
        model: PreTrainedModel | str | None = None,
        eval_dataset: Dataset | dict[str, Dataset] = rankings,
        peft_config=None,
        **options,
    ) -> KWiseRewardTrainer:
        defaults = dict(output_dir=str(tmp_path / folder), per_device_train_batch_size=8, **SGD_STEPS)
        return KWiseRewardTrainer(
            model=copy.deepcopy(reward_model) if model is None else model,
            args=KWiseRewardConfig(**defaults | options),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make


@pytest.fixture
def trained_weights():
    """Trains, and gives a copy of all weights."""

    def train(trainer: KWiseRewardTrainer) -> dict:
        trainer.train()
        return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}

    return train
