"""Draws the pictures of the demo's report: learning curves and score histograms.

All text in them is English, since matplotlib's fonts have no Chinese characters.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from results import MissingResult, RunResults

MAX_POINTS_WITH_MARKERS = 25
MIN_POINTS_TO_SMOOTH = 40
NUM_BINS = 20
STAGE_LABELS = {"sft": "SFT", "reward": "Reward model", "ppo": "PPO"}

STYLE = {
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 160,
}


def _theme(text: str, lines: str, colours: list[str], background: str = "none") -> dict:
    return STYLE | {
        "figure.facecolor": background,
        "axes.facecolor": background,
        "axes.edgecolor": lines,
        "axes.labelcolor": text,
        "axes.prop_cycle": matplotlib.cycler(color=colours),
        "grid.color": lines,
        "grid.alpha": 0.45,
        "text.color": text,
        "xtick.color": text,
        "ytick.color": text,
    }


# Blue and orange stay apart for colour-blind readers. The page shows the picture that fits its colour scheme.
THEMES = {
    "light": _theme("#3c4450", "#c3c9d1", ["#2f6fb3", "#d9722b"]),
    "dark": _theme("#c5ccd6", "#4a525e", ["#6cabee", "#f0a25c"]),
}
OVERVIEW_THEME = _theme("#3c4450", "#c3c9d1", ["#2f6fb3", "#d9722b"], background="white")


@dataclass(frozen=True)
class Panel:
    """One picture: what it shows and how to draw it.

    Attributes:
        name: File name without ending.
        stage: Stage of the demo that it belongs to.
        title: Heading.
        caption: How to read it.
        draw: Draws it; raises MissingResult if the run lacks the data.
    """

    name: str
    stage: str
    title: str
    caption: str
    draw: Callable[[Axes, RunResults], None]


def _draw_sft_loss(axes: Axes, results: RunResults) -> None:
    _draw_curves(axes, results, "sft", {"loss": "training", "eval_loss": "held out"})
    axes.set_ylabel("loss per token, nats")


def _draw_reward_loss(axes: Axes, results: RunResults) -> None:
    _draw_curves(axes, results, "reward", {"loss": "training", "eval_loss": "held out"})
    axes.set_ylabel("ranking loss")


def _draw_pair_accuracy(axes: Axes, results: RunResults) -> None:
    _draw_curves(axes, results, "reward", {"pair_accuracy": "training", "eval_pair_accuracy": "held out"})
    axes.axhline(0.5, linestyle=":", color="grey", linewidth=1.2, label="chance")
    axes.yaxis.set_major_formatter(_format_percent)
    axes.set_ylabel("pairs in the right order")
    axes.legend()


def _draw_reward_histogram(axes: Axes, results: RunResults) -> None:
    best, worst = [], []
    for record in results.records("rankings.test"):
        if "reward_scores" not in record:
            raise MissingResult("samples/rankings.test.jsonl has no 'reward_scores'")
        ranked = sorted(zip(record["scores"], record["reward_scores"], strict=True))
        if ranked[0][0] < ranked[-1][0]:
            worst.append(ranked[0][1])
            best.append(ranked[-1][1])
    if not best:
        raise MissingResult("samples/rankings.test.jsonl has no prompt whose answers differ in score")
    _draw_histograms(axes, {"worst answer": worst, "best answer": best})
    axes.set_xlabel("score of the reward model")


def _draw_judge_histogram(axes: Axes, results: RunResults) -> None:
    scores = {
        label: [score for record in results.records(name) for score in record["scores"]]
        for name, label in {results.policy_before: "before PPO", "ppo": "after PPO"}.items()
    }
    _draw_histograms(axes, scores, limits=(0.0, 1.0))
    axes.set_xlabel("score of the judge")


def _ppo_curve(metric: str, y_label: str) -> Callable[[Axes, RunResults], None]:
    def draw(axes: Axes, results: RunResults) -> None:
        _draw_curves(axes, results, "ppo", {metric: "training"})
        axes.set_ylabel(y_label)

    return draw


PANELS = [
    Panel("sft_loss", "sft", "Loss", "How surprised the model is by real reviews.", _draw_sft_loss),
    Panel("reward_loss", "reward", "Loss", "Lower when better answers outscore worse ones by more.", _draw_reward_loss),
    Panel(
        "reward_pair_accuracy",
        "reward",
        "Pair accuracy",
        "How often the better of two answers gets the higher score.",
        _draw_pair_accuracy,
    ),
    Panel(
        "reward_scores",
        "reward",
        "Scores of the best and worst answer",
        "Best and worst by the judge, to each held-out prompt; the further apart, the better.",
        _draw_reward_histogram,
    ),
    Panel(
        "judge_scores",
        "ppo",
        "Scores of the judge",
        "Answers to prompts that no stage was trained on, before and after PPO.",
        _draw_judge_histogram,
    ),
    Panel("ppo_reward", "ppo", "Reward", "What PPO maximises.", _ppo_curve("reward/mean", "mean reward")),
    Panel("ppo_kl", "ppo", "KL", "Distance from the model before PPO.", _ppo_curve("kl/mean", "mean KL, nats")),
    Panel(
        "ppo_clip_fraction",
        "ppo",
        "Clipped updates",
        "Share of tokens whose probability moved beyond the trust region.",
        _ppo_curve("policy/clip_fraction", "clip fraction"),
    ),
    Panel("ppo_value_loss", "ppo", "Value loss", "Error of the critic.", _ppo_curve("value/loss", "value loss")),
    Panel(
        "ppo_completion_length",
        "ppo",
        "Length",
        "A sudden fall or rise is a sign of reward hacking.",
        _ppo_curve("completion/length", "tokens per answer"),
    ),
]


def draw_panel(panel: Panel, results: RunResults, output_dir: Path) -> dict[str, Path]:
    """Writes a picture as PNG in each theme.

    Returns:
        The file of each theme.

    Raises:
        MissingResult: the run lacks the data; nothing is written.
    """
    paths = {}
    for theme, parameters in THEMES.items():
        with matplotlib.rc_context(parameters):
            figure = Figure(figsize=(5.6, 3.3), layout="constrained")
            panel.draw(figure.add_subplot(), results)
            paths[theme] = output_dir / f"{panel.name}-{theme}.png"
            figure.savefig(paths[theme])
    return paths


def draw_overview(panels: list[Panel], results: RunResults, path: Path) -> None:
    """Writes several pictures side by side as one PNG; a picture without data says what is missing."""
    with matplotlib.rc_context(OVERVIEW_THEME):
        figure = Figure(figsize=(4.1 * len(panels), 3.3), layout="constrained")
        figure.get_layout_engine().set(wspace=0.04)
        for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
            axes.set_title(f"{STAGE_LABELS[panel.stage]}: {panel.title.lower()}", fontsize=11, fontweight="bold")
            try:
                panel.draw(axes, results)
            except MissingResult as missing:
                axes.set_axis_off()
                axes.text(0.5, 0.5, str(missing), ha="center", va="center", wrap=True, fontsize=9)
        figure.savefig(path)


def _draw_curves(axes: Axes, results: RunResults, stage: str, labels: dict[str, str]) -> None:
    curves = {}
    for metric, label in labels.items():
        with contextlib.suppress(MissingResult):
            curves[label] = results.series(stage, metric)
    if not curves:
        raise MissingResult(f"{stage}/trainer_state.json has no {' or '.join(map(repr, labels))}")
    for label, (steps, values) in curves.items():
        if len(values) < MIN_POINTS_TO_SMOOTH:
            axes.plot(steps, values, label=label, marker="o" if len(values) <= MAX_POINTS_WITH_MARKERS else "", ms=3.5)
            continue
        window = len(values) // 15
        smooth = [sum(values[end - window : end]) / window for end in range(window, len(values) + 1)]
        (line,) = axes.plot(steps[window - 1 :], smooth, label=f"{label}, mean of {window} points")
        axes.plot(steps, values, color=line.get_color(), alpha=0.3, linewidth=0.9)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend()


def _format_percent(share: float, _position: int) -> str:
    return f"{100 * share:g}%"


def _draw_histograms(axes: Axes, groups: dict[str, list[float]], limits: tuple[float, float] | None = None) -> None:
    everything = [value for values in groups.values() for value in values]
    if not all(map(math.isfinite, everything)):
        raise MissingResult(f"not every score of {' and '.join(map(repr, groups))} is a finite number")
    low, high = limits or (min(everything), max(everything))
    for label, values in groups.items():
        mean = sum(values) / len(values)
        axes.hist(
            values,
            bins=NUM_BINS,
            range=(low, high),
            # Shares, so that groups of different size compare.
            weights=[1 / len(values)] * len(values),
            alpha=0.55,
            label=f"{label}, mean {mean:.2f}",
        )
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(_format_percent)
    axes.set_ylabel("share of answers")
    axes.legend()
