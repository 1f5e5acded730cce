"""Reading and writing JSON lines so that no record is lost, merged or half written."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .near_names import nearest_path
from .records import OnFault, RecordError, raise_fault
from .strict_json import parse_json
from .text_lines import numbered_lines


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Reads a file that holds one JSON object a line; blank lines are skipped.

    Raises:
        FileNotFoundError, IsADirectoryError: If there is no such file.
        RecordError: If a line is not a JSON object in UTF-8, or the file holds no record.
    """
    return [record for _, record in read_numbered_jsonl(path)]


def read_numbered_jsonl(path: str | Path, on_fault: OnFault = raise_fault) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the records of a JSON lines file with their line numbers, which count from 1; raises as `read_jsonl`."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: must be a JSON lines file; got a folder. Name one of the files in it.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file (looked for {path.absolute()}){nearest_path(str(path))}.")
    with path.open("rb") as file:
        yield from numbered_records(file, str(path), on_fault=on_fault)


def numbered_records(
    file: BinaryIO,
    where: str,
    encoding: str | None = None,
    on_fault: OnFault = raise_fault,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the records of an open JSON lines file; see `text_lines.numbered_lines`. Raises as `read_jsonl`."""
    is_empty = True
    for number, line in numbered_lines(file, where, encoding, on_fault):
        if line.strip():
            is_empty = False
            try:
                record = parse_record(line.rstrip(), f"{where}:{number}")
            except RecordError as error:
                if number == 1 and (line.lstrip().startswith("[") or line.strip() == "{"):
                    error = RecordError(f"{error} A file that is one list over several lines is called .json.")
                on_fault(error)
                continue
            yield number, record
    if is_empty:
        raise RecordError(f"{where}: must hold one JSON object a line; the file is empty. Fill or remove it.")


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


def parse_record(text: str, where: str) -> dict[str, Any]:
    """Parses one record; raises RecordError if the text is no JSON object, or none that means one thing."""
    record = parse_json(text, where)
    if not isinstance(record, dict):
        raise RecordError(f'{where}: must be one JSON object, as in {{"prompt": ...}}; got {text.strip()[:60]}.')
    return record


def _format_line(record: Mapping[str, Any], where: str) -> bytes:
    try:
        return json.dumps(dict(record), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}: must be JSON; {error}.") from error
