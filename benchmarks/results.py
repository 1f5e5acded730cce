"""Start model, SFT on the best answers, best-of-4, DPO, GRPO and PPO beside one another, on a run of the real demo.

    python benchmarks/results.py --demo runs/demo-real --folder results
    python benchmarks/results.py --demo runs/demo-real --folder results-quick --quick    # a few steps of each

Every method starts from the demo's base model and learns from the demo's rankings of the training prompts (SFT, DPO) or
from its reward model (GRPO, PPO), with the LoRA recipes of recipes/generic; best-of-4 draws four answers of the start
model and keeps the one that the reward model prefers. The judge, whom no method sees, scores four answers (best-of-4:
one) to each held-out prompt, beside other ones of the start model. Each method and seed is a process of its own and one
JSON file; a call that was stopped goes on with those that are missing.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
# What the demos start and measure with.
sys.path[:0] = [str(RECIPES / "demo"), str(RECIPES / "demo_real")]

METHODS = ("start", "sft", "best_of_4", "dpo", "grpo", "ppo")
TRAINED = ("sft", "dpo", "grpo", "ppo")
FIGURES = (
    "judge",
    "win_rate",
    "kl",
    "words",
    "distinct_1",
    "distinct_2",
    "perplexity",
    "seconds",
    "cpu_seconds",
    "peak_gib",
)
# Student's t at 97.5 %, by degrees of freedom.
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
QUICK = {
    "sft": {"max_steps": 1, "per_device_train_batch_size": 2},
    "dpo": {"max_steps": 1, "per_device_train_batch_size": 2},
    "grpo": {"max_steps": 1, "per_device_train_batch_size": 4},
    "ppo": {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "num_rollout_batches": 2,
        "num_ppo_epochs": 1,
        "critic_warmup_steps": 0,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo-real"), help="folder of a finished real demo")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where models, answers and figures go")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to see that everything runs")
    parser.add_argument("--cell", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell is not None:
        measure(args, args.cell[0], int(args.cell[1]))
        return
    for seed in args.seeds:
        for method in args.methods:
            run_cell(args, method, seed)
    table = summarise(args.folder, args.methods, args.seeds)
    (args.folder / "results.json").write_text(json.dumps(table, indent=2) + "\n", "utf-8")
    print(write_table(table))


def run_cell(args: argparse.Namespace, method: str, seed: int) -> None:
    """Measures a method with a seed in a process of its own, unless that is done."""
    output = args.folder / f"{method}-{seed}" / "figures.json"
    if output.exists():
        print(f"{output} is there already.", flush=True)
        return
    print(f"=== {method}, seed {seed} ===", flush=True)
    options = ["--demo", args.demo, "--folder", args.folder, *(["--quick"] if args.quick else [])]
    command = [sys.executable, __file__, *options, "--cell", method, str(seed)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})


def measure(args: argparse.Namespace, method: str, seed: int) -> None:
    """Makes the answers of a method, and writes their figures."""
    from likelihoods import measure_likelihoods

    from pangu_trl.data import read_jsonl

    folder = args.folder / f"{method}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    size = json.loads((args.demo / "settings.json").read_text("utf-8"))
    started = time.perf_counter()
    model = train(args, method, seed, folder) if method in TRAINED else args.demo / "base"
    seconds = time.perf_counter() - started
    answers = judged_answers(args, size, folder, model, seed=1000 + seed, best_of=method == "best_of_4")
    # Other answers of the start model than those that `start` and `best_of_4` have.
    baseline = judged_answers(args, size, args.folder / f"baseline-{seed}", args.demo / "base", seed=2000 + seed)
    run_once(folder / "comparison.json", "evaluate", answers, "--against", baseline, "--score-column", "judge")
    samples = {"start": baseline, "ppo": answers}
    likelihoods = measure_likelihoods(args.demo / "base", model, samples, size["temperature"], folder / "lm.json")
    records = read_jsonl(answers)
    figures: dict[str, Any] = {
        **text_figures(records),
        "win_rate": json.loads((folder / "comparison.json").read_text("utf-8"))["against/win_rate"],
        # Which of four answers is kept is no model, so there is no likelihood of it.
        "kl": likelihoods["kl"] if method in TRAINED else None,
        "perplexity": likelihoods["perplexity_ppo"],
        "seconds": seconds,
        "cpu_seconds": sum(
            usage.ru_utime + usage.ru_stime
            for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        ),
        "peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20 if method in TRAINED else None,
        "first_answers": [[record["prompt"][-1]["content"], first_text(record)] for record in records[:5]],
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def train(args: argparse.Namespace, method: str, seed: int, folder: Path) -> Path:
    """Trains a method's adapter from the demo's files, or goes on with it; gives its folder."""
    from stage_launching import launch_recipe

    from pangu_trl.runs.checkpoints import last_whole_checkpoint

    model, ranked = folder / "model", args.demo / "samples" / "ranked.train.jsonl"
    options: dict[str, object] = {"model_name_or_path": args.demo / "base", "output_dir": model, "seed": seed}
    options |= {"activation_checkpointing": "false", "report_to": "none"}
    if method == "sft":
        run_once(folder / "best.jsonl", "best-of-n", ranked)
        options["train_data"] = folder / "best.jsonl"
    elif method == "dpo":
        options["train_data"] = ranked
    else:
        size = json.loads((args.demo / "settings.json").read_text("utf-8"))
        options |= {"train_data": prompts_file("train"), "reward_model": args.demo / "reward"}
        options |= {"max_completion_length": size["answer_tokens"], "temperature": size["temperature"]}
    if args.quick:
        options |= QUICK[method]
    if (model / "adapter_model.safetensors").exists():
        return model
    if model.exists() and list(model.glob("checkpoint-*")) and last_whole_checkpoint(model):
        options["resume_from_checkpoint"] = "true"
    launch_recipe(method, RECIPES / "generic" / method / "lora.yaml", options)
    return model


def judged_answers(
    args: argparse.Namespace, size: dict[str, Any], folder: Path, model: Path, seed: int, best_of: bool = False
) -> Path:
    """Four answers to each held-out prompt with the judge's scores; with `best_of` the one the reward model prefers."""
    from pangu_trl.data import read_jsonl
    from pangu_trl.data.jsonl import write_jsonl

    sampled, judged = folder / "answers.jsonl", folder / "judged.jsonl"
    limit = ["--limit", 4] if args.quick else []
    options = ["--num-answers", 4, "--max-new-tokens", size["answer_tokens"], "--temperature", size["temperature"]]
    words = ["--model", model, "--prompts", prompts_file("held-out"), "--seed", seed, "--batch-size", 80]
    run_once(sampled, "sample", *words, *options, *limit)
    if best_of and not (folder / "best.jsonl").exists():
        run_once(folder / "rewarded.jsonl", "score", sampled, "--judge", args.demo / "reward", "--score-column", "r")
        write_jsonl(folder / "best.jsonl", [best_answer(record) for record in read_jsonl(folder / "rewarded.jsonl")])
    judge = f"{RECIPES / 'demo_real' / 'friendly_judge.py'}:friendliness"
    source = folder / "best.jsonl" if best_of else sampled
    run_once(judged, "score", source, "--judge", judge, "--score-column", "judge")
    return judged


def best_answer(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the one answer that has the highest reward; of equal ones the first."""
    place = max(range(len(record["r"])), key=lambda index: record["r"][index])
    return {
        "prompt": record["prompt"],
        "responses": [record["responses"][place]],
        "finished": [record["finished"][place]],
    }


def run_once(output: Path, command: str, *words: object) -> None:
    """Runs a `pangu-trl` command that writes a file, unless the file is there."""
    from stage_launching import run_command

    if not output.exists():
        run_command(command, *words, "--output", output)


def prompts_file(split: str) -> Path:
    return ROOT / "data_cards" / "samples" / f"everyday-prompts.{split}.jsonl"


def first_text(record: dict[str, Any]) -> str:
    from friendly_judge import answer_text

    return answer_text(record["responses"][0])


def text_figures(records: list[dict[str, Any]]) -> dict[str, float]:
    """The judge's mean score, words of an answer, and the share of different word n-grams among all."""
    from friendly_judge import answer_text

    texts = [answer_text(response) for record in records for response in record["responses"]]
    scores = [score for record in records for score in record["judge"]]
    words = [text.lower().split() for text in texts]
    return {
        "judge": sum(scores) / len(scores),
        "words": sum(map(len, words)) / len(words),
        "distinct_1": distinct(words, 1),
        "distinct_2": distinct(words, 2),
    }


def distinct(texts: list[list[str]], length: int) -> float:
    """Different n-grams among all n-grams of the texts; 0 if they have none."""
    grams = Counter(tuple(words[start : start + length]) for words in texts for start in range(len(words) - length + 1))
    return len(grams) / grams.total() if grams else 0.0


def summarise(folder: Path, methods: list[str], seeds: list[int]) -> dict[str, Any]:
    """Mean of each figure over the seeds, and half of its 95 % interval by Student's t."""
    table = {}
    for method in methods:
        cells = [json.loads((folder / f"{method}-{seed}" / "figures.json").read_text("utf-8")) for seed in seeds]
        table[method] = {name: interval([cell[name] for cell in cells]) for name in FIGURES}
    return {"seeds": seeds, "methods": table}


def interval(values: list[float | None]) -> dict[str, float | None] | None:
    """Mean and half the 95 % interval; None where a method has no such figure, no interval of a single value."""
    if any(value is None for value in values):
        return None
    mean = sum(values) / len(values)
    if len(values) - 1 not in T_QUANTILES:
        return {"mean": mean, "half_interval": None}
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return {"mean": mean, "half_interval": T_QUANTILES[len(values) - 1] * deviation / math.sqrt(len(values))}


def write_table(table: dict[str, Any]) -> str:
    """The summary as a table in Markdown."""
    lines = ["| | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for method, figures in table["methods"].items():
        lines.append(f"| {method} | " + " | ".join(write_figure(figures[name]) for name in FIGURES) + " |")
    return "\n".join(lines)


def write_figure(figure: dict[str, float | None] | None) -> str:
    if figure is None:
        return ""
    half = figure["half_interval"]
    return f"{figure['mean']:.3g}" if half is None else f"{figure['mean']:.3g} ± {half:.2g}"


if __name__ == "__main__":
    main()
