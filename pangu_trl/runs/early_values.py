"""Values that an option cannot have, told from the sources of the dataclasses before anything heavy is loaded.

What is refused here the recipe would refuse ten seconds later, when its dataclasses are there; what needs them, such as
two options that do not go together, is left to it. So everything that is not certain passes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .option_sources import SourceOption
from .ranges import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, UP_TO_ONE

# What transformers' parser takes for a switch.
_TRUE_OR_FALSE = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")
_RANGES = (
    (AT_LEAST_ONE, "1 or more", lambda value: value >= 1),
    (NOT_NEGATIVE, "0 or more", lambda value: value >= 0),
    (POSITIVE, "greater than 0", lambda value: value > 0),
    (UP_TO_ONE, "between 0 and 1", lambda value: 0 <= value <= 1),
)


def refuse_wrong_values(words: Sequence[str], settings: Mapping[str, Any], options: Iterable[SourceOption]) -> None:
    """Refuses what the options of a recipe were given, on its command line or in its file.

    Args:
        words: The command line without `--config FILE`; its options are known.
        settings: What the file holds; its keys are known.
        options: Those of the recipe.

    Raises:
        ValueError: An option has a value that it cannot have; the message says what it may be.
    """
    known = {option.name: option for option in options}
    given = _given_on_command_line(words)
    for name, value in {**settings, **given}.items():
        if name in known:
            _check(known[name], value)


def _given_on_command_line(words: Sequence[str]) -> dict[str, str]:
    """Options with one word behind them; a switch without one, and lists, are left to the recipe."""
    given = {}
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, sign, value = word[2:].partition("=")
        behind = [] if sign else _until_next_option(words[place + 1 :])
        if sign or len(behind) == 1:
            given[name.replace("-", "_")] = value if sign else behind[0]
    return given


def _until_next_option(words: Sequence[str]) -> list[str]:
    end = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    return list(words[:end])


def _check(option: SourceOption, value: Any) -> None:
    kinds = {kind.strip() for kind in option.kind.strip("\"'").split("|")}
    may_be_none = "None" in kinds
    kinds.discard("None")
    if value is None or isinstance(value, list | dict) or (may_be_none and str(value).lower() in ("none", "null")):
        return
    if option.choices and kinds == {"str"} and str(value) not in option.choices:
        raise ValueError(f"{option.name} must be one of {', '.join(option.choices)}; got {value!r}.")
    if kinds == {"bool"} and not isinstance(value, bool) and str(value).lower() not in _TRUE_OR_FALSE:
        raise ValueError(f"{option.name} must be true or false; got {value!r}.")
    if kinds == {"int"} or kinds == {"float"}:
        number = _number(value, int if kinds == {"int"} else float)
        if number is None:
            raise ValueError(f"{option.name} must be {'a' if kinds == {'float'} else 'a whole'} number; got {value!r}.")
        for names, what, fits in _RANGES:
            if option.name in names and math.isfinite(number) and not fits(number):
                raise ValueError(f"{option.name} must be {what}; got {value!r}.")


def _number(value: Any, kind: type) -> float | None:
    """What the parser makes of a value; None where it would refuse it."""
    if isinstance(value, bool):
        return None
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if isinstance(value, str) or number == value else None
