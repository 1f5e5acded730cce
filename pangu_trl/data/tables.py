"""Rows of Parquet, Arrow and `datasets`."""

import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .records import RecordError

logger = logging.getLogger(__name__)

Row = tuple[str, Mapping[str, Any]]

BATCH_SIZE = 1000


def rows_of_parquet(stream: BinaryIO, name: str, *_: Any) -> Iterator[Row]:
    """Yields the rows of a Parquet file; raises RecordError if it is none, or is damaged."""
    content = io.BufferedReader(stream) if stream.seekable() else pa.BufferReader(io.BufferedReader(stream).read())
    try:
        file = pq.ParquetFile(content)
        yield from _rows(file.iter_batches(BATCH_SIZE), name)
    except pa.ArrowException as error:
        raise _damage(name, "Parquet", error) from error


def rows_of_arrow(stream: BinaryIO, name: str, *_: Any) -> Iterator[Row]:
    """Yields the rows of an Arrow stream or file; raises RecordError if it is neither, or is damaged."""
    content = io.BufferedReader(stream)
    try:
        # A file, as against a stream, begins with these letters.
        if content.peek(6)[:6] == b"ARROW1":
            file = pa.ipc.open_file(pa.BufferReader(content.read()))
            yield from _rows((file.get_batch(index) for index in range(file.num_record_batches)), name)
        else:
            yield from _rows(pa.ipc.open_stream(content), name)
    except pa.ArrowException as error:
        raise _damage(name, "Arrow", error) from error


def rows_of_dataset(dataset: datasets.Dataset, name: str) -> Iterator[Row]:
    """Yields the rows of a dataset of `datasets`."""
    tables = dataset.with_format("arrow").iter(BATCH_SIZE)
    return _rows((batch for table in tables for batch in table.to_batches()), name)


def _rows(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        readers = [_reader(field.type) for field in batch.schema]
        if not number and any(map(_holds_objects, batch.schema.types)):
            logger.info("%s: fields of objects that are null count as absent; columns cannot tell the two apart.", name)
        columns = [
            column.to_pylist() if reader is None else [reader(value) for value in column.to_pylist()]
            for column, reader in zip(batch.columns, readers, strict=True)
        ]
        for values in zip(*columns, strict=True):
            yield f"{name} row {number}", dict(zip(batch.schema.names, values, strict=True))
            number += 1
    if not number:
        raise RecordError(f"{name}: must hold records; there is none.")


def _reader(arrow_type: pa.DataType) -> Callable[[Any], Any] | None:
    """How a Python value of a type becomes what the record says; None where it is that already.

    Columns give every object the fields of all, so a null in an object stands for a field that is not there.
    """
    if isinstance(arrow_type, pa.JsonType):
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_struct(arrow_type):
        fields = {field.name: _reader(field.type) for field in arrow_type}
        return lambda value: _without_nulls(value, fields)
    if pa.types.is_map(arrow_type):
        items = _reader(arrow_type.item_type) or (lambda value: value)
        return lambda value: None if value is None else {name: items(item) for name, item in value}
    if pa.types.is_nested(arrow_type) and hasattr(arrow_type, "value_type"):
        inner = _reader(arrow_type.value_type)
        return inner and (lambda value: None if value is None else [inner(item) for item in value])
    return None


def padded_columns(dataset: datasets.Dataset | datasets.IterableDataset) -> tuple[str, ...]:
    """Columns whose objects may hold nulls that nobody wrote; none of a stream that does not know its types."""
    features = dataset.features or datasets.Features()
    return tuple(
        name for name, field in zip(features, features.arrow_schema, strict=True) if _holds_objects(field.type)
    )


def without_nulls(value: Any) -> Any:
    """A value of such a column without the fields that are null."""
    if isinstance(value, Mapping):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _holds_objects(arrow_type: pa.DataType) -> bool:
    inner = getattr(arrow_type, "value_type", None)
    return pa.types.is_struct(arrow_type) or (inner is not None and _holds_objects(inner))


def _without_nulls(
    value: Mapping[str, Any] | None, fields: Mapping[str, Callable[[Any], Any] | None]
) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        name: item if (reader := fields[name]) is None else reader(item)
        for name, item in value.items()
        if item is not None
    }


def _damage(name: str, needed: str, error: Exception) -> RecordError:
    reason = " ".join(str(error).split())
    return RecordError(f"{name}: must be a whole {needed} file; {reason[:200]}. Fetch or write it again.")
