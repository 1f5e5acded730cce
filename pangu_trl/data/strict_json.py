"""JSON that means one thing: what Python would read in silence as something else is refused."""

import json
import math
from collections.abc import Iterator
from typing import Any

from .records import RecordError

# Deeper values exhaust the stack of one reader or another.
DEEPEST = 100


def parse_json(text: str, where: str) -> Any:
    """Parses one JSON value.

    Args:
        text: Nothing but the value and white space.
        where: Begins the messages; the line and column inside a text of several lines are added.

    Raises:
        RecordError: If the text is no JSON, repeats a name in an object, or holds what JSON does not have (NaN,
            infinity), what no float can hold, half a surrogate pair, or too deep a nesting.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{where}: {_describe(error)}") from error
    except _Refused as error:
        raise RecordError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: {_describe_limit(error)}") from error
    return _checked(value, text, where)


def parse_json_list(text: str, where: str) -> Iterator[tuple[int, Any]]:
    """Yields the elements of a JSON list with the lines that they begin in, counted from 1; raises as `parse_json`."""
    position = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    is_first = True
    while text[position : position + 1] != "]":
        if not is_first:
            position = _expect_comma(text, position, where)
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise RecordError(f"{where}:{error.lineno}: {_describe(error)}") from error
        except _Refused as error:
            raise RecordError(f"{where}:{line}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where}:{line}: {_describe_limit(error)}") from error
        yield line, _checked(value, text[position:end], f"{where}:{line}")
        position = _skip_space(text, end)
        is_first = False
    rest = text[position + 1 :].strip()
    if rest:
        raise RecordError(f"{where}: must be one JSON list; something follows its end: {rest[:60]}")


class _Refused(Exception):
    """What JSON text must not hold; the message says what is needed."""


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    names = [name for name, _ in pairs]
    repeated = next(name for name in names if names.count(name) > 1)
    raise _Refused(f"'{repeated}' must occur once in an object; got it twice.")


def _no_constant(name: str) -> None:
    raise _Refused(f"numbers must be finite; got {name}, which is not JSON. Write null, or leave the field out.")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Refused(f"numbers must be finite; {digits[:40]} is larger than any float. Write it as text.")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_fields, parse_constant=_no_constant, parse_float=_finite_float)


def _describe(error: json.JSONDecodeError) -> str:
    return f"must be one JSON object; {error.msg} at column {error.colno}."


def _describe_limit(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return _too_deep()
    return f"must hold numbers that can be read; {error}. Write a number that long as text."


def _too_deep() -> str:
    return f"must not be nested more than {DEEPEST} deep. Write the inner part as text, or remove it."


def _checked(value: Any, text: str, where: str) -> Any:
    # Both are rare, and can be ruled out by a look at the text.
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise RecordError(f"{where}: {_too_deep()}")
    if "\\ud" in text or "\\uD" in text:
        check_unicode(value, where)
    return value


def _depth(value: Any) -> int:
    """How deep a value is nested, found level by level, since recursion is what must not be relied on."""
    depth, level = 0, [value]
    while level:
        inner = [value for value in level if isinstance(value, dict | list)]
        level = [item for value in inner for item in (value.values() if isinstance(value, dict) else value)]
        depth += bool(inner)
    return depth


def check_unicode(value: Any, where: str) -> None:
    """Raises RecordError if a text inside a value, or the name of a field, holds half of a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecordError(
                f"{where}: must be valid Unicode; got a lone surrogate, {ascii(value[error.start])}, at character "
                f"{error.start} of {ascii(value[:60])}. Remove it, or write the whole pair."
            ) from error
    elif isinstance(value, dict):
        for name, item in value.items():
            check_unicode(name, where)
            check_unicode(item, where)
    elif isinstance(value, list):
        for item in value:
            check_unicode(item, where)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _expect_comma(text: str, position: int, where: str) -> int:
    if text[position : position + 1] != ",":
        line = text.count("\n", 0, position) + 1
        found = repr(text[position : position + 20]) if position < len(text) else "the end of the file"
        raise RecordError(f"{where}:{line}: must be one JSON list; expected ',' or ']', got {found}.")
    return _skip_space(text, position + 1)
