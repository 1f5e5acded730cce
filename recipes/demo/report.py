"""Writes the report on a run of the demo: one HTML page that needs no other file, and an overview picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pictures import draw_overview
from results import MissingResult, RunResults, read_results

from pangu_trl.runs.report.charts import Chart, histogram
from pangu_trl.runs.report.page import charts_of
from pangu_trl.runs.report.reading import read_run
from pangu_trl.runs.report.sections import Answer, Card, Note, Section, Table, Tile, write_sections
from pangu_trl.runs.report.words import words

MAX_SAMPLE_CARDS = 24


@dataclass(frozen=True)
class Headline:
    """A figure for the top of the page: one summary key, or two for before and after."""

    label: str
    keys: tuple[tuple[str, ...], ...]
    write: Callable[[float], str]
    explanation: str


@dataclass(frozen=True)
class Story:
    """What the page of a demo says beside figures and charts.

    Attributes:
        title: Heading of the page.
        lead: What happens, in one or two sentences.
        language: Of prompts and answers, as HTML names it.
        headlines: Figures at the top.
        sections: Title and explanation of each stage, by its name.
        samples: What the answers of each model are called, by file name in `samples/`.
        policy_before: File of the answers before PPO.
    """

    title: str
    lead: str
    language: str
    headlines: Sequence[Headline]
    sections: Mapping[str, tuple[str, str]]
    samples: Mapping[str, str]
    policy_before: str


def decimal(value: float) -> str:
    """Two places."""
    return f"{value:.2f}"


def percent(value: float) -> str:
    """Whole percent."""
    return f"{value:.0%}"


def write_report(run_dir: Path, story: Story) -> Path:
    """Writes `report.html` of a run.

    What the run did not write, such as the curves of a stage that was skipped, is named on the page in its place.

    Args:
        run_dir: Folder with `summary.json`, `{sft,reward,ppo}/trainer_state.json`, `samples/rankings.test.jsonl` and
            the files of answers that the story names.
        story: What the page says beside them.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file in it is damaged.
    """
    results = read_results(run_dir, tuple(story.samples), story.policy_before)
    sections = [_headlines(results, story), _samples(results, story)]
    sections += [_stage(stage, results, run_dir, story) for stage in story.sections]
    figures = list(_flatten(results.summary))
    if figures:
        sections.append(Section("All figures", table=Table(["summary.json", ""], figures, (1,))))
    path = run_dir / "report.html"
    write_sections(path, story.title, story.lead, sections)
    return path


def plot_overview(run_dir: Path, story: Story) -> Path:
    """Writes `pictures/overview.png` of a run: the pictures that tell the story, side by side."""
    path = run_dir / "pictures" / "overview.png"
    results = read_results(run_dir, tuple(story.samples), story.policy_before)
    path.parent.mkdir(exist_ok=True)
    draw_overview(results, path, story.sections)
    return path


def _headlines(results: RunResults, story: Story) -> Section:
    tiles, missing = [], []
    for headline in story.headlines:
        try:
            *before, value = (headline.write(results.figure(*keys)) for keys in headline.keys)
        except MissingResult as reason:
            missing.append(str(reason))
        else:
            tiles.append(Tile(headline.label, value, headline.explanation, *before))
    return Section(tiles=tiles, notes=_left_out(missing))


def _stage(stage: str, results: RunResults, run_dir: Path, story: Story) -> Section:
    title, explanation = story.sections[stage]
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


def _samples(results: RunResults, story: Story) -> Section:
    samples, missing = {}, []
    for name in story.samples:
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
    cards = [_card(dict(zip(samples, row, strict=True)), story) for row in rows[:MAX_SAMPLE_CARDS]]
    lead = (
        f"The first {len(cards)} of {len(rows)} held-out prompts with the first answer of each model (none is picked "
        "by hand) and the judge's score of that answer, from 0 to 1."
    )
    return replace(section, lead=lead, cards=cards, cards_language=story.language)


def _card(records: dict[str, dict], story: Story) -> Card:
    answers = []
    before = None
    for name, record in records.items():
        score = record["scores"][0]
        verdict = "" if before is None or score == before else "better" if score > before else "worse"
        answers.append(Answer(story.samples[name], f"{score:.2f}", record["responses"][0], verdict))
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
