"""Evaluation looks at every example, whatever becomes of the last batch in training."""

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from pangu_trl.runs.whole_evaluation import evaluate_on_all


def test_the_last_batch_is_evaluated_though_training_drops_it(policy, tmp_path):
    rows = Dataset.from_list([{"input_ids": [number] * 4, "labels": [number] * 4} for number in range(12)])
    options = dict(per_device_train_batch_size=8, per_device_eval_batch_size=8, dataloader_drop_last=True)
    args = TrainingArguments(str(tmp_path), **options, use_cpu=True, report_to=[])
    trainer = Trainer(policy, args, train_dataset=rows, eval_dataset=rows)
    for _ in range(2):
        evaluate_on_all(trainer)
    for loader in (trainer.get_eval_dataloader(), trainer.get_test_dataloader(rows)):
        assert torch.cat([batch["input_ids"][:, 0] for batch in loader]).tolist() == list(range(12))
    assert sum(len(batch["input_ids"]) for batch in trainer.get_train_dataloader()) == 8
