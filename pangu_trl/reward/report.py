"""Evaluation of a saved reward model: figures as JSON, pictures, and a page that shows both."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pangu_trl.answers.journal import Journal
from pangu_trl.answers.judge import journal_arguments, judge_of_model
from pangu_trl.answers.summary import win_share
from pangu_trl.data.conversations import ENCODING_COLUMNS, EncodingColumns
from pangu_trl.models.modes import position_limit
from pangu_trl.models.reward_model import encode_response

from .calibration import calibration_curve
from .evaluation import are_highest, counted_pairs, ranking_metrics
from .intervals import accuracy_intervals
from .probes import probe_metrics, probe_verdicts

MAX_GAP_BINS = 8


@dataclass(frozen=True)
class Evaluation:
    """What a reward model gave to N rankings of up to K answers, and what follows from it.

    Attributes:
        rewards: Reward of each answer, (N, K).
        labels: Annotated scores, (N, K).
        mask: True for real answers, (N, K).
        min_score_gap: Smallest gap of annotated scores at which a pair counts.
        metrics: Figures of `ranking_metrics`.
        probes: Figures of `probe_metrics`.
        intervals: Those of `accuracy_intervals`.
    """

    rewards: Tensor
    labels: Tensor
    mask: Tensor
    min_score_gap: float
    metrics: dict[str, float]
    probes: dict[str, dict[str, float]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def counted_differences(self) -> tuple[Tensor, Tensor]:
        """Better minus worse answer of each pair that counts: of the annotated scores, and of the rewards, (M,)."""
        pairs = counted_pairs(self.labels, self.mask, self.min_score_gap)
        gaps, differences = (
            (values.unsqueeze(2) - values.unsqueeze(1))[pairs] for values in (self.labels, self.rewards)
        )
        return gaps, differences


def evaluate_rankings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Mapping[str, Any]],
    batch_size: int,
    min_score_gap: float = 0.0,
    journal: Journal | None = None,
) -> Evaluation:
    """Scores every answer of canonical rankings; a journal keeps the scores as they come.

    Raises:
        ScoringError: An answer cannot be scored; the index counts all answers.
        ValueError: There is no ordered pair.
    """
    prompts = [ranking["prompt"] for ranking in rankings for _ in ranking["responses"]]
    responses = [response for ranking in rankings for response in ranking["responses"]]
    columns = [EncodingColumns.of(ranking) for ranking in rankings for _ in ranking["responses"]]
    rows = {name: [getattr(row, name) for row in columns] for name in ENCODING_COLUMNS}
    kept = {} if journal is None else journal_arguments(journal, "scores")
    scores = judge_of_model("the reward model", model, tokenizer, batch_size)(prompts, responses, **kept, **rows)
    lengths = [len(encode_response(tokenizer, *texts)) for texts in zip(prompts, responses, columns, strict=True)]
    counts = torch.tensor([len(ranking["responses"]) for ranking in rankings])
    mask = torch.arange(int(counts.max())) < counts.unsqueeze(1)
    labels = torch.tensor([score for ranking in rankings for score in ranking["scores"]], dtype=torch.float64)
    rewards, labels, lengths = (
        torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, torch.as_tensor(values, dtype=torch.float64))
        for values in (scores, labels, lengths)
    )
    return Evaluation(
        rewards,
        labels,
        mask,
        min_score_gap,
        ranking_metrics(rewards, labels, mask, min_score_gap, lengths),
        probe_metrics(model, tokenizer, rankings, batch_size, position_limit(model)),
        accuracy_intervals(rewards, labels, mask, min_score_gap),
    )


def accuracy_by_score_gap(evaluation: Evaluation) -> list[tuple[float, float, int]]:
    """Mean gap of annotated scores, pair accuracy and number of pairs, in up to `MAX_GAP_BINS` groups of equal size.

    Pairs with the same gap stay together, so that rankings by order, whose gaps are few, make few groups.
    """
    gaps, differences = evaluation.counted_differences()
    right = win_share(differences)
    quantiles = torch.linspace(0, 1, MAX_GAP_BINS + 1, dtype=gaps.dtype)[1:-1]
    groups = torch.bucketize(gaps, torch.quantile(gaps, quantiles).unique())
    return [
        (gaps[members].mean().item(), right[members].mean().item(), int(members.sum()))
        for members in (groups == group for group in groups.unique())
    ]


def write_report(folder: Path, evaluation: Evaluation, source: dict[str, Any]) -> None:
    """Writes `metrics.json`, `report.md` and three pictures into a folder.

    Args:
        folder: Made if it is missing; files of an earlier report are replaced.
        evaluation: What to report.
        source: Names of model and data; they head both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    verdicts = probe_verdicts(evaluation.probes)
    content = {
        **source,
        "metrics": evaluation.metrics,
        "intervals": evaluation.intervals,
        "probes": evaluation.probes,
        "verdicts": verdicts,
    }
    # NaN is no JSON: a figure that could not be computed is null.
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    pictures = _draw_pictures(folder, evaluation)
    (folder / "report.md").write_text(_render(evaluation, source, pictures), encoding="utf-8")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw_pictures(folder: Path, evaluation: Evaluation) -> dict[str, str]:
    """Draws the pictures; returns their file names with what they show."""
    from matplotlib.figure import Figure

    pictures = {
        "scores.png": ("Scores of the best answers of each prompt and of the others", _draw_scores),
        "calibration.png": ("How often the preferred answer is the better one", _draw_calibration),
        "accuracy_by_gap.png": ("Pair accuracy by the gap of the annotated scores", _draw_gaps),
    }
    for name, (_, draw) in pictures.items():
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, evaluation)
        figure.savefig(folder / name, dpi=160)
    return {name: title for name, (title, _) in pictures.items()}


def _draw_scores(axes: Any, evaluation: Evaluation) -> None:
    is_best = are_highest(evaluation.labels, evaluation.mask)
    groups = [evaluation.rewards[is_best].tolist(), evaluation.rewards[evaluation.mask & ~is_best].tolist()]
    axes.hist(groups, bins=30, histtype="stepfilled", alpha=0.6, label=["best answers", "other answers"])
    axes.set(xlabel="score", ylabel="answers")
    axes.legend(frameon=False)


def _draw_calibration(axes: Any, evaluation: Evaluation) -> None:
    curve = calibration_curve(evaluation.counted_differences()[1])
    filled = curve.counts > 0
    axes.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1, linestyle="--", label="perfect")
    axes.plot(curve.confidence[filled].tolist(), curve.accuracy[filled].tolist(), marker="o", label="reward model")
    axes.set(xlabel="probability of the preferred answer", ylabel="share that is the better one")
    axes.legend(frameon=False)


def _draw_gaps(axes: Any, evaluation: Evaluation) -> None:
    groups = accuracy_by_score_gap(evaluation)
    axes.plot([gap for gap, _, _ in groups], [accuracy for _, accuracy, _ in groups], marker="o")
    axes.axhline(0.5, color="grey", linewidth=1, linestyle="--")
    axes.set(xlabel="gap of the annotated scores", ylabel="pair accuracy")


def _render(evaluation: Evaluation, source: dict[str, Any], pictures: dict[str, str]) -> str:
    lines = ["# Evaluation of a reward model", "", *(f"- {name}: {value}" for name, value in source.items()), ""]
    lines += ["| figure | value | 95 % interval |", "|---|---|---|"]
    for name, value in evaluation.metrics.items():
        interval = evaluation.intervals.get(name)
        lines.append(f"| {name} | {value:.4g} | {'' if interval is None else '{:.4g} to {:.4g}'.format(*interval)} |")
    lines += ["", "## Probes", "", "Answers that are wrong by construction, against the best answer of the prompt.", ""]
    lines += [
        "| probe | prompts | best answer wins | mean score | mean score of the best answer |",
        "|---|---|---|---|---|",
    ]
    for name, probe in evaluation.probes.items():
        values = (probe["best_answer_wins"], probe["mean_score"], probe["mean_best_score"])
        lines.append(f"| {name} | {probe['prompts']} | " + " | ".join(f"{value:.4g}" for value in values) + " |")
    lines += ["", *(f"**{verdict}**" for verdict in probe_verdicts(evaluation.probes))]
    for name, title in pictures.items():
        lines += ["", f"## {title}", "", f"![{title}]({name})"]
    return "\n".join(lines) + "\n"
