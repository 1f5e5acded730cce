"""The types of the columns of records, and the table in the cache that holds them exactly."""

import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.table import MemoryMappedTable

from .exact_json import ExactJson
from .records import RecordError
from .strict_json import check_unicode

BATCH_SIZE = 1000

# A change of how records are stored must not meet the tables of before.
CODE_DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

NAMES = {bool: "a truth value", int: "an integer", float: "a number", str: "text", dict: "an object", list: "a list"}
ARROW_TYPES = {
    bool: pa.bool_(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    datetime.date: pa.date32(),
    datetime.time: pa.time64("us"),
    datetime.timedelta: pa.duration("us"),
}
# What the parser of `datasets`, which checks every nested value, can read.
SMALLEST_INTEGER, LARGEST_INTEGER = -(2**63), 2**64 - 1
LARGEST_EXACT_FLOAT = 2**53


@dataclass
class _Column:
    """What the values of a column, or the elements of its lists, have in common so far."""

    kind: type | None = None
    where: str = ""
    item: "_Column | None" = None
    smallest: tuple[int, str] = (0, "")
    largest: tuple[int, str] = (0, "")
    timezone: str | None = None

    def add(self, value: Any, name: str, where: str) -> None:
        if value is None:
            return
        value_type = _type(value, name, where)
        if self.kind is None:
            self.kind, self.where = value_type, where
        elif self.kind is not value_type:
            if {self.kind, value_type} != {int, float}:
                raise RecordError(
                    f"{where}: '{name}' must be {_name(self.kind)}, as in {self.where}; got {_name(value_type)}. A "
                    "column has one type: convert it, or remove it."
                )
            self.kind = float
        if value_type is int:
            self.smallest, self.largest = min(self.smallest, (value, where)), max(self.largest, (value, where))
        elif value_type is list:
            self.item = self.item or _Column()
            for item in value:
                self.item.add(item, name, where)
        elif value_type is dict:
            _check_object(value, f"{where}: '{name}'")
        elif value_type is str and not value.isascii():
            check_unicode(value, f"{where}: '{name}'")
        elif value_type is datetime.datetime:
            self.timezone = self._same_timezone(value, name, where)

    def feature(self, name: str) -> Any:
        """The feature of `datasets` that holds all values exactly."""
        if self.kind is None:
            return datasets.Value("null") if self.item is None else datasets.List(self.item.feature(name))
        if self.kind is list:
            return datasets.List((self.item or _Column()).feature(name))
        if self.kind is dict:
            return ExactJson()
        if self.kind is datetime.datetime:
            return datasets.Value(f"timestamp[us, tz={self.timezone}]" if self.timezone else "timestamp[us]")
        if self.kind is int:
            return datasets.Value(self._integer(name))
        if self.kind is float:
            for number, where in (self.smallest, self.largest):
                if abs(number) > LARGEST_EXACT_FLOAT:
                    raise RecordError(
                        f"{where}: '{name}' must be an integer that a float holds exactly, since other records have "
                        f"floats there; got {number}. Write the column as text, or as integers alone."
                    )
        return datasets.Value(str(ARROW_TYPES[self.kind]).replace("double", "float64"))

    def _integer(self, name: str) -> str:
        (smallest, where), (largest, where_largest) = self.smallest, self.largest
        if smallest >= -(2**63) and largest < 2**63:
            return "int64"
        if smallest >= 0 and largest < 2**64:
            return "uint64"
        number, where = (smallest, where) if smallest < -(2**63) else (largest, where_largest)
        raise RecordError(
            f"{where}: '{name}' must be an integer of 64 bits; got {number}. Write the column as text, in quotation "
            "marks."
        )

    def _same_timezone(self, value: datetime.datetime, name: str, where: str) -> str | None:
        timezone = str(value.tzinfo) if value.tzinfo else None
        if getattr(value, "nanosecond", 0):
            raise RecordError(f"{where}: '{name}' must be a time in microseconds; got {value}. Write it as text.")
        if where != self.where and timezone != self.timezone:
            raise RecordError(
                f"{where}: '{name}' must be a time of the zone {self.timezone}, as in {self.where}; got {timezone}."
            )
        return timezone


@dataclass
class Columns:
    """Learns the types of all columns from the records, and a digest of what they say.

    Attributes:
        num_records: How many it has seen.
        by_name: What their columns have in common.
    """

    num_records: int = 0
    by_name: dict[str, _Column] = field(default_factory=dict)
    _digest: Any = field(default_factory=hashlib.sha256)

    def add_types(self, record: Mapping[str, Any], where: str) -> None:
        """Takes the types of one more record.

        Raises:
            RecordError: If a value has another type than those before it, or cannot be kept exactly.
        """
        for name, value in record.items():
            if name not in self.by_name:
                check_unicode(name, where)
                self.by_name[name] = _Column()
            self.by_name[name].add(value, name, where)

    def faults(self) -> list[RecordError]:
        """What is wrong with the columns as wholes, for which `features` raises."""
        found = []
        for name, column in self.by_name.items():
            try:
                column.feature(name)
            except RecordError as error:
                found.append(error)
        return found

    def add(self, record: Mapping[str, Any], where: str) -> None:
        """Takes one more record; raises as `add_types`."""
        self.add_types(record, where)
        self._digest.update(json.dumps(record, ensure_ascii=False, default=repr).encode("utf-8"))
        self.num_records += 1

    def features(self) -> datasets.Features:
        """The types of the columns, in the order of their first appearance."""
        return datasets.Features({name: column.feature(name) for name, column in self.by_name.items()})

    def fingerprint(self) -> str:
        """The same for the same records with the same columns, and for no others."""
        digest = self._digest.copy()
        digest.update(f"{self.features()} {CODE_DIGEST}".encode())
        return digest.hexdigest()[:32]


def cached_table(records: Iterable[tuple[str, Mapping[str, Any]]], columns: Columns, source: str) -> datasets.Dataset:
    """The dataset of the records, in the cache of `datasets` under a fingerprint of their content.

    Args:
        records: The records with their places; they are read only if the cache lacks them.
        columns: Has seen all of them.
        source: Named in messages.

    Raises:
        RecordError: If the records are no longer those that `columns` has seen.
        OSError: If the cache cannot be written.
    """
    features, fingerprint = columns.features(), columns.fingerprint()
    # A folder of its own: what is derived from the dataset is cached beside it.
    path = Path(datasets.config.HF_DATASETS_CACHE) / "pangu_trl" / fingerprint / "records.arrow"
    if not _is_whole(path, columns.num_records):
        try:
            _write(path, records, features, fingerprint, source)
        except OSError as error:
            raise OSError(
                f"{source}: the records must be written to the cache of datasets, {path.parent.parent}; {error}. Free "
                "space there, or name another folder in the environment variable HF_DATASETS_CACHE."
            ) from error
    table = MemoryMappedTable.from_file(str(path))
    info = datasets.DatasetInfo(features=features)
    return datasets.Dataset(table, info=info, split=datasets.Split.TRAIN, fingerprint=fingerprint)


def _is_whole(path: Path, num_records: int) -> bool:
    try:
        return MemoryMappedTable.from_file(str(path)).num_rows == num_records
    except (OSError, pa.ArrowException):
        return False


def _write(
    path: Path,
    records: Iterable[tuple[str, Mapping[str, Any]]],
    features: datasets.Features,
    fingerprint: str,
    source: str,
) -> None:
    schema = features.arrow_schema
    written = Columns()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    rows = iter(records)
    try:
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            while batch := list(islice(rows, BATCH_SIZE)):
                for where, record in batch:
                    written.add(record, where)
                writer.write_batch(_to_batch([record for _, record in batch], features, schema))
        if written.fingerprint() != fingerprint:
            raise RecordError(f"{source}: the records changed while they were read. Load them again.")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _to_batch(records: list[Mapping[str, Any]], features: datasets.Features, schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for name, arrow_type in zip(schema.names, schema.types, strict=True):
        values = [record.get(name) for record in records]
        feature = features[name]
        depth = 0
        while isinstance(feature, datasets.List):
            feature, depth = feature.feature, depth + 1
        if isinstance(feature, ExactJson):
            stored = pa.string()
            for _ in range(depth):
                stored = pa.list_(stored)
            arrays.append(_as_json(pa.array([_encode(value, feature) for value in values], stored)))
        else:
            arrays.append(pa.array(values, arrow_type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _encode(value: Any, feature: ExactJson) -> Any:
    return [_encode(item, feature) for item in value] if isinstance(value, list) else feature.encode_example(value)


def _as_json(array: pa.Array) -> pa.Array:
    if pa.types.is_list(array.type):
        inner = _as_json(array.values)
        return pa.ListArray.from_arrays(array.offsets, inner, mask=array.is_null() if array.null_count else None)
    return pa.ExtensionArray.from_storage(pa.json_(), array)


def _type(value: Any, name: str, where: str) -> type:
    # bool is an int in Python, and datetime a date.
    for known in (bool, int, float, str, dict, list, bytes, datetime.datetime, *ARROW_TYPES):
        if isinstance(value, known):
            return known
    raise RecordError(
        f"{where}: '{name}' must be text, a number, a truth value, a list, an object, a time or bytes; got "
        f"{type(value).__name__}. Convert it in the source, e.g. to text."
    )


def _name(value_type: type) -> str:
    return NAMES.get(value_type, f"a {value_type.__name__}")


def _check_object(value: Any, where: str) -> None:
    """Raises RecordError unless JSON text holds a nested value exactly."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_object(name, where)
            _check_object(item, f"{where}.{name}" if isinstance(item, dict | list) else where)
    elif isinstance(value, list):
        for item in value:
            _check_object(item, where)
    elif isinstance(value, str):
        if not value.isascii():
            check_unicode(value, where)
    elif isinstance(value, int):
        if not SMALLEST_INTEGER <= value <= LARGEST_INTEGER:
            raise RecordError(f"{where}: integers must fit into 64 bits; got {value}. Write it as text.")
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise RecordError(f"{where}: numbers must be finite; got {value}. Write null, or leave the field out.")
    elif value is not None:
        raise RecordError(
            f"{where}: what is inside an object must be text, numbers, lists or objects; got "
            f"{type(value).__name__}. Convert it in the source, e.g. to text."
        )
