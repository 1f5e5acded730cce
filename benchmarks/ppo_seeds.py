"""The demo's PPO stage on several seeds with everything on that could make it diverge: four passes, ptx loss, EMA.

    make demo
    python benchmarks/ppo_seeds.py --run-dir runs/demo --picture docs/ppo-seeds.png

For each seed it trains the demo's policy anew and keeps what it was on the way. The policy and its moving average then
answer the openings that were held out for the judge (the sentiment classifier, which nobody here trained). It prints
what the reward model and the judge say before and after as a table, and draws reward, KL divergence and judgements over
the steps.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "recipes" / "demo"
JUDGE = f"{DEMO / 'judge.py'}:sentiment"
# The demo learns twice from each of 20 rollouts of 4 batches; here four times, so 20 * 4 * 4 steps.
NUM_STEPS, STEPS_BETWEEN_JUDGEMENTS, STEPS_OF_A_ROLLOUT = 320, 80, 16
OPTIONS = dict(
    num_ppo_epochs=4,
    max_steps=NUM_STEPS,
    eval_steps=STEPS_BETWEEN_JUDGEMENTS,
    logging_steps=STEPS_OF_A_ROLLOUT,
    save_strategy="steps",
    save_steps=STEPS_BETWEEN_JUDGEMENTS,
    save_only_model=True,
    ptx_kind="demonstration",
    ptx_coef=0.2,
    ema_decay=0.95,
)
# Blue, orange and green that colour-blind readers tell apart.
COLOURS = ["#2f6fb3", "#d9722b", "#2a9d7f"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="A finished run of the demo.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--picture", type=Path, help="The learning curves; default: a file in --run-dir.")
    options = parser.parse_args()
    run_dir = options.run_dir.absolute()
    before = judged(run_dir / "sft", run_dir / "data" / "prompts.judge.jsonl", run_dir)
    curves = {}
    for seed in options.seeds:
        curves[seed] = run(run_dir, seed, before)
        # After each, so that an interrupted benchmark keeps what it has.
        (run_dir / "ppo-seeds.json").write_text(json.dumps(curves, indent=1), "utf-8")
    print(table(curves))
    draw(curves, options.picture or run_dir / "ppo-seeds.png")


def run(run_dir: Path, seed: int, judge_before: float) -> dict[str, list[list[float]]]:
    """Trains with a seed; returns steps and values of every figure that was logged, and of the judgements."""
    output = run_dir / f"ppo-seed-{seed}"
    prompts = run_dir / "data" / "prompts.judge.jsonl"
    files = dict(
        model_name_or_path=run_dir / "sft",
        reward_model=run_dir / "reward",
        train_data=run_dir / "data" / "prompts.ppo.jsonl",
        eval_data=prompts,
        ptx_data=run_dir / "data" / "demonstrations.train.jsonl",
        output_dir=output,
    )
    words = [word for name, value in (OPTIONS | files).items() for word in (f"--{name}", str(value))]
    script = [str(ROOT / "recipes" / "ppo.py"), "--config", str(DEMO / "ppo.yaml")]
    execute(sys.executable, *script, "--seed", str(seed), *words)
    curves: dict[str, list[list[float]]] = {}
    for entry in json.loads((output / "trainer_state.json").read_text("utf-8"))["log_history"]:
        for name, value in entry.items():
            if isinstance(value, int | float):
                curves.setdefault(name, []).append([entry["step"], value])
    curves["judge/policy"], curves["judge/average"] = [[0, judge_before]], [[0, judge_before]]
    for step in range(STEPS_BETWEEN_JUDGEMENTS, NUM_STEPS + 1, STEPS_BETWEEN_JUDGEMENTS):
        checkpoint = output / f"checkpoint-{step}"
        curves["judge/policy"].append([step, judged(checkpoint, prompts, checkpoint)])
        curves["judge/average"].append([step, judged(checkpoint / "ema", prompts, checkpoint / "ema")])
    return curves


def judged(model: Path, prompts: Path, folder: Path) -> float:
    """Mean judgement of four answers of a model to each held-out opening; `folder` gets the answers."""
    answers, scored = folder / "judge-answers.jsonl", folder / "judge-scores.jsonl"
    command = [sys.executable, "-c", "import sys; from pangu_trl.cli import main; sys.exit(main())"]
    sampling = ["--num-answers", "4", "--max-new-tokens", "16", "--batch-size", "256", "--seed", "1"]
    execute(*command, "sample", "--model", str(model), "--prompts", str(prompts), "--output", str(answers), *sampling)
    scoring = ["--judge", JUDGE, "--score-column", "judge", "--batch-size", "64"]
    execute(*command, "score", str(answers), "--output", str(scored), *scoring)
    lines = scored.read_text("utf-8").splitlines()
    scores = [score for line in lines for score in json.loads(line)["judge"]]
    return sum(scores) / len(scores)


def execute(*command: str) -> None:
    """Runs a command whose output is shown only if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")


def table(curves: dict[int, dict[str, list[list[float]]]]) -> str:
    """The figures of every seed as a table of markdown."""
    lines = [
        "| seed | reward before, after | win rate | judge before | judge after | judge of the average "
        "| largest KL per answer | largest value loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed, figures in curves.items():
        values = {name: [value for _, value in points] for name, points in figures.items()}
        rewards, judge = values["eval_reward/mean"], values["judge/policy"]
        lines.append(
            f"| {seed} | {rewards[0]:.2f}, {rewards[-1]:.2f} | {values['eval_win_rate'][-1]:.2f} | {judge[0]:.2f} "
            f"| {judge[-1]:.2f} | {values['judge/average'][-1]:.2f} | {max(values['kl/mean']):.1f} "
            f"| {max(values['value/loss']):.2f} |"
        )
    return "\n".join(lines)


def draw(curves: dict[int, dict[str, list[list[float]]]], path: Path) -> None:
    """Writes reward, KL divergence and judgements of all seeds side by side as one PNG, as the demo draws its own."""
    import matplotlib
    from matplotlib.figure import Figure

    sys.path.insert(0, str(DEMO))
    from pictures import OVERVIEW_THEME

    panels = [
        ("reward of the rollouts", "mean reward", {"reward/mean": "-"}),
        ("KL divergence", "nats per answer", {"kl/mean": "-"}),
        ("judge, held-out openings", "mean judgement", {"judge/policy": "-", "judge/average": "--"}),
    ]
    with matplotlib.rc_context(OVERVIEW_THEME | {"axes.prop_cycle": matplotlib.cycler(color=COLOURS)}):
        figure = Figure(figsize=(12.3, 3.3), layout="constrained")
        figure.get_layout_engine().set(wspace=0.04)
        for axes, (title, unit, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for index, (seed, figures) in enumerate(curves.items()):
                for name, line_style in names.items():
                    label = f"seed {seed}" + (f", {name.removeprefix('judge/')}" if len(names) > 1 else "")
                    axes.plot(
                        *zip(*figures[name], strict=True),
                        color=f"C{index % len(COLOURS)}",
                        linestyle=line_style,
                        marker="o",
                        markersize=3.5,
                        label=label,
                    )
            axes.set_title(title, fontsize=11, fontweight="bold")
            axes.set_xlabel("step")
            axes.set_ylabel(unit)
            axes.legend(fontsize=8.5)
        figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
