"""Rows of one data file, each with its place: `a.jsonl:3` in texts, `a.parquet row 2` (from 0) in tables."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa

from .data_files import DataFile, identify, is_data_file
from .jsonl import numbered_records, parse_record
from .records import OnFault, RecordError, raise_fault
from .strict_json import parse_json, parse_json_list
from .tables import rows_of_arrow, rows_of_parquet
from .text_lines import numbered_lines

Row = tuple[str, Mapping[str, Any]]

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)


@dataclass(frozen=True)
class ReadOptions:
    """What a data card says about its files beside their format.

    Attributes:
        encoding: Of texts; UTF-8 by default.
        separator: Between the columns of csv files; a comma by default, and a tab in .tsv files.
        list_field: The field of a .json file that holds the list of records.
    """

    encoding: str | None = None
    separator: str | None = None
    list_field: str | None = None


def rows_of_files(files: list[DataFile], options: ReadOptions, on_fault: OnFault = raise_fault) -> Iterator[Row]:
    """Yields the rows of several files; with an `on_fault` that goes on, a file that cannot be read is one fault.

    Raises:
        RecordError, OSError: As `rows_of_file`.
    """
    for file in files:
        try:
            yield from rows_of_file(file, options, on_fault)
        except (RecordError, OSError) as error:
            if on_fault is raise_fault:
                raise
            message = str(error) if file.name in str(error) else f"{file.name}: {error}"
            on_fault(RecordError(f"{message.rstrip('.')}. What stands behind it in the file was not read."))


def rows_of_file(file: DataFile, options: ReadOptions, on_fault: OnFault = raise_fault) -> Iterator[Row]:
    """Yields the rows of a file.

    Args:
        file: Which, and of what format.
        options: How it is read.
        on_fault: Gets the errors of single rows.

    Raises:
        RecordError: If the file is damaged, empty or not of its format; the message names file and place.
        OSError: If it cannot be opened.
    """
    if file.compression == ".zip":
        yield from _rows_of_zip(file, options, on_fault)
        return
    with _opened(file) as stream:
        yield from _READERS[file.format](_Guarded(stream, file), file.name, options, on_fault)


@contextmanager
def _opened(file: DataFile) -> Iterator[BinaryIO]:
    openers: dict[str | None, Callable[[str], Any]] = {
        None: lambda path: open(path, "rb"),
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zst": lambda path: pa.input_stream(path, compression="zstd"),
        ".lz4": lambda path: pa.input_stream(path, compression="lz4"),
    }
    with openers[file.compression](file.path) as stream:
        yield stream


class _Guarded(io.RawIOBase):
    """A stream whose damage is told as one error that names the file."""

    def __init__(self, stream: BinaryIO, file: DataFile) -> None:
        self._stream, self._file = stream, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.compression is None

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._stream.read(len(buffer))
        except DAMAGE as error:
            raise RecordError(
                f"{self._file.name}: must be a whole {self._file.compression or 'readable'} file; {error}. Fetch or "
                "pack it again."
            ) from error
        buffer[: len(content)] = content
        return len(content)


def _rows_of_zip(file: DataFile, options: ReadOptions, on_fault: OnFault) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = [name for name in sorted(archive.namelist()) if not name.endswith("/") and is_data_file(name)]
            if not members:
                raise RecordError(
                    f"{file.name}: the archive must hold a data file; it holds {', '.join(archive.namelist()[:10])}."
                )
            for name in members:
                data_format, compression = identify(name)
                if compression is not None:
                    raise RecordError(f"{file.name}/{name}: must not be packed twice. Unpack the outer archive.")
                member = DataFile(name, data_format or file.format, None, f"{file.name}/{name}")
                with archive.open(name) as stream:
                    yield from _READERS[member.format](
                        _Guarded(stream, replace(member, compression=".zip")), member.name, options, on_fault
                    )
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise RecordError(f"{file.name}: must be a whole .zip file without a password; {error}.") from error


def _rows_of_jsonl(stream: BinaryIO, name: str, options: ReadOptions, on_fault: OnFault) -> Iterator[Row]:
    if options.list_field is not None:
        raise RecordError(f"{name}: 'list_field' must be left out for JSON lines, whose records are lines.")
    records = numbered_records(io.BufferedReader(stream), name, options.encoding, on_fault)
    return ((f"{name}:{line}", record) for line, record in records)


def _rows_of_json(stream: BinaryIO, name: str, options: ReadOptions, on_fault: OnFault) -> Iterator[Row]:
    """A JSON file is a list of records, an object with such a list, or JSON lines."""
    lines = numbered_lines(io.BufferedReader(stream), name, options.encoding)
    number, first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    if not first:
        raise RecordError(f"{name}: must hold a list of JSON objects; the file is empty. Fill or remove it.")
    if options.list_field is None and first.lstrip().startswith("{") and _is_json(first):
        for line_number, line in chain([(number, first)], lines):
            if line.strip():
                try:
                    record = parse_record(line, f"{name}:{line_number}")
                except RecordError as error:
                    on_fault(error)
                    continue
                yield f"{name}:{line_number}", record
        return
    text = "\n" * (number - 1) + first + "".join(line for _, line in lines)
    if first.lstrip().startswith("[") and options.list_field is None:
        records: Any = parse_json_list(text, name)
    else:
        records = enumerate(_inner_list(parse_json(text, name), name, options.list_field))
    is_empty = True
    for index, (number, record) in enumerate(records):
        is_empty = False
        inside = options.list_field
        where = f"{name}: {inside}[{index}]" if inside else f"{name}:{number} (record {index})"
        if isinstance(record, dict):
            yield where, record
        else:
            found = json.dumps(record, ensure_ascii=False)[:60]
            on_fault(RecordError(f"{where}: must be one JSON object; got {found}."))
    if is_empty:
        raise RecordError(f"{name}: must hold a list of JSON objects; the list is empty.")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        # A line of JSON lines that is wrong in itself is better told as such than the file as a whole.
        return error.pos < len(text.rstrip()) - 1 and error.msg != "Extra data" and text.rstrip().endswith("}")
    except (ValueError, RecursionError):
        return True
    return True


def _inner_list(value: Any, name: str, field: str | None) -> list[Any]:
    lists = [key for key, item in value.items() if isinstance(item, list)] if isinstance(value, dict) else []
    if field is None:
        raise RecordError(
            f"{name}: must hold a list of JSON objects, or one object a line; got one object. Name the field that "
            f"holds the list, 'list_field: ...', in a data card; lists are in {', '.join(lists) or 'none'}."
        )
    if field not in lists:
        raise RecordError(f"{name}: 'list_field: {field}' must hold a list; lists are in {', '.join(lists) or 'none'}.")
    return value[field]


def _rows_of_csv(
    stream: BinaryIO, name: str, options: ReadOptions, on_fault: OnFault, separator: str = ","
) -> Iterator[Row]:
    """All values are texts, exactly as they stand: nothing is taken for a number, a date or a missing value."""
    separator = options.separator or separator
    csv.field_size_limit(1 << 30)
    lines = (line for _, line in _lines_in_place(io.BufferedReader(stream), name, options.encoding, on_fault))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] | None = None
    is_empty = True
    while True:
        place = f"{name}:{reader.line_num + 1}"
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            on_fault(
                RecordError(
                    f"{place}: must be a row of csv; {error}. A quotation mark inside a quoted value is written twice."
                )
            )
            is_empty = False
            continue
        if not values:
            continue
        if header is None:
            header = _header(values, place, separator)
            continue
        is_empty = False
        if len(values) == len(header):
            yield place, dict(zip(header, values, strict=True))
        else:
            on_fault(
                RecordError(
                    f"{place}: must have {len(header)} values, as the header has; got {len(values)}. Quote a value "
                    f"that holds {separator!r} or a line end."
                )
            )
    if is_empty:
        raise RecordError(f"{name}: must hold a header and a row for each record; the file is empty.")


def _header(values: list[str], place: str, separator: str) -> list[str]:
    names = [value.strip() for value in values]
    # What pandas writes before an index.
    names = [value or f"unnamed_{number}" for number, value in enumerate(names)]
    repeated = sorted({value for value in names if names.count(value) > 1})
    if repeated:
        raise RecordError(f"{place}: the names of columns must differ; got {', '.join(repeated)} more than once.")
    other = next((mark for mark in "\t;,|" if mark != separator and mark in names[0]), None)
    if len(names) == 1 and other is not None:
        raise RecordError(
            f"{place}: the header must hold the names of the columns, with {separator!r} between them; got "
            f"{names[0]!r}. Name the separator in a data card: `separator: {other!r}`."
        )
    return names


def _lines_in_place(
    stream: io.BufferedReader, name: str, encoding: str | None, on_fault: OnFault
) -> Iterator[tuple[int, str]]:
    """Lines of which those that are no text are empty ones, so that the reader of csv counts all."""
    expected = 1
    for number, line in numbered_lines(stream, name, encoding, on_fault):
        yield from ((missing, "\n") for missing in range(expected, number))
        yield number, line
        expected = number + 1


def _rows_of_tsv(stream: BinaryIO, name: str, options: ReadOptions, on_fault: OnFault) -> Iterator[Row]:
    return _rows_of_csv(stream, name, options, on_fault, separator="\t")


def _rows_of_text(stream: BinaryIO, name: str, options: ReadOptions, on_fault: OnFault) -> Iterator[Row]:
    """Each line is a record; blank lines are skipped."""
    is_empty = True
    for number, line in numbered_lines(io.BufferedReader(stream), name, options.encoding, on_fault):
        text = line.removesuffix("\n").removesuffix("\r")
        if text.strip():
            is_empty = False
            yield f"{name}:{number}", {"text": text}
    if is_empty:
        raise RecordError(f"{name}: must hold a text a line; the file is empty. Fill or remove it.")


_READERS: dict[str, Callable[[Any, str, ReadOptions, OnFault], Iterator[Row]]] = {
    "jsonl": _rows_of_jsonl,
    "json": _rows_of_json,
    "csv": _rows_of_csv,
    "tsv": _rows_of_tsv,
    "text": _rows_of_text,
    "parquet": rows_of_parquet,
    "arrow": rows_of_arrow,
}
