"""The page itself: what was read, put into the template."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .charts import Chart, Line, line_chart
from .figures import GROUPS, Group, changes, phase_seconds
from .reading import Run
from .templates import render_template, write_whole
from .words import words

# As the log beside it: what begins with an underscore is not pushed to the Hub.
PAGE_FILE = "_report.html"
NUM_COLOURS = 6
MOST_SAMPLES, OPEN_SAMPLES = 24, 4


def write_page(path: Path, runs: Sequence[Run], language: str = "en", refresh: int | None = None) -> None:
    """Writes a page on one run, or one that compares several; whole or not at all.

    Args:
        path: The HTML file.
        runs: The runs.
        language: One of `words.LANGUAGES`.
        refresh: Seconds after which a browser reads the page again; None for never.
    """
    write_whole(path, render(runs, language, refresh))


def render(runs: Sequence[Run], language: str = "en", refresh: int | None = None) -> str:
    """The text of the page; see `write_page`."""
    say = words(language)
    runs = _with_names_of_their_own(runs)
    return render_template(
        "page.html.jinja",
        language=language,
        say=say,
        title=say["titles"] if len(runs) > 1 else f"{say['title']}: {runs[0].name}",
        refresh=refresh if any(not run.finished for run in runs) else None,
        runs=runs,
        several=len(runs) > 1,
        charts=charts_of(runs, say),
        changes=changes,
        has_changes=any(changes(run) for run in runs),
        verdicts={1: "better", -1: "worse", 0: "neither"},
        evaluation=_evaluation,
        phase_seconds=phase_seconds,
        settings=sorted({name for run in runs for name in run.settings}),
        stage_name=lambda stage: say["reward_stage"] if stage == "reward" else say.get(stage, stage),
        number=number,
        duration=duration,
        most_samples=MOST_SAMPLES,
        open_samples=OPEN_SAMPLES,
    )


def number(value: Any) -> str:
    """A figure in four digits; a dash where there is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return format(value, ".4g")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _with_names_of_their_own(runs: Sequence[Run]) -> list[Run]:
    counts = Counter(run.name for run in runs)
    seen: Counter[str] = Counter()
    named = []
    for run in runs:
        seen[run.name] += 1
        named.append(replace(run, name=f"{run.name} ({seen[run.name]})") if counts[run.name] > 1 else run)
    return named


def charts_of(runs: Sequence[Run], say: dict[str, str]) -> list[Chart]:
    """A chart of each group of figures that a run has."""
    return [chart for group in GROUPS if (chart := _chart(group, runs, say)) is not None]


def _chart(group: Group, runs: Sequence[Run], say: dict[str, str]) -> Chart | None:
    lines = []
    for place, run in enumerate(runs):
        for held_out in (False, True):
            points = group.series(run, held_out)
            if points:
                kind = say["held_out" if held_out else "training"]
                label = f"{run.name}, {kind}" if len(runs) > 1 else kind
                lines.append(Line(label, points, place % NUM_COLOURS, "dashed" if held_out else ""))
    return line_chart(say[group.name], lines, group.is_share) if lines else None


def _evaluation(run: Run) -> dict[str, Any]:
    """Held-out figures as a table: names of the columns, and for each step its values."""
    columns = {group.name: dict(group.series(run, True)) for group in GROUPS}
    columns = {name: values for name, values in columns.items() if values}
    steps = sorted({step for values in columns.values() for step in values})
    rows = [(step, [values.get(step) for values in columns.values()]) for step in steps]
    return {"names": list(columns), "rows": rows}
