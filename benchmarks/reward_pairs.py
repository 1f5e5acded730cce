"""What all pairs of K ranked answers are worth: against the best and the worst answer only, on the demo's rankings.

    make demo
    python benchmarks/reward_pairs.py --demo runs/demo --output reward_pairs.json

Both start from the demo's random weights and take the same steps over the same prompts, with the demo's options; both
are measured on all pairs of the held-out rankings. Every seed is a run of each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pangu_trl.data.jsonl import read_jsonl, write_jsonl

ROOT = Path(__file__).parent.parent
FIGURES = ("pair_accuracy", "best_of_k_accuracy", "kendall_tau", "loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=ROOT / "runs/demo", help="folder of a demo (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of each kind for each of them")
    parser.add_argument("--output", type=Path, help="write the figures as JSON (default: only print them)")
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"all_pairs": [], "best_and_worst": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rankings = args.demo / "samples" / "ranked.train.jsonl"
        data = {"all_pairs": rankings, "best_and_worst": keep_best_and_worst(rankings, folder / "pairs.jsonl")}
        for seed in args.seeds:
            for kind, train_data in data.items():
                results[kind].append(train(args.demo, train_data, folder / f"{kind}-{seed}", seed))
                print(f"{kind}, seed {seed}: {results[kind][-1]}", flush=True)
    means = {kind: {f: sum(run[f] for run in runs) / len(runs) for f in FIGURES} for kind, runs in results.items()}
    print(json.dumps(means, indent=2))
    if args.output is not None:
        args.output.write_text(json.dumps({"means": means, "runs": results}, indent=2) + "\n", encoding="utf-8")


def keep_best_and_worst(rankings: Path, output: Path) -> Path:
    """Writes the rankings with two answers each; of equal scores the first answer is taken."""
    records = []
    for record in read_jsonl(rankings):
        places = range(len(record["scores"]))
        kept = [choose(places, key=record["scores"].__getitem__) for choose in (max, min)]
        if kept[0] != kept[1]:
            chosen = {name: [record[name][place] for place in kept] for name in ("responses", "scores")}
            records.append({"prompt": record["prompt"], **chosen})
    write_jsonl(output, records)
    return output


def train(demo: Path, train_data: Path, output_dir: Path, seed: int) -> dict[str, float]:
    """Runs the recipe, and returns the last figures on the held-out rankings."""
    options = {
        "config": ROOT / "recipes/demo/reward.yaml",
        "model_name_or_path": demo / "base",
        "train_data": train_data,
        "eval_data": demo / "samples" / "ranked.test.jsonl",
        "output_dir": output_dir,
        "seed": seed,
        "eval_strategy": "epoch",
        "eval_on_start": "false",
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    subprocess.run(
        [sys.executable, str(ROOT / "recipes/reward.py"), *words], check=True, capture_output=True, text=True
    )
    log = json.loads((output_dir / "trainer_state.json").read_text("utf-8"))["log_history"]
    last = next(entry for entry in reversed(log) if "eval_loss" in entry)
    return {figure: last[f"eval_{figure}"] for figure in FIGURES}


if __name__ == "__main__":
    main()
