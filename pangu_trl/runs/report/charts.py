"""Charts as SVG, in the colours of the page around them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26
MOST_POINTS_WITH_MARKS = 25


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: What it is called.
        points: Steps (or what the chart is over) and values, in order.
        colour: Number of its colour on the page.
        style: `dashed` for what was measured on held-out records, `reference` for what to compare with.
        intervals: Of each point the lower and the upper end, or None; empty where there are none.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    style: str = ""
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Key:
    """What a colour and style of a chart stand for."""

    label: str
    style: str


@dataclass(frozen=True)
class Chart:
    """A chart of a page."""

    title: str
    svg: str
    keys: Sequence[Key] = field(default=())


@dataclass(frozen=True)
class _Axes:
    """The round numbers along a chart, and where a value stands in the picture."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], is_share: bool, over_steps: bool) -> "_Axes":
        x_ticks = ticks(min(xs), max(xs), 5, whole=over_steps)
        low, high = (0.0, 1.0) if is_share and min(ys) >= 0 and max(ys) <= 1 else (min(ys), max(ys))
        y_ticks = ticks(low, high, 5)
        return cls(
            x_ticks,
            y_ticks,
            min(min(xs), x_ticks[0]),
            max(max(xs), x_ticks[-1]),
            min(low, y_ticks[0]),
            max(high, y_ticks[-1]),
        )

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left) if self.right > self.left else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom) if self.top > self.bottom else 0.5
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def drawn(self, title: str) -> list[str]:
        parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
        for value in self.y_ticks:
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        for value in self.x_ticks:
            parts.append(f'<text x="{self.x(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{value:.6g}</text>')
        return parts


def line_chart(title: str, lines: Sequence[Line], is_share: bool = False, over_steps: bool = True) -> Chart:
    """Lines over the steps that there are, or over any other number."""
    points = [point for line in lines for point in line.points]
    ends = [end for line in lines for interval in line.intervals for end in interval or ()]
    axes = _Axes.around([x for x, _ in points], [y for _, y in points] + ends, is_share, over_steps)
    parts = axes.drawn(title)
    for line in lines:
        style = line.style if line.style == "reference" else f"c{line.colour} {line.style}".strip()
        drawn = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line.points)
        for (x, _), interval in zip(line.points, line.intervals, strict=False):
            if interval is not None:
                low, high = (f"{axes.y(end):.1f}" for end in interval)
                at = f'x1="{axes.x(x):.1f}" x2="{axes.x(x):.1f}" y1="{low}" y2="{high}"'
                parts.append(f'<line class="whisker c{line.colour}" {at}/>')
        parts.append(f'<polyline class="line {style}" points="{drawn}"/>')
        if line.style != "reference" and len(line.points) <= MOST_POINTS_WITH_MARKS:
            for x, y in line.points:
                told = f"{escape(line.label)}, {x:.6g}: {y:.4g}"
                parts.append(
                    f'<circle class="mark c{line.colour}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.6">'
                    f"<title>{told}</title></circle>"
                )
    keys = [
        Key(line.label, line.style if line.style == "reference" else f"c{line.colour} {line.style}") for line in lines
    ]
    return Chart(title, "".join([*parts, "</svg>"]), keys)


def histogram(
    title: str, groups: Mapping[str, Sequence[float]], num_bins: int = 20, limits: Sequence[float] = ()
) -> Chart:
    """Shares of the values of each group in bins of equal width, so that groups of different size compare.

    Args:
        title: Of the chart.
        groups: Finite values of each group, at least one.
        num_bins: Number of bins.
        limits: Lower and upper end of the bins; otherwise those of the values.
    """
    values = [value for group in groups.values() for value in group]
    low, high = limits or (min(values), max(values))
    width = (high - low) / num_bins or 1.0
    shares = []
    for group in groups.values():
        counts = [0] * num_bins
        for value in group:
            counts[min(max(int((value - low) / width), 0), num_bins - 1)] += 1
        shares.append([count / len(group) for count in counts])
    axes = _Axes.around([low, low + num_bins * width], [0.0, max(map(max, shares))], False, over_steps=False)
    parts = axes.drawn(title)
    keys = []
    for colour, (label, group) in enumerate(groups.items()):
        for place, share in enumerate(shares[colour]):
            if share:
                left, right = axes.x(low + place * width), axes.x(low + (place + 1) * width)
                parts.append(
                    f'<rect class="bar c{colour}" x="{left:.1f}" y="{axes.y(share):.1f}" width="{right - left:.1f}" '
                    f'height="{axes.y(0) - axes.y(share):.1f}"><title>{escape(label)}: {share:.4g}</title></rect>'
                )
        keys.append(Key(f"{label}, {sum(group) / len(group):.4g}", f"c{colour}"))
    return Chart(title, "".join([*parts, "</svg>"]), keys)


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
