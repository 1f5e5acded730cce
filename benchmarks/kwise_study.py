"""Which loss over K ranked answers trains the best reward model? All combinations, with intervals over seeds.

    python benchmarks/kwise_study.py --run-dir runs/kwise-study --budget 180
    python benchmarks/kwise_study.py --run-dir runs/kwise-study --report docs

{all pairs, Plackett-Luce, adjacent pairs, best against worst, best of all} x K in {2, 4, 8} x {0, 20, 40} % of pairs
turned round by a Bradley-Terry annotator x {equal prompts, equal labels} x seeds x two texts. A label is an answer that
the annotator puts into its order. The answers are those of a small fine-tuned GPTPangu of each text.

One line a cell goes to `cells.jsonl` as soon as it is measured; another start with the same settings goes on from it.
Whole seeds come first, so that what is there after any time compares. docs/kwise-study.md says what came out.
"""

import argparse
import gc
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import datasets
import kwise_cells
import kwise_tables
import kwise_texts
import torch
import transformers
from kwise_cells import Cell, Pool, run_cell
from kwise_texts import Size, prepare

LOSSES = ("pairwise", "plackett_luce", "adjacent", "best_worst", "top1")
NUM_ANSWERS, NOISES = (2, 4, 8), (0.0, 0.2, 0.4)
# At this K equal prompts and equal labels are the same rankings.
COMMON_K = 4
TEXTS = ("reviews", "newspaper")


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        size: Of texts and models.
        prompts: Rankings with equal prompts, and with K = 4.
        ppo_steps: Optimiser steps of PPO where it follows; 0 for none.
    """

    size: Size = Size()
    prompts: int = 384
    ppo_steps: int = 80


QUICK = Plan(kwise_texts.QUICK, 8, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/kwise-study"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default: 1 to 5")
    parser.add_argument("--ppo-seeds", type=int, nargs="*", default=[1], help="seeds that PPO follows (default: 1)")
    parser.add_argument("--budget", type=float, default=180.0, help="minutes; begins no cell after them")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny texts and models and a few cells, to see it run")
    parser.add_argument("--report", type=Path, help="only write kwise-study-*.png here, and print the tables")
    args = parser.parse_args()
    if args.report is not None:
        print(kwise_tables.report(read_cells(args.run_dir), args.report))
        return
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    plan = QUICK if args.quick else Plan()
    cells = list(grid(plan, args.seeds, args.ppo_seeds))
    if args.quick:
        cells = [cell for cell in cells if (cell.num_answers, cell.noise) in ((2, 0.0), (4, 0.2))]
    run(plan, cells, args.run_dir, time.monotonic() + 60 * args.budget)


def grid(plan: Plan, seeds: list[int], ppo_seeds: list[int]) -> Iterator[Cell]:
    """All different cells, seed by seed: with K = 2 the losses are one, with `COMMON_K` the two kinds of equality."""
    for seed in seeds:
        for text in TEXTS:
            for num_answers in NUM_ANSWERS:
                by_labels = plan.prompts * COMMON_K // num_answers
                for num_prompts in dict.fromkeys((plan.prompts, by_labels)):
                    for noise in NOISES:
                        for loss in LOSSES[:1] if num_answers == 2 else LOSSES:
                            yield Cell(text, loss, num_answers, noise, num_prompts, seed)
    for seed in ppo_seeds if plan.ppo_steps else ():
        for text in TEXTS:
            for loss in LOSSES:
                yield Cell(text, loss, COMMON_K, 0.2, plan.prompts, seed, plan.ppo_steps)


def run(plan: Plan, cells: list[Cell], run_dir: Path, deadline: float) -> None:
    """Runs what is missing in `run_dir`, up to the deadline by `time.monotonic`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    check_settings(plan, run_dir)
    done = {_cell_of(record) for record in read_cells(run_dir)}
    missing = [cell for cell in cells if cell not in done]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them are there", flush=True)
    if not missing:
        return
    texts = prepare(run_dir / "texts", plan.size)
    pools = {name: Pool(text.model, text.rankings("train"), text.rankings("test")) for name, text in texts.items()}
    # Every training collects garbage, and what is there by now is none.
    gc.freeze()
    started = time.monotonic()
    for number, cell in enumerate(missing):
        if time.monotonic() > deadline:
            print(f"The budget is spent; {len(missing) - number} cells are missing. Start again to go on.")
            return
        record = run_cell(cell, pools[cell.text], texts[cell.text].judge)
        append(run_dir / "cells.jsonl", record)
        left = (time.monotonic() - started) / (number + 1) * (len(missing) - number - 1)
        print(
            f"{number + 1}/{len(missing)} {cell}: pair accuracy {record['pair_accuracy']:.3f}, gain "
            f"{record['gain_share']:.2f}; {left / 60:.0f} min left",
            flush=True,
        )


def check_settings(plan: Plan, run_dir: Path) -> None:
    """Writes down what the cells of a folder are made with, or compares.

    Raises:
        SystemExit: The folder was made with something else.
    """
    code = b"".join(Path(module.__file__).read_bytes() for module in (kwise_cells, kwise_texts))
    settings = asdict(plan) | {"code": hashlib.sha256(code).hexdigest()}
    path = run_dir / "settings.json"
    if not path.exists():
        path.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        return
    found = json.loads(path.read_text("utf-8"))
    different = [name for name in settings if settings[name] != found.get(name)]
    if different:
        raise SystemExit(
            f"{run_dir}: its cells were made with another {' and another '.join(different)}, which do not compare with "
            "new ones. Take another --run-dir."
        )


def append(path: Path, record: dict) -> None:
    """Adds a line by one write, which is on the disk when this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(record) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def read_cells(run_dir: Path) -> list[dict]:
    """The measured cells. A last line that was cut off is taken out of the file: its cell is run again."""
    path = run_dir / "cells.jsonl"
    if not path.exists():
        return []
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if rest:
        os.truncate(path, len(whole) + 1 if whole else 0)
    return [json.loads(line) for line in whole.splitlines()]


def _cell_of(record: dict) -> Cell:
    return Cell(**{field.name: record[field.name] for field in fields(Cell)})


if __name__ == "__main__":
    main()
