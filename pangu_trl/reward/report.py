"""Evaluation of a saved reward model: figures as JSON, and a page that shows them with charts."""

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
from pangu_trl.runs.report.charts import Chart, Line, histogram, line_chart
from pangu_trl.runs.report.sections import Note, Section, Table, write_sections
from pangu_trl.runs.report.words import words

from .calibration import calibration_curve
from .evaluation import are_highest, counted_pairs, ranking_metrics
from .intervals import accuracy_intervals, ratio_interval
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


@dataclass(frozen=True)
class GapGroup:
    """Pairs whose annotated scores lie about equally far apart.

    Attributes:
        gap: Mean gap.
        accuracy: Share of the pairs whose better answer has the higher reward.
        num_pairs: How many there are.
        interval: 95 % interval of the accuracy, by bootstrap over prompts; None where the prompts are too few.
    """

    gap: float
    accuracy: float
    num_pairs: int
    interval: tuple[float, float] | None


def accuracy_by_score_gap(evaluation: Evaluation) -> list[GapGroup]:
    """Pair accuracy in up to `MAX_GAP_BINS` groups of equal size, by the gap of the annotated scores.

    Pairs with the same gap stay together, so that rankings by order, whose gaps are few, make few groups.
    """
    gaps, differences = evaluation.counted_differences()
    counted = counted_pairs(evaluation.labels, evaluation.mask, evaluation.min_score_gap)
    prompts, num_prompts = counted.nonzero()[:, 0], len(counted)
    right = win_share(differences).double()
    quantiles = torch.linspace(0, 1, MAX_GAP_BINS + 1, dtype=gaps.dtype)[1:-1]
    groups = torch.bucketize(gaps, torch.quantile(gaps, quantiles).unique())
    found = []
    for group in groups.unique():
        members = groups == group
        top = torch.bincount(prompts[members], right[members], num_prompts)
        bottom = torch.bincount(prompts[members], minlength=num_prompts).double()
        interval = ratio_interval(top.numpy(), bottom.numpy())
        accuracy = right[members].mean().item()
        found.append(GapGroup(gaps[members].mean().item(), accuracy, int(members.sum()), interval))
    return found


def write_report(folder: Path, evaluation: Evaluation, source: dict[str, Any], language: str = "en") -> None:
    """Writes `metrics.json` and `report.html` into a folder.

    Args:
        folder: Made if it is missing; files of an earlier report are replaced.
        evaluation: What to report.
        source: Names of model and data; they head both files.
        language: Of the page, `en` or `zh`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        **source,
        "metrics": evaluation.metrics,
        "intervals": evaluation.intervals,
        "probes": evaluation.probes,
        "verdicts": probe_verdicts(evaluation.probes),
    }
    # NaN is no JSON: a figure that could not be computed is null.
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    say = words(language)
    lead = "; ".join(f"{name}: {value}" for name, value in source.items())
    write_sections(folder / "report.html", say["evaluation_title"], lead, _sections(evaluation, say), language)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sections(evaluation: Evaluation, say: dict[str, str]) -> list[Section]:
    figures = []
    for name, value in evaluation.metrics.items():
        interval = evaluation.intervals.get(name)
        ends = "" if interval is None else "{:.4g} – {:.4g}".format(*interval)
        figures.append([name, f"{value:.4g}", ends])
    probes = [
        [
            name,
            str(probe["prompts"]),
            *(f"{probe[key]:.4g}" for key in ("best_answer_wins", "mean_score", "mean_best_score")),
        ]
        for name, probe in evaluation.probes.items()
    ]
    verdicts = [Note(verdict, warns=True) for verdict in probe_verdicts(evaluation.probes)]
    sections = [
        Section(
            say["figures"],
            say["figures_lead"],
            table=Table([say["figure"], say["value"], say["interval"]], figures, (1, 2)),
        )
    ]
    if probes:
        names = [say[key] for key in ("probe", "prompts", "best_answer_wins", "mean_score", "mean_best_score")]
        sections.append(
            Section(say["probes"], say["probes_lead"], table=Table(names, probes, (1, 2, 3, 4)), notes=verdicts)
        )
    return [*sections, Section(say["charts"], charts=_charts(evaluation, say))]


def _charts(evaluation: Evaluation, say: dict[str, str]) -> list[Chart]:
    is_best = are_highest(evaluation.labels, evaluation.mask)
    others = evaluation.rewards[evaluation.mask & ~is_best].tolist()
    groups = {say["best_answers"]: evaluation.rewards[is_best].tolist()} | (
        {say["other_answers"]: others} if others else {}
    )
    curve = calibration_curve(evaluation.counted_differences()[1])
    filled = curve.counts > 0
    calibration = [
        Line(say["perfect"], [(0.5, 0.5), (1.0, 1.0)], style="reference"),
        Line(
            say["reward_stage"],
            list(zip(curve.confidence[filled].tolist(), curve.accuracy[filled].tolist(), strict=True)),
        ),
    ]
    by_gap = accuracy_by_score_gap(evaluation)
    points = [(group.gap, group.accuracy) for group in by_gap]
    gaps = [
        Line(say["chance"], [(by_gap[0].gap, 0.5), (by_gap[-1].gap, 0.5)], style="reference"),
        Line(say["accuracy"], points, intervals=[group.interval for group in by_gap]),
    ]
    return [
        histogram(say["scores_chart"], groups),
        line_chart(say["calibration_chart"], calibration, is_share=True, over_steps=False),
        line_chart(say["gaps_chart"], gaps, is_share=True, over_steps=False),
    ]
