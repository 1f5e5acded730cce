"""Draws the overview of a run: four pictures side by side, for a page that shows images alone.

All text in them is English, since matplotlib's fonts have no Chinese characters.
"""

import contextlib
from collections.abc import Callable, Container
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from results import MissingResult, RunResults

MAX_POINTS_WITH_MARKERS = 25
NUM_BINS = 20

# Blue and orange stay apart for colour-blind readers.
OVERVIEW_THEME = {
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#c3c9d1",
    "axes.labelcolor": "#3c4450",
    "axes.prop_cycle": matplotlib.cycler(color=["#2f6fb3", "#d9722b"]),
    "grid.color": "#c3c9d1",
    "grid.alpha": 0.45,
    "text.color": "#3c4450",
    "xtick.color": "#3c4450",
    "ytick.color": "#3c4450",
}


def draw_overview(results: RunResults, path: Path, stages: Container[str]) -> None:
    """Writes the pictures of these stages as one PNG; a picture without data says what is missing."""
    pictures = [(title, draw) for stage, title, draw in PICTURES if stage in stages]
    with matplotlib.rc_context(OVERVIEW_THEME):
        figure = Figure(figsize=(4.1 * len(pictures), 3.3), layout="constrained")
        figure.get_layout_engine().set(wspace=0.04)
        for axes, (title, draw) in zip(figure.subplots(1, len(pictures)), pictures, strict=True):
            axes.set_title(title, fontsize=11, fontweight="bold")
            try:
                draw(axes, results)
            except MissingResult as missing:
                axes.set_axis_off()
                axes.text(0.5, 0.5, str(missing), ha="center", va="center", wrap=True, fontsize=9)
        figure.savefig(path)


def _draw_sft_loss(axes: Axes, results: RunResults) -> None:
    _draw_curves(axes, results, "sft", {"loss": "training", "eval_loss": "held out"})
    axes.set_ylabel("loss per token, nats")


def _draw_pair_accuracy(axes: Axes, results: RunResults) -> None:
    _draw_curves(axes, results, "reward", {"pair_accuracy": "training", "eval_pair_accuracy": "held out"})
    axes.axhline(0.5, linestyle=":", color="grey", linewidth=1.2, label="chance")
    axes.yaxis.set_major_formatter(_format_percent)
    axes.set_ylabel("pairs in the right order")
    axes.legend()


def _draw_reward(axes: Axes, results: RunResults) -> None:
    _draw_curves(axes, results, "ppo", {"reward/mean": "training"})
    axes.set_ylabel("mean reward")


def _draw_judgements(axes: Axes, results: RunResults) -> None:
    for label, scores in results.judgements().items():
        # Shares, so that groups of different size compare.
        axes.hist(
            scores,
            bins=NUM_BINS,
            range=(0.0, 1.0),
            weights=[1 / len(scores)] * len(scores),
            alpha=0.55,
            label=f"{label}, mean {sum(scores) / len(scores):.2f}",
        )
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(_format_percent)
    axes.set_xlabel("score of the judge")
    axes.set_ylabel("share of answers")
    axes.legend()


PICTURES: list[tuple[str, str, Callable[[Axes, RunResults], None]]] = [
    ("sft", "SFT: loss", _draw_sft_loss),
    ("reward", "Reward model: pair accuracy", _draw_pair_accuracy),
    ("ppo", "PPO: reward", _draw_reward),
    ("ppo", "PPO: scores of the judge", _draw_judgements),
]


def _draw_curves(axes: Axes, results: RunResults, stage: str, labels: dict[str, str]) -> None:
    curves = {}
    for metric, label in labels.items():
        with contextlib.suppress(MissingResult):
            curves[label] = results.series(stage, metric)
    if not curves:
        raise MissingResult(f"{stage}/trainer_state.json has no {' or '.join(map(repr, labels))}")
    for label, (steps, values) in curves.items():
        axes.plot(steps, values, label=label, marker="o" if len(values) <= MAX_POINTS_WITH_MARKERS else "", ms=3.5)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend()


def _format_percent(share: float, _position: int) -> str:
    return f"{100 * share:g}%"
