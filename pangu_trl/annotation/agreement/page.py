"""The page on agreement: one HTML file that loads nothing."""

import os
import string
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import jinja2

from .figures import Agreement, PositionBias
from .words import words

MOST_DISPUTES = 100
LONGEST_PROMPT = 300


def write_page(path: Path, agreement: Agreement, language: str, prompts: Mapping[str, str]) -> None:
    """Writes the page, whole or not at all; see `render`."""
    text = render(agreement, language, prompts)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, path)


def render(agreement: Agreement, language: str, prompts: Mapping[str, str]) -> str:
    """The text of the page.

    Args:
        agreement: The figures.
        language: One of `words.LANGUAGES`.
        prompts: Text of the prompts by their digests, as far as they are known.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(
        language=language,
        say=words(language),
        agreement=agreement,
        disputes=agreement.disputes[:MOST_DISPUTES],
        prompts={digest: _shortened(text) for digest, text in prompts.items()},
        number=number,
        percent=percent,
        cycle_names=cycle_names,
        bar=_bar,
    )


def number(value: float | None) -> str:
    """A figure in two decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.0f} %"


def cycle_names(cycles: list[list[int]]) -> str:
    """Answers by the letters that they have in their file, the first being A."""
    return ", ".join(" ".join(letter(answer) for answer in cycle) for cycle in cycles)


def letter(answer: int) -> str:
    """A to Z, and numbers from 27 on."""
    return string.ascii_uppercase[answer] if answer < len(string.ascii_uppercase) else str(answer + 1)


def _bar(bias: PositionBias) -> dict[str, float]:
    """Places on a bar of 100 for the interval, the share and chance."""
    low, high = bias.interval
    return {"low": 100 * low, "width": 100 * (high - low), "share": 100 * bias.share, "chance": 100 * bias.by_chance}


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_PROMPT else f"{text[:LONGEST_PROMPT]}…"
