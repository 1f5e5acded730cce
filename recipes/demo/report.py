"""Writes the report on a run of the demo: one HTML page that needs no other file, and an overview picture."""

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pictures import PANELS, Panel, draw_overview, draw_panel
from results import MissingResult, RunResults, read_results

MAX_SAMPLE_CARDS = 24
NUM_OPEN_SAMPLE_CARDS = 6
STYLE_SHEET = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Headline:
    """A figure for the top of the page: one summary key, or two for before and after."""

    label: str
    keys: tuple[tuple[str, ...], ...]
    write: Callable[[float], str]
    explanation: str


@dataclass(frozen=True)
class Story:
    """What the page of a demo says beside figures and pictures.

    Attributes:
        title: Heading of the page.
        lead: What happens, in one or two sentences.
        language: Of prompts and answers, as HTML names it.
        headlines: Figures at the top.
        sections: Title and explanation of each stage, by its name.
        samples: What the answers of each model are called, by file name in `samples/`.
        overview: Pictures that tell the story, by name.
        policy_before: File of the answers before PPO.
    """

    title: str
    lead: str
    language: str
    headlines: Sequence[Headline]
    sections: Mapping[str, tuple[str, str]]
    samples: Mapping[str, str]
    overview: Sequence[str]
    policy_before: str


def decimal(value: float) -> str:
    """Two places."""
    return f"{value:.2f}"


def percent(value: float) -> str:
    """Whole percent."""
    return f"{value:.0%}"


def duration(seconds: float) -> str:
    """Seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def write_report(run_dir: Path, story: Story) -> Path:
    """Writes `report.html` and the folder `pictures` of a run.

    The page holds its pictures and loads nothing. What the run did not write, such as the curves of a stage that was
    skipped, is named on the page in place of the picture.

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
    picture_dir = run_dir / "pictures"
    picture_dir.mkdir(exist_ok=True)
    parts = [
        f"<h1>{escape(story.title)}</h1>",
        f'<p class="lead">{escape(story.lead)}</p>',
        *_headline_tiles(results, story),
        *_sample_cards(results, story),
        *(part for stage in story.sections for part in _stage_section(stage, results, story, picture_dir)),
        *_figure_table(results),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(story.title)}</title>\n"
        f"<style>\n{STYLE_SHEET.read_text('utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    path = run_dir / "report.html"
    path.write_text(page, "utf-8")
    return path


def plot_overview(run_dir: Path, story: Story) -> Path:
    """Writes `pictures/overview.png` of a run: the four pictures that tell the story, side by side."""
    path = run_dir / "pictures" / "overview.png"
    results = read_results(run_dir, tuple(story.samples), story.policy_before)
    path.parent.mkdir(exist_ok=True)
    panels = {panel.name: panel for panel in PANELS}
    draw_overview([panels[name] for name in story.overview], results, path)
    return path


def _headline_tiles(results: RunResults, story: Story) -> Iterator[str]:
    tiles, missing = [], []
    for headline in story.headlines:
        try:
            values = [escape(headline.write(results.figure(*keys))) for keys in headline.keys]
        except MissingResult as reason:
            missing.append(str(reason))
            continue
        before = "".join(f"{value} → " for value in values[:-1])
        tiles.append(
            f'<div class="tile"><p class="label">{escape(headline.label)}</p><p class="value">{before}'
            f"<strong>{values[-1]}</strong></p><p>{escape(headline.explanation)}</p></div>"
        )
    yield f'<div class="grid tiles">{"".join(tiles)}</div>'
    yield from _left_out(missing)


def _stage_section(stage: str, results: RunResults, story: Story, picture_dir: Path) -> Iterator[str]:
    title, explanation = story.sections[stage]
    figures, missing = [], []
    for panel in PANELS:
        if panel.stage == stage:
            try:
                figures.append(_figure(panel, draw_panel(panel, results, picture_dir)))
            except MissingResult as reason:
                missing.append(f"{panel.title} ({reason})")
    yield f'<h2>{escape(title)}</h2>\n<p class="lead">{escape(explanation)}</p>'
    yield f'<div class="grid pictures">{"".join(figures)}</div>'
    yield from _left_out(missing)


def _figure(panel: Panel, paths: dict[str, Path]) -> str:
    sources = {
        theme: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for theme, path in paths.items()
    }
    return (
        f"<figure><figcaption><b>{escape(panel.title)}</b>{escape(panel.caption)}</figcaption><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{sources["dark"]}">'
        f'<img src="{sources["light"]}" alt="{escape(panel.title)}"></picture></figure>'
    )


def _sample_cards(results: RunResults, story: Story) -> Iterator[str]:
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
    yield "<h2>Samples</h2>"
    if samples:
        rows = list(zip(*samples.values(), strict=True))
        cards = [_sample_card(dict(zip(samples, row, strict=True)), story) for row in rows[:MAX_SAMPLE_CARDS]]
        yield (
            f'<p class="lead">The first {len(cards)} of {len(rows)} held-out prompts with the first '
            "answer of each model (none is picked by hand) and the judge's score of that answer, from 0 to 1.</p>"
        )
        yield from cards[:NUM_OPEN_SAMPLE_CARDS]
        if more := cards[NUM_OPEN_SAMPLE_CARDS:]:
            yield f"<details><summary>{len(more)} more</summary>{''.join(more)}</details>"
    yield from _left_out(missing)


def _sample_card(records: dict[str, dict], story: Story) -> str:
    prompt = next(iter(records.values()))["prompt"]
    language = f'lang="{escape(story.language)}"'
    answers = "".join(
        f'<div><span class="model">{escape(story.samples[name])}{_score_chip(record["scores"][0])}</span>'
        f'<div class="response" {language}>{escape(record["responses"][0]) or "<i>(empty)</i>"}</div></div>'
        for name, record in records.items()
    )
    return f'<div class="card"><h3 {language}>{escape(prompt)}</h3><div class="grid answers">{answers}</div></div>'


def _score_chip(score: float) -> str:
    hue = 120 * min(max(score, 0.0), 1.0) if math.isfinite(score) else 0
    return f'<span class="score" style="background: hsl({hue:.0f} 60% 30%)">{score:.2f}</span>'


def _figure_table(results: RunResults) -> Iterator[str]:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _flatten(results.summary)
    )
    if rows:
        yield "<h2>All figures</h2>"
        yield f'<details class="card"><summary>summary.json</summary><table>{rows}</table></details>'


def _flatten(figures: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)


def _left_out(reasons: list[str]) -> Iterator[str]:
    if reasons:
        yield f'<p class="note">Left out: {escape("; ".join(reasons))}.</p>'
