"""The demo's PPO stage on several seeds with everything on that could make it diverge: four passes, ptx loss, EMA.

    make demo
    python benchmarks/ppo_seeds.py --run-dir runs/demo

For each seed it trains the demo's policy anew, has the policy and its moving average answer the openings that were
held out for the judge, and prints what the reward model and the judge (the sentiment classifier, which nobody here
trained) say before and after, and the largest KL divergence on the way.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JUDGE = f"{ROOT / 'recipes' / 'demo' / 'judge.py'}:sentiment"
# The demo learns twice from each of 20 rollouts of 4 batches; here four times, so 20 * 4 * 4 steps.
OPTIONS = dict(
    num_ppo_epochs=4,
    max_steps=320,
    eval_steps=80,
    logging_steps=16,
    ptx_kind="demonstration",
    ptx_coef=0.2,
    ema_decay=0.95,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="A finished run of the demo.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    results = []
    for seed in options.seeds:
        results.append(run(options.run_dir.absolute(), seed))
        print(json.dumps(results[-1]), flush=True)
    gains = [result["judge_policy"] - result["judge_sft"] for result in results]
    print(f"judge, policy minus sft: {', '.join(f'{gain:+.2f}' for gain in gains)}")


def run(run_dir: Path, seed: int) -> dict[str, float]:
    output = run_dir / f"ppo-seed-{seed}"
    files = dict(
        model_name_or_path=run_dir / "sft",
        reward_model=run_dir / "reward",
        train_data=run_dir / "data" / "prompts.ppo.jsonl",
        eval_data=run_dir / "data" / "prompts.judge.jsonl",
        ptx_data=run_dir / "data" / "demonstrations.train.jsonl",
        output_dir=output,
    )
    words = [word for name, value in (OPTIONS | files).items() for word in (f"--{name}", str(value))]
    script = [str(ROOT / "recipes" / "ppo.py"), "--config", str(ROOT / "recipes" / "demo" / "ppo.yaml")]
    execute(sys.executable, *script, "--seed", str(seed), *words)
    history = json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]
    rewards = [entry["eval_reward/mean"] for entry in history if "eval_reward/mean" in entry]
    return {
        "seed": seed,
        "reward_before": round(rewards[0], 2),
        "reward_after": round(rewards[-1], 2),
        "win_rate": round([entry["eval_win_rate"] for entry in history if "eval_win_rate" in entry][-1], 2),
        "largest_kl": round(max(entry.get("kl/mean", 0.0) for entry in history), 1),
        "largest_value_loss": round(max(entry.get("value/loss", 0.0) for entry in history), 2),
        "judge_sft": judged(run_dir / "sft", output),
        "judge_policy": judged(output, output),
        "judge_average": judged(output / "ema", output),
    }


def judged(model: Path, folder: Path) -> float:
    """Mean judgement of four answers of a model to each held-out opening."""
    prompts = folder.parent / "data" / "prompts.judge.jsonl"
    answers, scored = folder / f"answers-{model.name}.jsonl", folder / f"judged-{model.name}.jsonl"
    command = [sys.executable, "-c", "import sys; from pangu_trl.cli import main; sys.exit(main())"]
    sampling = ["--num-answers", "4", "--max-new-tokens", "16", "--batch-size", "256", "--seed", "1"]
    execute(*command, "sample", "--model", str(model), "--prompts", str(prompts), "--output", str(answers), *sampling)
    scoring = ["--judge", JUDGE, "--score-column", "judge", "--batch-size", "64"]
    execute(*command, "score", str(answers), "--output", str(scored), *scoring)
    lines = scored.read_text("utf-8").splitlines()
    scores = [score for line in lines for score in json.loads(line)["judge"]]
    return round(sum(scores) / len(scores), 3)


def execute(*command: str) -> None:
    """Runs a command whose output is shown only if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")


if __name__ == "__main__":
    main()
