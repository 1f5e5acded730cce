"""A line chart as SVG, in the colours of the page around it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26
MOST_POINTS_WITH_MARKS = 25


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: What it is called.
        points: Steps and values, in the order of the steps.
        colour: Number of its colour on the page.
        dashed: For what was measured on held-out records.
    """

    label: str
    points: Sequence[tuple[int, float]]
    colour: int = 0
    dashed: bool = False


def line_chart(title: str, lines: Sequence[Line], is_share: bool = False) -> str:
    """An `<svg>` with axes for the steps that there are."""
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    x_ticks = ticks(min(steps), max(steps), 5, whole=True)
    low, high = (0.0, 1.0) if is_share and min(values) >= 0 and max(values) <= 1 else (min(values), max(values))
    y_ticks = ticks(low, high, 5)
    left, right = min(min(steps), x_ticks[0]), max(max(steps), x_ticks[-1])
    bottom, top = min(low, y_ticks[0]), max(high, y_ticks[-1])

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((step - left) / (right - left) if right > left else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((value - bottom) / (top - bottom) if top > bottom else 0.5)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for step in x_ticks:
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:.0f}</text>')
    for line in lines:
        style = f"line c{line.colour}{' dashed' if line.dashed else ''}"
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in line.points)
        parts.append(f'<polyline class="{style}" points="{points}"/>')
        if len(line.points) <= MOST_POINTS_WITH_MARKS:
            for step, value in line.points:
                told = f"{escape(line.label)}, {step}: {value:.4g}"
                parts.append(
                    f'<circle class="mark c{line.colour}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.6">'
                    f"<title>{told}</title></circle>"
                )
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Up to about `count` round numbers that span a range; whole numbers inside of it for steps."""
    if high <= low:
        return [low]
    rough = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1, math.ceil(step))
        first = math.ceil(low / step)
        return [step * number for number in range(first, math.floor(high / step) + 1)] or [low]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]
