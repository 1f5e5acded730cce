"""Writes the report on a run of the demo: one HTML page that needs no other file, and an overview picture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pictures import draw_overview
from results import MissingResult, RunResults, read_results

from pangu_trl.runs.report.charts import Chart, histogram
from pangu_trl.runs.report.page import charts_of, duration
from pangu_trl.runs.report.reading import read_run
from pangu_trl.runs.report.sections import Answer, Card, Note, Section, Table, Tile, write_sections
from pangu_trl.runs.report.words import words

MAX_SAMPLE_CARDS = 24

LEAD = (
    "A small GPTPangu learns to write Chinese reviews, then to write favourable ones: supervised fine-tuning, a reward "
    "model on ranked answers, PPO."
)
SECTION_TITLES = {
    "sft": ("Supervised fine-tuning", "The model starts from random weights and learns to continue reviews."),
    "reward": ("Reward model", "It learns the judge's taste from ranked answers of the fine-tuned model."),
    "ppo": (
        "PPO",
        "The fine-tuned model is optimised against the reward model; the judge's view stays hidden from it.",
    ),
}
SAMPLE_LABELS = {"base": "Random weights", "sft": "After fine-tuning", "ppo": "After PPO"}


@dataclass(frozen=True)
class Headline:
    """A figure for the top of the page: one summary key, or two for before and after."""

    label: str
    keys: tuple[tuple[str, ...], ...]
    write: Callable[[float], str]
    explanation: str


def _write_decimal(value: float) -> str:
    return f"{value:.2f}"


def _write_percent(value: float) -> str:
    return f"{value:.0%}"


HEADLINES = [
    Headline(
        "Language-model loss",
        (("sft", "eval_loss_before"), ("sft", "eval_loss_after")),
        _write_decimal,
        "Held-out reviews, before and after fine-tuning; lower is better.",
    ),
    Headline(
        "Reward model",
        (("reward", "pair_accuracy_before"), ("reward", "pair_accuracy_after")),
        _write_percent,
        "Held-out pairs of answers in the right order; chance is 50%.",
    ),
    Headline(
        "Reward", (("ppo", "reward_before"), ("ppo", "reward_after")), _write_decimal, "Before and after PPO, its aim."
    ),
    Headline(
        "Judge's score",
        (("ppo", "judge_before"), ("ppo", "judge_after")),
        _write_decimal,
        "Before and after PPO, from 0 to 1; PPO never saw it.",
    ),
    Headline("KL", (("ppo", "kl"),), _write_decimal, "Distance of PPO's model from the fine-tuned one."),
    Headline("Time", (("seconds",),), duration, "The whole pipeline."),
]


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` of a run.

    What the run did not write, such as the curves of a stage that was skipped, is named on the page in its place.

    Args:
        run_dir: Folder with `summary.json`, `{sft,reward,ppo}/trainer_state.json` and
            `samples/{base,sft,ppo,rankings.test}.jsonl`.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file in it is damaged.
    """
    results = read_results(run_dir)
    sections = [_headlines(results), _samples(results)]
    sections += [_stage(stage, results, run_dir) for stage in SECTION_TITLES]
    figures = list(_flatten(results.summary))
    if figures:
        sections.append(Section("All figures", table=Table(["summary.json", ""], figures, (1,))))
    path = run_dir / "report.html"
    write_sections(path, "pangu_trl demo", LEAD, sections)
    return path


def plot_overview(run_dir: Path) -> Path:
    """Writes `pictures/overview.png` of a run: the four pictures that tell the story, side by side."""
    path = run_dir / "pictures" / "overview.png"
    results = read_results(run_dir)
    path.parent.mkdir(exist_ok=True)
    draw_overview(results, path)
    return path


def _headlines(results: RunResults) -> Section:
    tiles, missing = [], []
    for headline in HEADLINES:
        try:
            *before, value = (headline.write(results.figure(*keys)) for keys in headline.keys)
        except MissingResult as reason:
            missing.append(str(reason))
        else:
            tiles.append(Tile(headline.label, value, headline.explanation, *before))
    return Section(tiles=tiles, notes=_left_out(missing))


def _stage(stage: str, results: RunResults, run_dir: Path) -> Section:
    title, explanation = SECTION_TITLES[stage]
    charts: list[Chart] = []
    missing = []
    try:
        # A run that was stopped has logged nothing; one that is damaged has been named by `read_results`.
        charts += charts_of([read_run(run_dir / stage)], words("en"))
    except FileNotFoundError:
        missing.append(f"{stage}/ holds no log of a run")
    for draw in {"reward": [_reward_scores], "ppo": [_judge_scores]}.get(stage, []):
        try:
            charts.append(draw(results))
        except MissingResult as reason:
            missing.append(str(reason))
    return Section(title, explanation, charts=charts, notes=_left_out(missing))


def _reward_scores(results: RunResults) -> Chart:
    return histogram("Scores of the best and worst answer, as share", results.best_and_worst())


def _judge_scores(results: RunResults) -> Chart:
    return histogram("Scores of the judge before and after PPO, as share", results.judgements(), limits=(0.0, 1.0))


def _samples(results: RunResults) -> Section:
    samples, missing = {}, []
    for name in SAMPLE_LABELS:
        try:
            records = results.records(name)
        except MissingResult as reason:
            missing.append(str(reason))
            continue
        prompts = [record["prompt"] for record in records]
        if samples and prompts != [record["prompt"] for record in next(iter(samples.values()))]:
            missing.append(f"samples/{name}.jsonl has other prompts than samples/{next(iter(samples))}.jsonl")
        else:
            samples[name] = records
    section = Section("Samples", notes=_left_out(missing))
    if not samples:
        return section
    rows = list(zip(*samples.values(), strict=True))
    cards = [_card(dict(zip(samples, row, strict=True))) for row in rows[:MAX_SAMPLE_CARDS]]
    lead = (
        f"The first {len(cards)} of {len(rows)} held-out openings with the first answer of each model (none is picked "
        "by hand) and the judge's score of that answer, from 0 to 1."
    )
    return replace(section, lead=lead, cards=cards)


def _card(records: dict[str, dict]) -> Card:
    answers = []
    before = None
    for name, record in records.items():
        score = record["scores"][0]
        verdict = "" if before is None or score == before else "better" if score > before else "worse"
        answers.append(Answer(SAMPLE_LABELS[name], f"{score:.2f}", record["responses"][0], verdict))
        before = score
    return Card(next(iter(records.values()))["prompt"], answers)


def _flatten(figures: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)


def _left_out(reasons: list[str]) -> list[Note]:
    return [Note(f"Left out: {'; '.join(reasons)}.")] if reasons else []
