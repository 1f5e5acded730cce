"""Runs on every rank of test_reward_two_processes.py: steps of SGD, evaluations of a set that does not divide evenly.

    torchrun --nproc_per_node 2 tests/reward/two_ranks.py FOLDER

FOLDER holds reward model, tokenizer and rankings.json; rank 0 writes weights and figures.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import save_file
from sgd_steps import SGD_STEPS

from pangu_trl import GPTPanguForSequenceClassification, GPTPanguTokenizer, KWiseRewardConfig, KWiseRewardTrainer

RUNS = {"plain": dict(), "shared": dict(prefix_sharing=True), "streamed": dict()}


def make_trainer(folder: Path, name: str, **options) -> KWiseRewardTrainer:
    """A trainer with a batch of 8 prompts over all ranks; the last batch of the 11 to evaluate is uneven."""
    rankings = Dataset.from_list(json.loads((folder / "rankings.json").read_text("utf-8")))
    train_dataset = rankings.select(range(8))
    if name == "streamed":
        # Passes of 7 and 11, so that no batch ends with a pass. In two parts, which accelerate would give a rank each.
        train_dataset = rankings.select(range(7)).to_iterable_dataset(num_shards=2)
        rankings = rankings.to_iterable_dataset(num_shards=2)
    return KWiseRewardTrainer(
        model=GPTPanguForSequenceClassification.from_pretrained(folder / "reward_model"),
        args=KWiseRewardConfig(
            output_dir=str(folder / name),
            per_device_train_batch_size=4 // PartialState().num_processes,
            gradient_accumulation_steps=2,
            per_device_eval_batch_size=3,
            disable_tqdm=True,
            **SGD_STEPS | dict(max_steps=2) | options,
        ),
        train_dataset=train_dataset,
        eval_dataset=rankings,
        processing_class=GPTPanguTokenizer.from_pretrained(folder / "tokenizer"),
    )


def run(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights after training, and figures before it."""
    trainer = make_trainer(folder, name, **RUNS[name])
    figures = trainer.evaluate()
    losses = [entry["loss"] for entry in (trainer.train() and trainer.state.log_history) if "loss" in entry]
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in trainer.model.named_parameters()}
    return weights, {"losses": losses, **figures}


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    PartialState(cpu=True)
    assert PartialState().num_processes == 2
    for name in RUNS:
        weights, figures = run(folder, name)
        if PartialState().is_main_process:
            save_file(weights, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(figures))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
