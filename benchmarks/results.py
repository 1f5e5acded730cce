"""Start model, SFT on the best answers, best-of-4, DPO, GRPO and PPO beside one another, on a run of the real demo.

    python benchmarks/results.py --demo runs/demo-real --folder results
    python benchmarks/results.py --demo runs/demo-real --folder results-quick --quick    # a few steps of each

The demo must have got past its reward model. Every method starts from the demo's base model and learns from 200 to
256 answers: from the demo's rankings of the training prompts (SFT, DPO), or from its reward model's scores of answers
of its own (GRPO, PPO). SFT, DPO and GRPO have the LoRA recipes of recipes/generic, PPO that of the demo. Best-of-4
keeps that of the four answers of the start model which the reward model prefers. The judge, whom no method sees, scores
two answers (start: four, best-of-4: one) to each held-out prompt; the win rate is against the demo's answers of the
start model. Each method and seed is a process of its own and one JSON file; a call that was stopped goes on with those
that are missing.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from results_tables import draw, summarise, write_samples, write_table

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
# What the demos start and measure with.
sys.path[:0] = [str(RECIPES / "demo"), str(RECIPES / "demo_real")]

METHODS = ("start", "sft", "best_of_4", "dpo", "grpo", "ppo")
TRAINED = ("sft", "dpo", "grpo", "ppo")
# On top of the recipe of a method; what is not here is in the recipe. For so few steps GRPO and PPO get twice the rates
# of their recipes, and SFT a shorter warm-up; PPO's kl_coef is that of the demo when docs/results.md was made.
SETTINGS: dict[str, dict[str, object]] = {
    # The best answers to 200 prompts.
    "sft": {"max_steps": 25, "warmup_steps": 4},
    # 128 pairs of answers.
    "dpo": {"max_steps": 16},
    # 256 answers of the policy's own, 64 at a time.
    "grpo": {"max_steps": 16, "generation_batch_size": 64, "learning_rate": 1e-3},
    "ppo": {"max_steps": 16, "learning_rate": 1e-3, "critic_learning_rate": 1e-3, "kl_coef": 0.06},
}
# To each held-out prompt; the answers of `start` are those that best-of-4 chooses from.
NUM_ANSWERS = {"start": 4, "sft": 2, "dpo": 2, "grpo": 2, "ppo": 2}
# Of glibc: a process keeps all memory that it frees. Logits of DPO and GRPO are hundreds of megabytes, and fresh pages
# for each took a quarter of the time.
KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)}
SPENT = ("seconds", "cpu_seconds", "peak_gib")
QUICK = {
    "sft": {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 2},
    "dpo": {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 2},
    "grpo": {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 4, "generation_batch_size": 4},
    "ppo": {
        "max_steps": 2,
        "warmup_steps": 0,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_rollout_batches": 2,
        "num_ppo_epochs": 1,
        "critic_warmup_steps": 0,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo-real"), help="folder of a real demo")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where models, answers and figures go")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--picture", type=Path, help="PNG file for judge, win rate and KL of each method")
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
    print(f"{write_table(table)}\n\n{write_samples(table)}")
    if args.picture is not None:
        draw(table, args.picture)


def run_cell(args: argparse.Namespace, method: str, seed: int) -> None:
    """Measures a method with a seed in a process of its own, unless that is done."""
    output = args.folder / f"{method}-{seed}" / "figures.json"
    if output.exists():
        print(f"{output} is there already.", flush=True)
        return
    print(f"=== {method}, seed {seed} ===", flush=True)
    options = ["--demo", args.demo, "--folder", args.folder, *(["--quick"] if args.quick else [])]
    command = [sys.executable, __file__, *options, "--cell", method, str(seed)]
    subprocess.run(command, check=True, env=KEEPING | os.environ | {"PYTHONUNBUFFERED": "1"})


def measure(args: argparse.Namespace, method: str, seed: int) -> None:
    """Makes the answers of a method, and writes their figures."""
    from pangu_trl.data import read_jsonl

    folder = args.folder / f"{method}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings, base = read_json(args.demo / "settings.json"), args.demo / "base"
    spent = dict.fromkeys(SPENT)
    if method in TRAINED:
        model, spent = train(args, method, seed, folder, settings)
        answers = judged_answers(args, settings, method, seed, model)
        likelihoods = likelihood_figures(base, model, read_jsonl(answers), settings["temperature"])
    else:
        answers = judged_answers(args, settings, "start", seed, base)
        if method == "best_of_4":
            answers = best_answers(args, answers.with_name("answers.jsonl"), folder)
        likelihoods = likelihood_figures(base, None, read_jsonl(answers), settings["temperature"])
    baseline = judge_once(args.demo / "samples" / "start.held-out.jsonl", folder / "baseline.jsonl")
    run_once(folder / "comparison.json", "evaluate", answers, "--against", baseline, "--score-column", "judge")
    records = read_jsonl(answers)
    figures: dict[str, Any] = {
        **text_figures(records),
        "win_rate": read_json(folder / "comparison.json")["against/win_rate"],
        **likelihoods,
        **{name: spent[name] for name in SPENT},
        "first_answers": [
            [record["prompt"][-1]["content"], first_text(record), record["judge"][0]] for record in records[:5]
        ],
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def recipe_of(method: str) -> Path:
    return RECIPES / ("demo_real/ppo.yaml" if method == "ppo" else f"generic/{method}/lora.yaml")


def train(
    args: argparse.Namespace, method: str, seed: int, folder: Path, settings: dict[str, Any]
) -> tuple[Path, dict[str, float]]:
    """Trains a method's adapter from the demo's files, or goes on with it; gives its folder, and what that took."""
    model, ranked = folder / "model", args.demo / "samples" / "ranked.train.jsonl"
    options: dict[str, object] = {"model_name_or_path": args.demo / "base", "output_dir": model, "seed": seed}
    options |= {"activation_checkpointing": "false", "report_to": "none", "attn_implementation": "eager"}
    options |= SETTINGS.get(method, {})
    if settings["dtype"] == "bfloat16":
        # As PPO of the demo: the adapters learn in float32, the backbone need not be cast for each token.
        options |= {"bf16": "true", "dtype": "bfloat16"}
    if method == "sft":
        run_once(folder / "best.jsonl", "best-of-n", ranked)
        options["train_data"] = folder / "best.jsonl"
    elif method == "dpo":
        options["train_data"] = ranked
    else:
        options |= {"train_data": prompts_file("train"), "reward_model": args.demo / "reward"}
        options |= {"max_completion_length": settings["answer_tokens"], "temperature": settings["temperature"]}
    if args.quick:
        options |= QUICK[method]
    return model, launch(method, recipe_of(method), options, folder / "spent.json")


def launch(method: str, recipe: Path, options: dict[str, object], record: Path) -> dict[str, float]:
    """Trains, unless that is done, and adds what it took to what earlier calls have noted."""
    from stage_launching import launch_recipe

    from pangu_trl.runs.checkpoints import last_whole_checkpoint

    model = Path(str(options["output_dir"]))
    spent = read_json(record) if record.exists() else dict.fromkeys(SPENT, 0.0)
    if (model / "adapter_model.safetensors").exists():
        return spent
    if model.exists() and list(model.glob("checkpoint-*")) and last_whole_checkpoint(model):
        options = options | {"resume_from_checkpoint": "true"}
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        launch_recipe(method, recipe, options)
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent["seconds"] += time.perf_counter() - started
        spent["cpu_seconds"] += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        spent["peak_gib"] = max(spent["peak_gib"], after.ru_maxrss / 2**20)
        record.write_text(json.dumps(spent, indent=2) + "\n", "utf-8")
    return spent


def judged_answers(args: argparse.Namespace, settings: dict[str, Any], method: str, seed: int, model: Path) -> Path:
    """Answers of a model to the held-out prompts with the judge's scores."""
    folder = args.folder / f"{method}-{seed}"
    limit = ["--limit", 4] if args.quick else []
    options = ["--max-new-tokens", settings["answer_tokens"], "--temperature", settings["temperature"]]
    words = ["--model", model, "--prompts", prompts_file("held-out"), "--seed", 1000 + seed, "--batch-size", 80]
    run_once(folder / "answers.jsonl", "sample", *words, *options, "--num-answers", NUM_ANSWERS[method], *limit)
    return judge_once(folder / "answers.jsonl", folder / "judged.jsonl")


def best_answers(args: argparse.Namespace, sampled: Path, folder: Path) -> Path:
    """To each prompt the one answer that the reward model prefers, with the judge's score."""
    from pangu_trl.data import read_jsonl
    from pangu_trl.data.jsonl import write_jsonl

    if not (folder / "best.jsonl").exists():
        run_once(folder / "rewarded.jsonl", "score", sampled, "--judge", args.demo / "reward", "--score-column", "r")
        write_jsonl(folder / "best.jsonl", [best_answer(record) for record in read_jsonl(folder / "rewarded.jsonl")])
    return judge_once(folder / "best.jsonl", folder / "judged.jsonl")


def judge_once(answers: Path, output: Path) -> Path:
    judge = f"{RECIPES / 'demo_real' / 'friendly_judge.py'}:friendliness"
    run_once(output, "score", answers, "--judge", judge, "--score-column", "judge")
    return output


def likelihood_figures(
    start: Path, policy: Path | None, records: list[dict[str, Any]], temperature: float
) -> dict[str, float | None]:
    """Perplexity of the answers under the start model, and how far the policy that gave them is from it, if one did.

    Best-of-4 is no model, so there is no likelihood of its choices.
    """
    from likelihoods import answer_logprobs, encode_answers, mean_divergence, perplexity

    from pangu_trl.answers.sampling import load_language_model

    model, tokenizer = load_language_model(str(start))
    answers = encode_answers(tokenizer, records)
    own, reference = answer_logprobs(model, answers, (1.0, temperature))
    figures: dict[str, float | None] = {"perplexity": perplexity(own, answers), "kl": None}
    if policy is not None:
        (tuned,) = answer_logprobs(load_language_model(str(policy))[0], answers, (temperature,))
        figures["kl"] = mean_divergence(tuned, reference)
    return figures


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


if __name__ == "__main__":
    main()
