"""Reading and writing JSON lines so that no record is lost, merged or half written."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .records import RecordError


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Reads a file that holds one JSON object a line; blank lines are skipped.

    Raises:
        FileNotFoundError, IsADirectoryError: If there is no such file.
        RecordError: If a line is not a JSON object in UTF-8, or the file holds no record.
    """
    return [record for _, record in read_numbered_jsonl(path)]


def read_numbered_jsonl(
    path: str | Path, on_fault: Callable[[RecordError], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the records of a JSON lines file with their line numbers, which count from 1; raises as `read_jsonl`.

    With `on_fault` a line that is no record is handed to it instead of raised, and left out.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: must be a JSON lines file; got a folder. Name one of the files in it.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file (looked for {path.absolute()}).")
    is_empty = True
    # Read as bytes: a text file would also break lines at a lone carriage return, and hide where bad UTF-8 stands.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                is_empty = False
                try:
                    record = _parse_line(line, f"{path}:{number}", encoding="utf-8-sig" if number == 1 else "utf-8")
                except RecordError as error:
                    if on_fault is None:
                        raise
                    on_fault(error)
                    continue
                yield number, record
    if is_empty:
        raise RecordError(f"{path}: must hold one JSON object a line; the file is empty.")


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]], overwrite: bool = False) -> int:
    """Writes one JSON object a line and puts the file in place in one step, so that readers never see half of it.

    Missing folders are created.

    Args:
        path: The file to write.
        records: The objects to write, in order.
        overwrite: Whether an existing file may be replaced.

    Returns:
        How many records were written.

    Raises:
        FileExistsError: If the file exists and `overwrite` is false.
        RecordError: If a record cannot be written as JSON (NaN and infinity are not JSON).
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already. Choose another name, or pass overwrite=True to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: it makes files that only their owner can read, and os.replace keeps that mode.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    count = 0
    try:
        with unfinished.open("wb") as file:
            for record in records:
                file.write(_format_line(record, f"{path}: record {count}"))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _parse_line(line: bytes, where: str, encoding: str) -> dict[str, Any]:
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{where}: must be UTF-8; got the byte 0x{error.object[error.start]:02x} at position {error.start + 1} of "
            "the line. Convert the file, e.g. `iconv -f GB18030 -t UTF-8`."
        ) from error
    try:
        record = json.loads(text, object_pairs_hook=_unique_fields)
    except json.JSONDecodeError as error:
        raise RecordError(f"{where}: must be one JSON object; {error.msg} at column {error.colno}.") from error
    except _RepeatedField as error:
        raise RecordError(f"{where}: '{error}' must occur once in an object; got it twice.") from error
    if not isinstance(record, dict):
        raise RecordError(f'{where}: must be one JSON object, as in {{"prompt": ...}}; got {text.strip()[:60]}.')
    return record


class _RepeatedField(Exception):
    """A name that occurs twice in a JSON object; Python would keep the last value without a word."""


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _RepeatedField(name)
        fields[name] = value
    return fields


def _format_line(record: Mapping[str, Any], where: str) -> bytes:
    try:
        return json.dumps(dict(record), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}: must be JSON; {error}.") from error
