"""What the pages of both languages say that can be looked up: commands, options, values, figures, code."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CHINESE = [ROOT / "README_zh.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
PAGES = [*ENGLISH, *CHINESE, *sorted((ROOT / "data_cards").glob("*.md"))]

_FENCE = re.compile(r"^```.*?^```", flags=re.M | re.S)
_INDENTED = re.compile(r"^(?: {4}.*\n)+", flags=re.M)
_INLINE = re.compile(r"`([^`]+)`")
_TABLE = re.compile(r"^(?:\|.*\n)+", flags=re.M)
# Heads of columns that hold names of other people's pipelines.
_OF_OTHERS = re.compile(r"old|TRL 1\.|DeepSpeed-Chat")


@dataclass(frozen=True)
class Page:
    """A page's text, taken apart.

    Attributes:
        code: Lines of its blocks of code, joined where they go on.
        inline: Pieces of code within its text.
    """

    code: list[str]
    inline: list[str]


def read(path: Path) -> Page:
    text = path.read_text("utf-8")
    blocks = [block for pattern in (_FENCE, _INDENTED) for block in pattern.findall(text)]
    prose = _INDENTED.sub("", _FENCE.sub("", text))
    prose = _TABLE.sub(_without_columns_of_others, prose)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    return Page(lines, [" ".join(piece.split()) for piece in _INLINE.findall(prose)])


def _without_columns_of_others(table: re.Match) -> str:
    rows = [line.strip("|").split("|") for line in table[0].splitlines()]
    kept = [i for i, head in enumerate(rows[0]) if not _OF_OTHERS.match(head.strip())]
    return "\n".join("|".join(row[i] for i in kept if i < len(row)) for row in rows) + "\n"


def commands(pieces: list[str]) -> Iterator[list[str]]:
    """The words of every `pangu-trl COMMAND ...` but those that stand for several."""
    for piece in pieces:
        if not re.match(r"(?:\$ )?pangu-trl ", piece) or "|" in piece or "..." in piece:
            continue
        words = shlex.split(piece.removeprefix("$ "), comments=True)[1:]
        if words and re.fullmatch(r"[a-z][a-z-]+", words[0]):
            yield words


def settings(page: Page) -> Iterator[tuple[str, str]]:
    """Every `option: value` in the text of a page."""
    for piece in page.inline:
        match = re.fullmatch(r"([a-z][a-z0-9_]*): (\S[^`]*)", piece)
        if match:
            yield match[1], match[2]


def names(page: Page) -> Iterator[str]:
    """Every name in snake case, `--option` and `group/figure` in the text of a page."""
    for piece in page.inline:
        if re.fullmatch(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+|[a-z_]+/[a-z_0-9]+", piece):
            yield piece
        else:
            yield from re.findall(r"(?<!\S)--[a-z][\w-]*", piece)


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.*)", _FENCE.sub("", path.read_text("utf-8")), flags=re.M)


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), flags=re.M | re.S)
