"""Runs on every rank of test_estimators_two_processes.py: the same steps without a critic as on one process.

    torchrun --nproc_per_node 2 tests/ppo/two_ranks_estimators.py FOLDER

FOLDER holds the models, the tokenizer and prompts.json. Rank 0 writes the weights that each run ends with there.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from two_ranks import SAME_STEP, make_trainer, weights

from pangu_trl import PPOTrainer

# Greedy answers to a prompt are equal, so that what tells them apart is their place in the group.
RUNS = {
    "reinforce_plus_plus": dict(advantage_estimator="reinforce_plus_plus", loss_aggregation="sequence"),
    "grpo": dict(advantage_estimator="grpo", num_generations=2, scale_rewards="batch", dynamic_sampling_rounds=1),
}


def by_length_and_place(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    is_second = [index > 0 and prompts[index] == prompts[index - 1] for index in range(len(prompts))]
    return [len(prompt) % 7 + 3.0 * second for prompt, second in zip(prompts, is_second, strict=True)]


def run(folder: Path, name: str) -> PPOTrainer:
    """A trainer that has learnt; the same on any number of ranks."""
    options = {key: value for key, value in SAME_STEP.items() if key != "critic_learning_rate"}
    trainer = make_trainer(folder, name, texts=False, reward=by_length_and_place, **options | RUNS[name])
    trainer.train()
    return trainer


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    PartialState(cpu=True)
    for name in RUNS:
        found = weights(run(folder, name))
        if PartialState().is_main_process:
            save_file(found, folder / f"{name}.safetensors")
    assert PartialState().num_processes == 2
    check_drawing(folder)
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def check_drawing(folder: Path) -> None:
    """Where only the first rank's groups teach nothing both draw, and the second keeps what it had."""
    is_first = PartialState().is_main_process

    def dull_on_the_first_rank(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return [float(index % 2 and not is_first) for index in range(len(prompts))]

    options = dict(max_steps=1, num_generations=2, advantage_estimator="rloo", dynamic_sampling_rounds=2)
    trainer = make_trainer(folder, "drawing", texts=False, reward=dull_on_the_first_rank, **options)
    seen = []
    record = trainer._figures.record

    def watched(figures: dict) -> None:
        seen.extend(figures[name] for name in ("group/redrawn",) if name in figures)
        record(figures)

    trainer.collector.figures.record = watched
    trainer.train()
    # One group of two on each rank; the first's is drawn in both rounds, the second's never.
    assert seen == [2.0 if is_first else 0.0], seen


if __name__ == "__main__":
    main()
