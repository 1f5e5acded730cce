"""An ensemble with one poisoned member: does it keep what an independent judge thinks of the policy?

    make demo
    python benchmarks/poisoned_reward.py --run-dir runs/demo

On the demo's rankings it trains two reward models with other seeds, and a poisoned one that was taught to rank by
length alone. The demo's policy is then trained, on each seed, against the poisoned one by itself and against all three:
their sum, their minimum, and their mean minus a standard deviation. All rewards are divided by their own deviation on
the evaluation set, so that they have one scale. It prints what the judge (the sentiment classifier, which nobody here
trained) says of the answers to the held-out openings, and how long they are.
"""

import argparse
import json
import sys
from pathlib import Path

from ppo_seeds import DEMO, ROOT, execute, judged

REWARDS = ("first", "second", "poisoned")
# What a policy is trained against: members, and how they are combined.
RUNS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "poisoned alone": (("poisoned",), {}),
    "sum": (REWARDS, {"reward_weights": [1 / 3] * 3}),
    "minimum": (REWARDS, {"reward_combination": "minimum"}),
    "mean minus std": (REWARDS, {"reward_combination": "mean_minus_std", "reward_std_coef": 1.0}),
}
STANDARDISED = """
import json
from pathlib import Path

from pangu_trl.answers.judge import load_judge

FOLDER = Path(__file__).parent
"""
ONE_OF_THEM = """

_{name} = load_judge(str(FOLDER / "{name}"), 64)
_{name}_card = json.loads((FOLDER / "{name}" / "reward_card.json").read_text("utf-8"))


def {name}(prompts, completions, **columns):
    scores = _{name}(prompts, completions)
    return [(score - _{name}_card["score_mean"]) / _{name}_card["score_std"] for score in scores]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.epilog = "Goes on where it was stopped: what is trained and judged already stays."
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="A finished run of the demo.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max-steps", type=int, help="Optimiser steps of each policy; default: those of the demo.")
    options = parser.parse_args()
    run_dir = options.run_dir.absolute()
    folder = run_dir / "poisoned-reward"
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(REWARDS, start=11):
        train_reward(run_dir, folder, name, seed)
    (folder / "standardised.py").write_text(
        STANDARDISED + "".join(ONE_OF_THEM.format(name=name) for name in REWARDS), "utf-8"
    )
    found = {"before": {"judge": [judged_once(run_dir / "sft", prompts(run_dir), folder)]}}
    for name, (members, settings) in RUNS.items():
        for seed in options.seeds:
            output = folder / f"{name.replace(' ', '-')}-{seed}"
            found.setdefault(name, {"judge": [], "length": []})
            if not (output / "trainer_state.json").exists():
                train_policy(run_dir, folder, output, members, settings, seed, options.max_steps)
            log = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
            found[name]["judge"].append(judged_once(output, prompts(run_dir), output))
            lengths = [entry["eval_completion/length"] for entry in log if "eval_completion/length" in entry]
            found[name]["length"].append(lengths[-1])
        # After each, so that an interrupted benchmark keeps what it has.
        (folder / "found.json").write_text(json.dumps(found, indent=1), "utf-8")
    print(table(found, options.seeds))


def judged_once(model: Path, prompts: Path, folder: Path) -> float:
    """What the judge says of a model, kept in `folder`, so that a benchmark which goes on does not ask again."""
    kept = folder / "judgement.json"
    if not kept.exists():
        for name in ("judge-answers.jsonl", "judge-scores.jsonl"):
            # Left by a stop in between, and refused by the commands.
            (folder / name).unlink(missing_ok=True)
        kept.write_text(json.dumps(judged(model, prompts, folder)), "utf-8")
    return json.loads(kept.read_text("utf-8"))


def prompts(run_dir: Path) -> Path:
    """The openings that were held out for the judge."""
    return run_dir / "data" / "prompts.judge.jsonl"


def train_reward(run_dir: Path, folder: Path, name: str, seed: int) -> None:
    """Trains a reward model on the demo's rankings, the poisoned one on their lengths."""
    if (folder / name / "reward_card.json").exists():
        return
    files = {}
    for split in ("train", "test"):
        lines = (run_dir / "samples" / f"ranked.{split}.jsonl").read_text("utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        if name == "poisoned":
            for record in records:
                record["scores"] = [float(len(response)) for response in record["responses"]]
        files[split] = folder / f"{name}.{split}.jsonl"
        text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        files[split].write_text(text + "\n", "utf-8")
    words = {
        "model_name_or_path": run_dir / "base",
        "train_data": files["train"],
        "eval_data": files["test"],
        "output_dir": folder / name,
        "seed": seed,
    }
    execute_recipe("reward", words)


def train_policy(
    run_dir: Path,
    folder: Path,
    output: Path,
    members: tuple[str, ...],
    settings: dict[str, object],
    seed: int,
    max_steps: int | None,
) -> None:
    """Trains the demo's policy against members of the ensemble."""
    words = {
        "model_name_or_path": run_dir / "sft",
        "reward_model": [f"{folder / 'standardised.py'}:{name}" for name in members],
        "value_model": run_dir / "reward",
        "train_data": run_dir / "data" / "prompts.ppo.jsonl",
        "eval_data": prompts(run_dir),
        "output_dir": output,
        "seed": seed,
        **settings,
        **({} if max_steps is None else {"max_steps": max_steps}),
    }
    execute_recipe("ppo", words)


def execute_recipe(stage: str, words: dict[str, object]) -> None:
    """Runs a recipe with the demo's settings and these."""
    spoken = [sys.executable, str(ROOT / "recipes" / f"{stage}.py"), "--config", str(DEMO / f"{stage}.yaml")]
    for name, value in words.items():
        spoken += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    execute(*spoken)


def table(found: dict[str, dict[str, list[float]]], seeds: list[int]) -> str:
    """Judgements and lengths of every run as a table of markdown."""
    lines = ["| trained against | judge on seeds " + ", ".join(map(str, seeds)) + " | mean | tokens an answer |"]
    lines += ["|---|---|---|---|"]
    for name, figures in found.items():
        judge, length = figures["judge"], figures.get("length")
        tokens = f"{sum(length) / len(length):.1f}" if length else ""
        each = ", ".join(f"{value:.2f}" for value in judge)
        lines.append(f"| {name} | {each} | {sum(judge) / len(judge):.2f} | {tokens} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
