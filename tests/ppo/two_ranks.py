"""Runs on every rank of test_two_processes.py: a few steps of SGD, and a run that is resumed.

    torchrun --nproc_per_node 2 tests/ppo/two_ranks.py FOLDER

FOLDER holds policy, reward model, tokenizer and prompts.json; rank 0 writes the weights that it ends with.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file

from pangu_trl import (
    GPTPanguForCausalLM,
    GPTPanguForSequenceClassification,
    GPTPanguTokenizer,
    PPOConfig,
    PPOTrainer,
)

# Greedy answers, so that they do not depend on which rank gives them; SGD, so that the step is the gradient.
SAME_STEP = dict(
    top_k=1,
    optim="sgd",
    max_grad_norm=0.0,
    learning_rate=0.05,
    critic_learning_rate=0.05,
    num_ppo_epochs=2,
    max_steps=4,
)
# 12 prompts, 4 a rollout, 2 steps a rollout: 6 steps an epoch. The checkpoint is in the middle of a rollout of the
# second epoch, which has one more; the end is in the third.
RESUMED = dict(num_ppo_epochs=2, max_steps=14, learning_rate=1e-3, critic_learning_rate=3e-3, adaptive_kl_target=0.1)
CHECKPOINT_STEP = 9


def make_trainer(folder: Path, name: str, **options) -> PPOTrainer:
    """A trainer with a batch of 4 prompts over all ranks, from the models in the folder."""
    return PPOTrainer(
        model=GPTPanguForCausalLM.from_pretrained(folder / "policy"),
        reward_model=GPTPanguForSequenceClassification.from_pretrained(folder / "reward_model"),
        args=PPOConfig(
            output_dir=str(folder / name),
            per_device_train_batch_size=4 // PartialState().num_processes,
            max_prompt_length=48,
            max_completion_length=8,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **{"save_strategy": "no"} | options,
        ),
        train_dataset=Dataset.from_list(json.loads((folder / "prompts.json").read_text("utf-8"))),
        processing_class=GPTPanguTokenizer.from_pretrained(folder / "tokenizer"),
    )


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """Trained tensors of policy and critic."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in trainer.model.named_parameters()}


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    PartialState(cpu=True)
    runs = {"same_step": make_trainer(folder, "same_step", **SAME_STEP)}
    runs["same_step"].train()
    runs["whole"] = make_trainer(folder, "whole", save_strategy="steps", save_steps=CHECKPOINT_STEP, **RESUMED)
    runs["whole"].train()
    runs["resumed"] = make_trainer(folder, "resumed", **RESUMED)
    runs["resumed"].train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{CHECKPOINT_STEP}"))
    if PartialState().is_main_process:
        for name, trainer in runs.items():
            save_file(weights(trainer), folder / f"{name}.safetensors")
    assert PartialState().num_processes == 2
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
