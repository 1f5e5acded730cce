"""Records and token ids as streams: read when training asks for them, pass after pass, and kept nowhere.

A stream that is trained on never ends. So the batches of a run are those of one sequence, and a run that resumes finds
its place by reading on to it, as transformers does with any `IterableDataset`.
"""

import itertools
import json
import logging
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from .columns import Columns, cached_table
from .loading import Origin, is_mixture_card, read_valid, read_valid_parts
from .mixtures import Mixture
from .records import RecordError, validate_record
from .typed_tokens import MODE_COLUMN, check_mode

logger = logging.getLogger(__name__)

# Where a record of `stream_records` stands in its source. Encoding uses it up.
PLACE_COLUMN = "record_place"
# What encoding says of a record beside its tokens, and takes out again.
LENGTH_COLUMN = "num_tokens_of_longest"
TYPED_COLUMN = "num_typed_special_tokens"
UNKNOWN_COLUMN = "num_unknown_tokens"
# What it means that a tokenizer does not know a character.
UNKNOWN = "Such characters are all one token to the model, and what they say is lost; another tokenizer may know them."
# Enough to see that a source or its order is another one, and soon read.
RECORDS_OF_FINGERPRINT = 256


class OverlongPrompt(ValueError):
    """A prompt that leaves no room. Data in memory are refused for it, a stream leaves the record out."""


def as_stream(generate: Callable[[], Iterator[dict[str, Any]]]) -> IterableDataset:
    """A dataset of what a function generates, called anew for each pass; nothing is hashed, typed or cached."""
    return IterableDataset(ExamplesIterable(partial(_numbered, generate), {}))


def _numbered(generate: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(generate())


def stream_records(
    source: str | Path,
    kind: str,
    split: str = "train",
    data_format: str | None = None,
    special_tokens_in_text: str | None = None,
    seed: int = 0,
    buffer_size: int = 0,
) -> IterableDataset:
    """Reads and validates records one by one, when they are asked for.

    Args:
        source: As for `load_records`. Of a mixture card the parts need weights: each record is drawn from the parts by
            their weights, and a part that ends begins again.
        kind: As for `load_records`.
        split: As for `load_records`.
        data_format: As for `load_records`.
        special_tokens_in_text: As for `load_records`.
        seed: Of the order.
        buffer_size: Records that are shuffled among themselves as the stream passes; 0 keeps the order of the source.

    Returns:
        Records as of `load_records`, and in `PLACE_COLUMN` where each stands. An epoch of it is one pass over the
        source; one of a mixture has no end.

    Raises:
        RecordError: While it is read, if a record does not fit.
        CardError, OSError: As `load_records`.
    """
    own = {} if special_tokens_in_text is None else {MODE_COLUMN: check_mode(special_tokens_in_text, MODE_COLUMN)}
    origin = Origin(source, kind, split, data_format)
    if is_mixture_card(source):
        parts = read_valid_parts(origin)
        mixture = Mixture.load(source)
        mixture.check_streams()
        weights = [part.weight for part in mixture.parts]
        read = partial(_drawn, parts, weights, mixture.seed)
    else:
        read = read_valid(origin)
    stream = as_stream(partial(_placed, read, own))
    if buffer_size:
        stream = stream.shuffle(seed=seed, buffer_size=buffer_size)
    return stream


def _placed(read: Callable[[], Iterator[Any]], own: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    return ({**record, **own, PLACE_COLUMN: where} for where, record in read())


def _drawn(parts: list[Callable[[], Iterator[Any]]], weights: list[float], seed: int) -> Iterator[Any]:
    """Records of several sources by their weights, without end."""
    generator = random.Random(seed)
    streams = [_again_and_again(part) for part in parts]
    while True:
        yield next(generator.choices(streams, weights)[0])


def _again_and_again(read: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    while True:
        # A source without a record is an error of its reader.
        yield from read()


@dataclass
class EncodedStream:
    """Encodes the records of a stream, pass after pass without end; what is too long is left out and counted.

    Args:
        records: What is encoded.
        encode: Makes token ids of a record; what it says of length and typed special tokens is taken out.
        max_length: Most tokens of the longest sequence of a record; None where `encode` looks at lengths itself.
        noun: What the records are called in the log.
        keeps_columns: Whether the record's own columns stay: those of the first record, None where one lacks them.
        repeats: Turns the records of a pass into those of the stream, which may be more; for the order of PPO.

    Attributes:
        totals: Records that were read, left out, and held special tokens; the special tokens; records that held
            unknown tokens; these. Shared with a worker process of the loader. Those of the reading that began last.
    """

    records: IterableDataset
    encode: Callable[[Mapping[str, Any]], dict[str, Any]]
    max_length: int | None
    noun: str
    keeps_columns: bool = False
    repeats: Callable[[Iterator[dict[str, Any]]], Iterator[dict[str, Any]]] | None = None
    totals: torch.Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.int64).share_memory_())

    def dataset(self) -> IterableDataset:
        """The stream as the trainers take it; it knows its `encoded_stream`."""
        dataset = as_stream(self._generate)
        dataset.encoded_stream = self
        return dataset

    def describe(self) -> str:
        """How many records were read so far, and what became of them."""
        num_read, num_overlong, num_with_typed, num_typed, num_with_unknown, num_unknown = self.totals.tolist()
        text = f"{num_read} {self.noun} read from the stream; {num_overlong} left out as too long"
        if num_typed:
            text += f"; {num_typed} special tokens stood in the texts of {num_with_typed}"
        if num_unknown:
            text += f"; {num_unknown} tokens of {num_with_unknown} are unknown to the tokenizer"
        return text

    def _generate(self) -> Iterator[dict[str, Any]]:
        rows = self._passes()
        return rows if self.repeats is None else self.repeats(rows)

    def _passes(self) -> Iterator[dict[str, Any]]:
        self.totals.zero_()
        columns: tuple[str, ...] | None = None
        for number in itertools.count():
            self.records.set_epoch(number)
            num_before, num_kept = int(self.totals[0]), 0
            for record in self.records:
                place = record.get(PLACE_COLUMN) or f"record {int(self.totals[0])} of the stream"
                row = self._encode({name: value for name, value in record.items() if name != PLACE_COLUMN}, place)
                if row is not None:
                    columns = columns or tuple(row)
                    num_kept += 1
                    yield self._with_columns(row, columns, place)
            num_read = int(self.totals[0]) - num_before
            if not num_kept:
                raise ValueError(
                    f"the stream must hold {self.noun} that fit; of {num_read} in one pass none does. Check the "
                    f"source, or raise the limit of {self.max_length} tokens."
                    if num_read
                    else f"the stream must hold {self.noun}; there is none."
                )
            logger.info("Pass %d over the stream is complete: %s.", number + 1, self.describe())

    def _encode(self, record: dict[str, Any], place: str) -> dict[str, Any] | None:
        """The record's tokens; None if it is too long."""
        self.totals[0] += 1
        try:
            row = self.encode(record)
        except OverlongPrompt as error:
            return self._leave_out(f"{place}: {error}")
        except ValueError as error:
            raise ValueError(f"{place}: {error}" if place not in str(error) else str(error)) from error
        self._count_typed(row.pop(TYPED_COLUMN, 0), place)
        self._count_unknown(row.pop(UNKNOWN_COLUMN, 0), place)
        length = row.pop(LENGTH_COLUMN, 0)
        if self.max_length is not None and length > self.max_length:
            return self._leave_out(f"{place}: has {length} tokens, max_length is {self.max_length}")
        return (record | row) if self.keeps_columns else row

    def _leave_out(self, reason: str) -> None:
        self.totals[1] += 1
        count = int(self.totals[1])
        # At 1, 2, 4, 8, ...: seen early, and not a flood.
        if count & (count - 1) == 0:
            logger.warning("%d %s of %d left out as too long so far: %s", count, self.noun, self.totals[0], reason)

    def _count_typed(self, count: int, place: str) -> None:
        if count:
            if not self.totals[2]:
                logger.warning(
                    "Special tokens stand in the texts of the stream, first in %s; what becomes of them %s says. "
                    "Further ones are counted.",
                    place,
                    MODE_COLUMN,
                )
            self.totals[2] += 1
            self.totals[3] += count

    def _count_unknown(self, count: int, place: str) -> None:
        if count:
            if not self.totals[4]:
                logger.warning(
                    "The tokenizer does not know all of the stream's text, first in %s. %s Further tokens are counted.",
                    place,
                    UNKNOWN,
                )
            self.totals[4] += 1
            self.totals[5] += count

    def _with_columns(self, row: dict[str, Any], columns: tuple[str, ...], place: str) -> dict[str, Any]:
        """The row with the columns of the first one: a batch is made of all rows alike."""
        if tuple(row) == columns:
            return row
        unknown = [name for name in row if name not in columns]
        missing = [name for name in columns if name not in row]
        if unknown or (missing and not self.keeps_columns):
            differing = ", ".join(unknown or missing)
            raise RecordError(
                f"{place}: the columns of a stream are those of its first record, which has "
                f"{'no' if unknown else 'a'} {differing}. Give every record the same columns, or load the source whole."
            )
        return {name: row.get(name) for name in columns}


def column_names(dataset: datasets.Dataset | IterableDataset) -> list[str]:
    """The columns of a dataset; of a stream that does not know them those of its first record."""
    return list(next(iter(dataset), {})) if dataset.column_names is None else dataset.column_names


def read_whole(stream: IterableDataset, kind: str, name: str) -> datasets.Dataset:
    """The records of a stream that ends, validated, as a dataset of `load_records`: figures need all of them.

    Args:
        stream: Read twice, to its end.
        kind: Kind of its records; None takes them as they are.
        name: What it is called, for errors.

    Raises:
        RecordError: A record does not fit, or there is none.
    """

    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, record in enumerate(stream):
            where = record.pop(PLACE_COLUMN, None) or f"{name} record {number}"
            yield where, validate_record(record, kind, where) if kind else record

    columns = Columns()
    for where, record in read():
        columns.add(record, where)
    if not columns.num_records:
        raise RecordError(f"the {name} stream must hold records; there is none.")
    return cached_table(read(), columns, f"the {name} stream")


def fingerprint_of_stream(stream: IterableDataset) -> str:
    """A checksum of the first records, which tells another source, order or seed."""
    was_disabled, logger.disabled = logger.disabled, True
    try:
        first = itertools.islice(stream, RECORDS_OF_FINGERPRINT)
        checksum = 0
        for record in first:
            checksum = zlib.crc32(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8"), checksum)
    finally:
        logger.disabled = was_disabled
    return f"first {RECORDS_OF_FINGERPRINT} records of a stream, {checksum:08x}"
