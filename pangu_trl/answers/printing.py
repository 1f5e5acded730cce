"""Texts on a terminal."""

import unicodedata


def printable(text: str) -> str:
    """A text in one line that a terminal shows and does not obey.

    Control and format characters (escape sequences, line ends, marks that turn the direction of writing) become what
    Python would write for them, as `\\x1b`.
    """
    return "".join(char if _is_shown(char) else char.encode("unicode_escape").decode("ascii") for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"
