"""Columns of text whose values mean something else, as a data card says: files such as csv hold nothing but text."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .records import OnFault, RecordError, raise_fault
from .strict_json import parse_json

Row = tuple[str, Mapping[str, Any]]


def _integer(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise RecordError(f"{where} must be an integer; got {text[:60]!r}.") from error


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecordError(f"{where} must be a number; got {text[:60]!r}.") from error


def _boolean(text: str, where: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise RecordError(f"{where} must be true or false; got {text[:60]!r}.")
    return text.strip().lower() == "true"


TYPES: dict[str, Callable[[str, str], Any]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "json": parse_json,
}


def read_types(
    rows: Iterable[Row], types: Mapping[str, str], source: str, on_fault: OnFault = raise_fault
) -> Iterator[Row]:
    """Reads the texts of some columns as their types say; an empty text is None.

    Raises:
        RecordError: If a row lacks such a column, or its text is not of the type.
    """
    for where, row in rows:
        try:
            read = _read_row(row, types, source, where)
        except RecordError as error:
            on_fault(error)
            continue
        yield where, read


def _read_row(row: Mapping[str, Any], types: Mapping[str, str], source: str, where: str) -> dict[str, Any]:
    read = dict(row)
    for name, type_name in types.items():
        if name not in row:
            raise RecordError(f"{where}: 'types' of {source} needs '{name}'; there is only {', '.join(row)}.")
        value = row[name]
        if isinstance(value, str):
            read[name] = TYPES[type_name](value, f"{where}: '{name}'") if value.strip() else None
    return read
