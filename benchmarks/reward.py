"""Speed and memory of one reward-model step: prefixes shared, not shared, and TRL's RewardTrainer on all pairs.

    python benchmarks/reward.py --output reward_benchmark.json
    python benchmarks/reward.py --shape short

The same random rankings and the same weights for all, on CPU in float32: 61M parameters, prompts of 384 tokens,
K = 4 answers of 128 tokens. An optimiser step learns from `--prompts` prompts, `--prompts-per-pass` in a forward pass
(for TRL: all their pairs, 6 each), without dropout and gradient checkpointing. The losses must agree, or there is no
result.

With `--shape short` prompts have 32 tokens and answers 16 to 128, drawn evenly, in batches of like length, and packing
(`padding_free`) is measured too: rows of whole sequences without padding. The tokens of each way are printed, whose
ratios are what it could gain at most where time goes with tokens.

Every measurement is a process of its own, which knows its own peak memory; they take turns for `--rounds` rounds,
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

# Of each shape: tokens of a prompt, fewest and most of an answer, and what is measured, the reference last.
SHAPES: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "long": (384, 128, 128, ("shared", "unshared", "trl")),
    "short": (32, 16, 128, ("shared", "packed", "unshared", "trl")),
}
NUM_ANSWERS = 4
VOCAB_SIZE, PAD, EOS = 4000, 0, 1
LARGEST_LOSS_DIFFERENCE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4, help="prompts of an optimiser step (default: %(default)s)")
    parser.add_argument(
        "--prompts-per-pass", type=int, default=2, help="prompts of a forward pass (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one to warm up (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="times that each is measured (default: %(default)s)")
    parser.add_argument("--shape", choices=SHAPES, default="long", help="lengths of the data (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON (default: only print them)")
    parser.add_argument("--variant", choices=SHAPES["short"][3], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prompts % args.prompts_per_pass:
        parser.error("--prompts must be a multiple of --prompts-per-pass")
    if args.variant is not None:
        print(json.dumps(measure(args.variant, args)))
        return
    variants = SHAPES[args.shape][3]
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for _, variant in itertools.product(range(args.rounds), variants):
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
        trainer = build_trainer(variant, args, folder)
        trainer.add_callback(StepTimer())
        computed: list[int] = []
        trainer.model.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: computed.append(inputs[0].numel())
        )
        before = peak_memory()
        trainer.train()
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "seconds": StepTimer.seconds[1:],
        "cpu_seconds": StepTimer.cpu_seconds[1:],
        "peak_memory": peak_memory(),
        "memory_of_training": peak_memory() - before,
        "tokens_per_step": sum(computed) / (args.steps + 1),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }


def build_trainer(variant: str, arguments: argparse.Namespace, folder: str) -> Any:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import RewardConfig, RewardTrainer

    from pangu_trl import GPTPanguConfig, GPTPanguForSequenceClassification, KWiseRewardConfig, KWiseRewardTrainer

    prompt_length, _, most, _ = SHAPES[arguments.shape]
    torch.manual_seed(0)
    config = GPTPanguConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=768,
        num_layers=8,
        num_heads=12,
        max_position_embeddings=prompt_length + most,
        num_labels=1,
        pad_token_id=PAD,
    )
    model = GPTPanguForSequenceClassification(config)
    words = Tokenizer(models.WordLevel({"<pad>": PAD, "</s>": EOS}, unk_token="</s>"))
    rankings = draw_rankings(arguments.prompts, arguments.shape)
    options = dict(
        output_dir=folder,
        per_device_train_batch_size=arguments.prompts_per_pass,
        gradient_accumulation_steps=arguments.prompts // arguments.prompts_per_pass,
        max_steps=arguments.steps + 1,
        max_length=prompt_length + most,
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
        ways = {"shared": dict(prefix_sharing=True), "packed": dict(padding_free=True)}
        args = KWiseRewardConfig(**options, **ways.get(variant, dict(padding_free=False)))
    return trainer_class(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rankings),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>"),
    )


def draw_rankings(num_prompts: int, shape: str) -> list[dict[str, Any]]:
    """Rankings of random tokens, all answers with scores of their own."""
    import torch

    prompt_length, fewest, most, _ = SHAPES[shape]
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(EOS + 1, VOCAB_SIZE, (length,), generator=generator).tolist()

    def answer_length() -> int:
        return fewest if fewest == most else int(torch.randint(fewest, most + 1, (), generator=generator))

    return [
        {
            "prompt_input_ids": draw(prompt_length),
            "response_input_ids": [draw(answer_length() - 1) + [EOS] for _ in range(NUM_ANSWERS)],
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
        SystemExit: Two did not compute the same losses.
    """
    losses = {variant: measured[0]["losses"] for variant, measured in runs.items()}
    for variant, values in losses.items():
        if max(abs(a - b) for a, b in zip(values, losses["trl"], strict=True)) > LARGEST_LOSS_DIFFERENCE:
            raise SystemExit(f"the losses of {variant} differ from TRL's, so the speeds cannot be compared: {losses}")
    rows = {
        variant: {
            "prompts_per_second": args.prompts / min(second for run in measured for second in run["seconds"]),
            "cpu_seconds_per_prompt": min(second for run in measured for second in run["cpu_seconds"]) / args.prompts,
            "tokens_per_prompt": measured[0]["tokens_per_step"] / args.prompts,
            "peak_memory": max(run["peak_memory"] for run in measured),
            "memory_of_training": max(run["memory_of_training"] for run in measured),
            "loss": losses[variant][0],
        }
        for variant, measured in runs.items()
    }
    ours = [variant for variant in rows if variant in ("shared", "packed")]
    return {
        "shape": args.shape,
        "parameters": runs["shared"][0]["parameters"],
        "threads": args.threads,
        "prompts_per_step": args.prompts,
        "prompts_per_pass": args.prompts_per_pass,
        "variants": rows,
        "ratios": {
            f"{variant} / {other}": compare(rows[variant], rows[other])
            for variant in ours
            for other in rows
            if other not in ours
        },
        "runs": runs,
    }


def compare(row: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """How many times as fast one way is as the other, and what their tokens say."""
    return {
        "wall_clock": row["prompts_per_second"] / other["prompts_per_second"],
        "cpu_time": other["cpu_seconds_per_prompt"] / row["cpu_seconds_per_prompt"],
        "tokens": other["tokens_per_prompt"] / row["tokens_per_prompt"],
    }


def print_report(report: dict[str, Any]) -> None:
    print(f"{report['parameters'] / 1e6:.1f}M parameters, {report['threads']} threads, {report['shape']} prompts")
    titles = (
        f"{'prompts/s':>12}{'CPU s/prompt':>15}{'tokens/prompt':>15}{'peak GB':>10}{'of training GB':>17}{'loss':>12}"
    )
    print(f"{'':10}{titles}")
    for variant, row in report["variants"].items():
        speed = (
            f"{row['prompts_per_second']:12.3f}{row['cpu_seconds_per_prompt']:15.2f}{row['tokens_per_prompt']:15.0f}"
        )
        memory = f"{row['peak_memory'] / 1e9:10.2f}{row['memory_of_training'] / 1e9:17.2f}"
        print(f"{variant:10}{speed}{memory}{row['loss']:12.6f}")
    for name, ratio in report["ratios"].items():
        by_time = f"{ratio['wall_clock']:.2f}x, by CPU time {ratio['cpu_time']:.2f}x"
        print(f"{name}: {by_time}, by tokens {ratio['tokens']:.2f}x")


if __name__ == "__main__":
    main()
