"""Scores that an annotator may give each answer besides its rank, as a YAML file lists them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# As many buttons as a row of a phone holds.
MOST_STEPS = 10
EXAMPLE = "helpful: {en: Helpful, zh: 有帮助, from: 1, to: 5}"


@dataclass(frozen=True)
class Attribute:
    """One attribute, scored in whole steps.

    Attributes:
        name: Under which scores are kept.
        words: What the page calls it, by language (`en`, `zh`).
        lowest: The lowest score.
        highest: The highest score.
    """

    name: str
    words: dict[str, str]
    lowest: int = 1
    highest: int = 5

    def takes(self, score: Any) -> bool:
        """Whether a value is one of its scores."""
        return type(score) in (int, float) and score in range(self.lowest, self.highest + 1)


def read_attributes(path: str | Path) -> tuple[Attribute, ...]:
    """Reads a file that maps names to `{en: ..., zh: ..., from: 1, to: 5}`; any of these, or all, may be left out.

    Raises:
        ValueError: Naming the file and the key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be YAML in UTF-8, as in `{EXAMPLE}`; {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: must map names of attributes to what they are, as in `{EXAMPLE}`; got {content!r}")
    return tuple(_attribute(name, given, f"{path}: {name!r}") for name, given in content.items())


def _attribute(name: Any, given: Any, where: str) -> Attribute:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: the name of an attribute must be a word; got {type(name).__name__}")
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"{where}: must be a mapping, as in `{EXAMPLE}`; got {given!r}")
    unknown = sorted(map(str, given.keys() - {"en", "zh", "from", "to"}))
    if unknown:
        raise ValueError(f"{where}: knows en, zh, from and to; got {', '.join(unknown)}")
    words = {language: given[language] for language in ("en", "zh") if language in given}
    for language, word in words.items():
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"{where}.{language} must be text; got {word!r}")
    lowest, highest = given.get("from", 1), given.get("to", 5)
    if type(lowest) is not int or type(highest) is not int or not 1 <= highest - lowest < MOST_STEPS:
        raise ValueError(
            f"{where}: 'from' and 'to' must be whole numbers, from below to, of {MOST_STEPS} steps at most; got "
            f"{lowest!r} and {highest!r}"
        )
    return Attribute(name, words, lowest, highest)
