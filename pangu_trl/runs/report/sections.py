"""Pages that other than runs leave, in the same dress: sections of figures, tables, charts and answers side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .charts import Chart
from .templates import render_template, write_whole
from .words import words


@dataclass(frozen=True)
class Tile:
    """A figure at the top of a page, with the one before where there are two."""

    label: str
    value: str
    explanation: str
    before: str = ""


@dataclass(frozen=True)
class Table:
    """A table of words; columns of numbers are set to the right.

    Attributes:
        names: Names of the columns.
        rows: Their cells.
        numbers: Places of the columns that hold numbers.
    """

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Answer:
    """An answer on a card: whose it is, its score, and whether that is `better` or `worse` than the one before."""

    who: str
    score: str
    text: str
    verdict: str = ""


@dataclass(frozen=True)
class Card:
    """Answers to one prompt, side by side."""

    heading: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Note:
    """A line below a section; one that warns is in the colour of what is worse."""

    text: str
    warns: bool = False


@dataclass(frozen=True)
class Section:
    """What stands below a heading, in this order; everything may be missing.

    Attributes:
        title: Heading; empty at the top of a page.
        lead: What it is about.
        tiles: Figures.
        table: A table.
        charts: Charts.
        cards: Answers to prompts, those beyond `open_cards` folded.
        open_cards: How many stay open.
        cards_language: Language of prompts and answers, as HTML names it.
        notes: Lines below.
    """

    title: str = ""
    lead: str = ""
    tiles: Sequence[Tile] = ()
    table: Table | None = None
    charts: Sequence[Chart] = ()
    cards: Sequence[Card] = ()
    open_cards: int = 6
    cards_language: str = "zh"
    notes: Sequence[Note] = field(default=())


def write_sections(path: Path, title: str, lead: str, sections: Sequence[Section], language: str = "en") -> None:
    """Writes a page of sections, whole or not at all; it loads nothing.

    Args:
        path: The HTML file.
        title: Of the page.
        lead: What it is about.
        sections: In their order.
        language: Of the words between, one of `words.LANGUAGES`.
    """
    text = render_template(
        "sections.html.jinja", language=language, say=words(language), title=title, lead=lead, sections=sections
    )
    write_whole(path, text)
