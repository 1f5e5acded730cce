"""Tables and picture of benchmarks/results.py."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Heading of a figure's column, and its digits after the point.
FIGURES = {
    "judge": ("judge", 3),
    "win_rate": ("win rate", 3),
    "kl": ("KL", 1),
    "perplexity": ("perplexity", 2),
    "words": ("words", 1),
    "distinct_1": ("distinct-1", 3),
    "distinct_2": ("distinct-2", 3),
    "seconds": ("seconds", 0),
    "cpu_seconds": ("CPU seconds", 0),
    "peak_gib": ("GiB", 1),
}
# Student's t at 97.5 %, by degrees of freedom.
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def summarise(folder: Path, methods: list[str], seeds: list[int]) -> dict[str, Any]:
    """Each figure of each method, one value a seed, and the first seed's first answers."""
    figures, answers = {}, {}
    for method in methods:
        cells = [json.loads((folder / f"{method}-{seed}" / "figures.json").read_text("utf-8")) for seed in seeds]
        figures[method] = {name: [cell[name] for cell in cells] for name in FIGURES}
        answers[method] = cells[0]["first_answers"]
    return {"seeds": seeds, "methods": figures, "first_answers": answers}


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
    """The mean of each figure over the seeds, and half of its 95 % interval by Student's t, in Markdown."""
    lines = ["| | " + " | ".join(heading for heading, _ in FIGURES.values()) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    for method, figures in table["methods"].items():
        cells = [write_figure(interval(figures[name]), digits) for name, (_, digits) in FIGURES.items()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_figure(figure: dict[str, float | None] | None, digits: int) -> str:
    if figure is None:
        return ""
    half = figure["half_interval"]
    return f"{figure['mean']:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def write_samples(table: dict[str, Any]) -> str:
    """Each method's first answer to the first held-out prompts, with the judge's score."""
    width = max(map(len, table["first_answers"]))
    blocks = []
    for answers in zip(*table["first_answers"].values(), strict=True):
        rows = zip(table["first_answers"], answers, strict=True)
        lines = [f"  {method:>{width}} {score:.2f}  {' '.join(text.split())}" for method, (_, text, score) in rows]
        blocks.append("\n".join([answers[0][0], *lines]))
    return "\n\n".join(blocks)


def draw(table: dict[str, Any], picture: Path) -> None:
    """Judge's score and win rate of each method, with intervals if there are any, and each seed's win rate by KL."""
    plot, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    methods = table["methods"]
    colours = dict(zip(methods, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for name, ax in zip(("judge", "win_rate"), axes, strict=False):
        found = {method: interval(figures[name]) for method, figures in methods.items()}
        ax.bar(
            list(found),
            [figure["mean"] for figure in found.values()],
            yerr=[figure["half_interval"] or 0.0 for figure in found.values()],
            color=[colours[method] for method in found],
            capsize=3,
        )
        ax.set_title({"judge": "judge's score", "win_rate": "win rate against the start model"}[name])
        ax.tick_params(axis="x", labelrotation=45)
    axes[1].axhline(0.5, color="grey", linewidth=0.8)
    for method, figures in methods.items():
        if None not in figures["kl"]:
            axes[2].scatter(figures["kl"], figures["win_rate"], label=method, color=colours[method])
    axes[2].set(title="win rate by distance, a dot a seed", xlabel="KL from the start model, nats an answer")
    axes[2].legend()
    plot.savefig(picture, dpi=130)
    plt.close(plot)
