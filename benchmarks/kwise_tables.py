"""Tables and pictures of the K-wise study, from its cells."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

LOSS_NAMES = {
    "pairwise": "all pairs",
    "plackett_luce": "Plackett-Luce",
    "adjacent": "adjacent pairs",
    "best_worst": "best against worst",
    "top1": "best of all",
}
FIGURES = {
    "pair_accuracy": "pair accuracy",
    "best_of_k_accuracy": "best of 8",
    "gain_share": "gain of best-of-8",
    "calibration_error": "calibration error",
    "calibration_error_at_temperature": "the same at its temperature",
}
NUM_RESAMPLES = 10_000
# Of fewer a bootstrap says nothing.
FEWEST_SEEDS = 3
# Colours that colour-blind readers tell apart.
COLOURS = ["#2f6fb3", "#d9722b", "#2a9d7f", "#8e5ea2", "#7f7f7f"]


def with_interval(values: Iterable[float], sign: str = "") -> str:
    """The mean of the values, one a seed, with its interval where there are seeds enough for one."""
    values = list(values)
    mean = f"{np.mean(values):{sign}.3f}"
    if len(values) < FEWEST_SEEDS:
        return mean
    low, high = interval(values)
    return f"{mean} ({low:{sign}.3f} to {high:{sign}.3f})"


def interval(values: Iterable[float]) -> tuple[float, float]:
    """95 % percentile interval of the mean by bootstrap over the values, one a seed."""
    values = np.asarray(list(values), dtype=np.float64)
    draws = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def whole_seeds(cells: list[dict]) -> dict[str, list[int]]:
    """Of each text the seeds that have all cells that any seed has, PPO aside."""
    conditions: dict[tuple[str, int], set] = defaultdict(set)
    for cell in cells:
        if not cell["ppo_steps"]:
            conditions[cell["text"], cell["seed"]].add(_condition(cell))
    most = max((len(found) for found in conditions.values()), default=0)
    seeds: dict[str, list[int]] = defaultdict(list)
    for (text, seed), found in sorted(conditions.items()):
        if len(found) == most:
            seeds[text].append(seed)
    return dict(seeds)


def report(cells: list[dict], folder: Path) -> str:
    """Draws the pictures into a folder and returns the tables as markdown."""
    seeds = whole_seeds(cells)
    parts = []
    for text, of_text in seeds.items():
        chosen = [c for c in cells if c["text"] == text and c["seed"] in of_text and not c["ppo_steps"]]
        parts += [f"### {text}, {len(of_text)} seeds", "", *against_all_pairs(chosen), "", *by_condition(chosen), ""]
        draw(chosen, folder / f"kwise-study-{text}.png")
    return "\n".join(parts + ppo_table(cells))


def against_all_pairs(cells: list[dict]) -> list[str]:
    """What each loss gains or loses against all pairs with K above 2, the mean over all conditions of a seed."""
    lines = ["| loss | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    lines[0] = lines[0].replace("| loss |", "| against all pairs |")
    for loss in list(LOSS_NAMES)[1:]:
        entries = []
        for figure in FIGURES:
            entries.append(with_interval(paired(cells, loss, figure).values(), "+"))
        lines.append(f"| {LOSS_NAMES[loss]} | " + " | ".join(entries) + " |")
    return lines


def paired(cells: list[dict], loss: str, figure: str, only: Callable[[dict], bool] = bool) -> dict[int, float]:
    """Of each seed the mean difference of a figure to all pairs on the same rankings."""
    values = {(_condition(cell), cell["seed"]): cell[figure] for cell in cells if only(cell)}
    differences: dict[int, list[float]] = defaultdict(list)
    for (condition, seed), value in values.items():
        if condition[0] == loss:
            differences[seed].append(value - values[("pairwise", *condition[1:]), seed])
    return {seed: float(np.mean(found)) for seed, found in sorted(differences.items())}


def by_condition(cells: list[dict]) -> list[str]:
    """Held-out pair accuracy of every condition, the mean over the seeds and its interval."""
    found: dict[tuple, list[float]] = defaultdict(list)
    for cell in cells:
        found[_condition(cell)].append(cell["pair_accuracy"])
    noises = sorted({cell["noise"] for cell in cells})
    lines = ["| K | prompts | loss | " + " | ".join(f"{noise:.0%} wrong" for noise in noises) + " |"]
    lines.append("|---" * (len(noises) + 3) + "|")
    for answers, prompts in sorted({(cell["num_answers"], cell["num_prompts"]) for cell in cells}):
        for loss, name in LOSS_NAMES.items():
            if (loss, answers, noises[0], prompts) not in found:
                continue
            entries = []
            for noise in noises:
                entries.append(with_interval(found[loss, answers, noise, prompts]))
            name = "all five" if answers == 2 else name
            lines.append(f"| {answers} | {prompts} | {name} | " + " | ".join(entries) + " |")
    return lines


def ppo_table(cells: list[dict]) -> list[str]:
    """What the judge thinks of the policy before and after PPO against the reward model of each loss."""
    followed = [cell for cell in cells if cell["ppo_steps"]]
    if not followed:
        return ["PPO was not run."]
    lines = ["| text | loss | seeds | judge before PPO | after |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for cell in followed:
        groups[cell["text"], cell["loss"]].append(cell)
    for (text, loss), group in groups.items():
        before, after = (np.mean([cell[name] for cell in group]) for name in ("judge_before", "judge_after"))
        lines.append(f"| {text} | {LOSS_NAMES[loss]} | {len(group)} | {before:.2f} | {after:.2f} |")
    return lines


def draw(cells: list[dict], path: Path) -> None:
    """Writes pair accuracy against K, a panel for each noise: solid at equal labels, dashed at equal prompts."""
    import matplotlib.pyplot as pyplot

    noises = sorted({cell["noise"] for cell in cells})
    by_k: dict[tuple, list[float]] = defaultdict(list)
    for cell in cells:
        by_k[_condition(cell)].append(cell["pair_accuracy"])
    # With K = 4 both kinds of equality are one.
    common = next(cell["num_prompts"] for cell in cells if cell["num_answers"] == 4)
    figure, panels = pyplot.subplots(
        1, len(noises), figsize=(4.1 * len(noises), 3.3), sharey=True, layout="constrained"
    )
    for panel, noise in zip(np.atleast_1d(panels), noises, strict=True):
        for (loss, name), colour in zip(LOSS_NAMES.items(), COLOURS, strict=True):
            for style, prompts_of in (("-", lambda k: common * 4 // k), ("--", lambda k: common)):
                points = []
                for answers in (2, 4, 8):
                    values = by_k.get(("pairwise" if answers == 2 else loss, answers, noise, prompts_of(answers)))
                    if values:
                        points.append((answers, float(np.mean(values)), *interval(values)))
                answers, means, lows, highs = map(np.array, zip(*points, strict=True))
                label = name if style == "-" else None
                panel.plot(answers, means, style, color=colour, marker="o", markersize=3.5, label=label)
                if style == "-" and len({cell["seed"] for cell in cells}) >= FEWEST_SEEDS:
                    panel.fill_between(answers, lows, highs, color=colour, alpha=0.08)
        panel.set_title(f"{noise:.0%} of the pairs wrong", fontsize=11)
        panel.set_xlabel("K (solid: equal labels, dashed: equal prompts)")
        panel.set_xticks([2, 4, 8])
        panel.grid(alpha=0.4)
    np.atleast_1d(panels)[0].set_ylabel("held-out pair accuracy")
    np.atleast_1d(panels)[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _condition(cell: dict) -> tuple[str, int, float, int]:
    return cell["loss"], cell["num_answers"], cell["noise"], cell["num_prompts"]
