"""The demo on several seeds: what its figures are on this machine, and how far they lie apart.

    python benchmarks/demo_seeds.py --seeds 0 1 2 3 4 --folder runs/demo-seeds
    python benchmarks/demo_seeds.py --seeds 0 --steps large     # a GPTPangu of 25 million weights

A seed draws everything anew: which reviews teach and which are held out, the first weights, the answers, the order of
training. Each run is that of `make demo`; one that has ended is not repeated, so the benchmark goes on where it was
stopped. It prints one row a seed, and the mean with the least and the greatest over the seeds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Heading, and where summary.json has the figure.
FIGURES = {
    "loss of SFT, held out": ("sft", "eval_loss_after"),
    "pair accuracy, held out": ("reward", "pair_accuracy_after"),
    "reward before PPO": ("ppo", "reward_before"),
    "reward after": ("ppo", "reward_after"),
    "KL per answer, nats": ("ppo", "kl"),
    "judge before PPO": ("ppo", "judge_before"),
    "judge after": ("ppo", "judge_after"),
    "CPU seconds": ("cpu_seconds",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", choices=("full", "large", "smoke"), default="full", help="size of the demo")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo-seeds"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="write the figures of each seed as JSON")
    options = parser.parse_args()
    rows = {seed: run(seed, options.steps, options.folder / f"{options.steps}-{seed}") for seed in options.seeds}
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    print(table(rows))


def run(seed: int, steps: str, run_dir: Path) -> dict[str, float]:
    """The figures of one seed, from its summary if it has run."""
    kept = run_dir / "seed.json"
    if not kept.is_file():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = ["--steps", steps, "--seed", str(seed), "--run-dir", str(run_dir)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            [sys.executable, str(ROOT / "recipes" / "demo" / "run.py"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        if result.returncode != 0:
            raise SystemExit(f"seed {seed} ended with {result.returncode}:\n{result.stdout[-4000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = json.loads((run_dir / "summary.json").read_text("utf-8"))
        summary["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        kept.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    summary = json.loads(kept.read_text("utf-8"))
    return {heading: find(summary, path) for heading, path in FIGURES.items()}


def find(summary: dict, path: tuple[str, ...]) -> float:
    """A figure of a summary by its keys."""
    for key in path:
        summary = summary[key]
    return summary


def table(rows: dict[int, dict[str, float]]) -> str:
    """One row a seed, then the mean and the range, as markdown."""
    lines = [f"| seed | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 1) + "|"]
    for seed, figures in rows.items():
        lines.append(f"| {seed} | {' | '.join(_short(figures[name]) for name in FIGURES)} |")
    columns = [[figures[name] for figures in rows.values()] for name in FIGURES]
    lines.append(f"| mean | {' | '.join(_short(sum(column) / len(column)) for column in columns)} |")
    lines.append(f"| range | {' | '.join(f'{_short(min(column))} to {_short(max(column))}' for column in columns)} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:z.2f}"


if __name__ == "__main__":
    main()
