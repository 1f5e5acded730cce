"""Speed and memory of one reward-model step: prefixes shared, not shared, and TRL's RewardTrainer on all pairs.

    python benchmarks/reward.py --output reward_benchmark.json

The same random rankings and the same weights for all three, on CPU in float32: 61M parameters, prompts of 384 tokens,
K = 4 answers of 128 tokens. An optimiser step learns from `--prompts` prompts, `--prompts-per-pass` in a forward pass
(for TRL: all their pairs, 6 each), without dropout and gradient checkpointing. The losses must agree, or there is no
result.

Every measurement is a process of its own, which knows its own peak memory; the three take turns for `--rounds` rounds,
and the fastest step of each counts, so that a machine that stalls now and then favours nobody. CPU time is given too,
for machines that other processes use.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VARIANTS = ("shared", "unshared", "trl")
PROMPT_LENGTH, ANSWER_LENGTH, NUM_ANSWERS = 384, 128, 4
VOCAB_SIZE, PAD, EOS = 4000, 0, 1
LARGEST_LOSS_DIFFERENCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help="prompts of an optimiser step (default: %(default)s)")
    parser.add_argument(
        "--prompts-per-pass", type=int, default=2, help="prompts of a forward pass (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one to warm up (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="times that all three are measured (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON (default: only print them)")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prompts % args.prompts_per_pass:
        parser.error("--prompts must be a multiple of --prompts-per-pass")
    if args.variant is not None:
        print(json.dumps(measure(args.variant, args)))
        return
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for _, variant in itertools.product(range(args.rounds), VARIANTS):
        runs[variant].append(measure_in_own_process(variant, args))
        print(f"{variant}: {runs[variant][-1]}", file=sys.stderr)
    report = summarise(runs, args)
    print_report(report)
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure_in_own_process(variant: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Trains for a step to warm up and `args.steps` more, and reports losses, seconds and memory."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(args.threads)

    class StepTimer(TrainerCallback):
        seconds: list[float] = []
        cpu_seconds: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start, self.cpu_start = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)
            self.cpu_seconds.append(time.process_time() - self.cpu_start)

    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(variant, args.prompts, args.prompts_per_pass, args.steps + 1, folder)
        trainer.add_callback(StepTimer())
        before = peak_memory()
        trainer.train()
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": StepTimer.seconds[1:],
        "cpu_seconds": StepTimer.cpu_seconds[1:],
        "peak_memory": peak_memory(),
        "memory_of_training": peak_memory() - before,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }


def build_trainer(variant: str, num_prompts: int, prompts_per_pass: int, num_steps: int, folder: str) -> Any:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import RewardConfig, RewardTrainer

    from pangu_trl import GPTPanguConfig, GPTPanguForSequenceClassification, KWiseRewardConfig, KWiseRewardTrainer

    torch.manual_seed(0)
    config = GPTPanguConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        num_layers=8,
        num_heads=12,
        max_position_embeddings=PROMPT_LENGTH + ANSWER_LENGTH,
        num_labels=1,
        pad_token_id=PAD,
    )
    model = GPTPanguForSequenceClassification(config)
    words = Tokenizer(models.WordLevel({"<pad>": PAD, "</s>": EOS}, unk_token="</s>"))
    rankings = draw_rankings(num_prompts)
    options = dict(
        output_dir=folder,
        per_device_train_batch_size=prompts_per_pass,
        gradient_accumulation_steps=num_prompts // prompts_per_pass,
        max_steps=num_steps,
        max_length=PROMPT_LENGTH + ANSWER_LENGTH,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    if variant == "trl":
        options["per_device_train_batch_size"] *= NUM_ANSWERS * (NUM_ANSWERS - 1) // 2
        trainer_class, args, rankings = RewardTrainer, RewardConfig(**options), all_pairs(rankings)
    else:
        trainer_class = KWiseRewardTrainer
        args = KWiseRewardConfig(**options, prefix_sharing=variant == "shared")
    return trainer_class(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rankings),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>"),
    )


def draw_rankings(num_prompts: int) -> list[dict[str, Any]]:
    """Rankings of random tokens, all answers with scores of their own."""
    import torch

    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(EOS + 1, VOCAB_SIZE, (length,), generator=generator).tolist()

    return [
        {
            "prompt_input_ids": draw(PROMPT_LENGTH),
            "response_input_ids": [draw(ANSWER_LENGTH - 1) + [EOS] for _ in range(NUM_ANSWERS)],
            "scores": [float(score) for score in reversed(range(NUM_ANSWERS))],
        }
        for _ in range(num_prompts)
    ]


def all_pairs(rankings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rankings, best answer first, as RewardTrainer takes them: one record for each pair."""
    return [
        {"chosen_ids": ranking["prompt_input_ids"] + better, "rejected_ids": ranking["prompt_input_ids"] + worse}
        for ranking in rankings
        for better, worse in itertools.combinations(ranking["response_input_ids"], 2)
    ]


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summarise(runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    """Sums up all measurements.

    Raises:
        SystemExit: The three did not compute the same losses.
    """
    losses = {variant: measured[0]["losses"] for variant, measured in runs.items()}
    for variant, values in losses.items():
        if max(abs(a - b) for a, b in zip(values, losses["trl"], strict=True)) > LARGEST_LOSS_DIFFERENCE:
            raise SystemExit(f"the losses of {variant} differ from TRL's, so the speeds cannot be compared: {losses}")
    rows = {
        variant: {
            "prompts_per_second": args.prompts / min(second for run in measured for second in run["seconds"]),
            "cpu_seconds_per_prompt": min(second for run in measured for second in run["cpu_seconds"]) / args.prompts,
            "peak_memory": max(run["peak_memory"] for run in measured),
            "memory_of_training": max(run["memory_of_training"] for run in measured),
            "loss": losses[variant][0],
        }
        for variant, measured in runs.items()
    }
    speed = {variant: row["prompts_per_second"] for variant, row in rows.items()}
    cpu = {variant: row["cpu_seconds_per_prompt"] for variant, row in rows.items()}
    return {
        "parameters": runs["shared"][0]["parameters"],
        "threads": args.threads,
        "prompts_per_step": args.prompts,
        "prompts_per_pass": args.prompts_per_pass,
        "variants": rows,
        "shared_over_unshared": speed["shared"] / speed["unshared"],
        "shared_over_trl": speed["shared"] / speed["trl"],
        "shared_over_unshared_by_cpu_time": cpu["unshared"] / cpu["shared"],
        "shared_over_trl_by_cpu_time": cpu["trl"] / cpu["shared"],
        "runs": runs,
    }


def print_report(report: dict[str, Any]) -> None:
    print(f"{report['parameters'] / 1e6:.1f}M parameters, {report['threads']} threads")
    print(f"{'':10}{'prompts/s':>12}{'CPU s/prompt':>15}{'peak GB':>10}{'of training GB':>17}{'loss':>12}")
    for variant, row in report["variants"].items():
        speed = f"{row['prompts_per_second']:12.3f}{row['cpu_seconds_per_prompt']:15.2f}"
        memory = f"{row['peak_memory'] / 1e9:10.2f}{row['memory_of_training'] / 1e9:17.2f}"
        print(f"{variant:10}{speed}{memory}{row['loss']:12.6f}")
    for other in ("unshared", "trl"):
        by_cpu = report[f"shared_over_{other}_by_cpu_time"]
        print(f"shared / {other}: {report[f'shared_over_{other}']:.2f}x, by CPU time {by_cpu:.2f}x")


if __name__ == "__main__":
    main()
