"""Loading canonical records from files, folders, data cards, mixtures of them, and the Hub."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from .cards import CardError, DataCard, read_block, read_kind
from .columns import Columns, cached_table
from .mixtures import Mixture, Part, is_mixture
from .readers import Row
from .records import OnFault, RecordError, raise_fault, validate_record
from .sources import Reader, check_format, reader_of_card, reader_of_source
from .typed_tokens import MODE_COLUMN, check_mode

logger = logging.getLogger(__name__)

# Which kinds of card can serve each kind of request: a prompt is part of a demonstration and of a ranking.
SERVING_KINDS = {
    "demonstration": ("demonstration",),
    "ranking": ("ranking",),
    "prompt": ("prompt", "demonstration", "ranking"),
    "text": ("text",),
}

# Errors of reading that end a source: what comes behind them cannot be seen.
READING_ERRORS = (ValueError, OSError, datasets.exceptions.DatasetGenerationError)


@dataclass(frozen=True)
class Origin:
    """What `load_records` was asked for; the dataset keeps it as long as its rows stay as they are."""

    source: str | Path
    kind: str
    split: str
    format: str | None = None
    order: list[int] | None = field(default=None, repr=False)


def load_records(
    source: str | Path,
    kind: str,
    split: str = "train",
    data_format: str | None = None,
    special_tokens_in_text: str | None = None,
) -> datasets.Dataset:
    """Loads and validates every record of a source.

    The result lives in the cache of `datasets` under a fingerprint of its content, so that later steps are computed
    once for the same records.

    Args:
        source: A file of records (.jsonl, .json, .csv, .tsv, .txt, .parquet, .arrow, also packed), a folder of such
            files or of `save_to_disk`, a `.md` data card or mixture card, or the id of a dataset on the Hub
            (`OWNER/NAME`, or `OWNER/NAME@REVISION`).
        kind: The kind of record wanted: demonstration, ranking, prompt or text. Demonstrations and rankings can serve
            as prompts.
        split: The split to load. A file has only `train`; a folder has `train` too, unless it has folders of splits.
        data_format: The public format of the rows, one of `formats.FORMATS`; None where the columns are ours. A data
            card says this itself.
        special_tokens_in_text: What becomes of special tokens that the texts spell, one of `typed_tokens.MODES`; it
            goes with the records as a column of that name. None leaves it to the card, or to a column of the source.

    Returns:
        A dataset with the columns of the kind (see `records.py`) and every other column of the source. Objects in it
        hold what they hold in the source, nothing more.

    Raises:
        RecordError: If a record does not fit; the message begins with `FILE:LINE` or `FILE row N` (from 0).
        CardError: If a card is broken or describes another kind of record.
        OSError: If the source, or the cache, cannot be reached.
    """
    if kind not in SERVING_KINDS:
        raise RecordError(f"{source}: the kind of record must be one of {', '.join(SERVING_KINDS)}; got {kind!r}.")
    origin = Origin(source, kind, split, data_format)
    own = {} if special_tokens_in_text is None else {MODE_COLUMN: check_mode(special_tokens_in_text, MODE_COLUMN)}
    columns, summary, sizes = Columns(), _Summary(), Counter[int]()
    read = _reader(origin)
    for (where, record), part in _validated(read(), kind):
        columns.add(record | own, where)
        summary.add(record)
        sizes[part] += 1
    if not columns.num_records:
        raise RecordError(f"{source}[{split}]: must hold records; there is none.")
    records = ((where, record | own) for (where, record), _ in _validated(read(), kind))
    dataset = cached_table(records, columns, f"{source}[{split}]")
    logger.info("%s[%s]: %s", source, split, summary.describe(columns.num_records, kind))
    if is_mixture_card(source):
        dataset, origin = _mixed(dataset, Mixture.load(source), origin, sizes, columns.fingerprint())
    # On the object alone: whatever `datasets` derives from it may have other rows.
    dataset.origin = origin
    return dataset


def origin_of(dataset: datasets.Dataset) -> Origin | None:
    """What a dataset of `load_records` was loaded from; None for any other, and for what was derived from one."""
    return getattr(dataset, "origin", None)


def place_of(dataset: datasets.Dataset, row: int) -> str | None:
    """Where a row of a dataset of `load_records` stands in its source, such as `answers.jsonl:3`; None for any other.

    For the errors that only show once the records are used. The source is read again.
    """
    origin = origin_of(dataset)
    if origin is None:
        return None
    row = row if origin.order is None else origin.order[row]
    return next((place for place, _ in islice(read_rows(origin), row, None)), None)


def read_rows(origin: Origin, on_fault: OnFault = raise_fault) -> Iterator[Row]:
    """The records of a source as they are, with their places.

    With another `on_fault` than the default, rows, files and parts of a mixture that cannot be read are handed to it,
    and the others read.
    """
    if on_fault is raise_fault or not is_mixture_card(origin.source):
        yield from (row for row, _ in _reader(origin)(on_fault))
        return
    mixture = Mixture.load(origin.source)
    for part in mixture.parts:
        try:
            yield from _reader_of_part(part, mixture, origin.kind)(on_fault)
        except READING_ERRORS as error:
            on_fault(RecordError(f"{mixture.file}: {error} What stands behind it in that source was not read."))


def read_valid(origin: Origin) -> Callable[[], Iterator[Row]]:
    """How to get the records of a source, validated, with their places, as often as they are needed.

    Raises:
        CardError, OSError: As `load_records`; and the reader RecordError.
    """
    read = _reader(origin)
    return lambda: (row for row, _ in _validated(read(), origin.kind))


def read_valid_parts(origin: Origin) -> list[Callable[[], Iterator[Row]]]:
    """The same for each part of a mixture."""
    readers = _readers_of_mixture(origin)
    return [
        lambda read=read: (row for row, _ in _validated(((row, 0) for row in read()), origin.kind)) for read in readers
    ]


def kind_of_card(source: str | Path) -> str | None:
    """The kind of record that a data card or mixture card says; None for other sources.

    Raises:
        CardError, OSError: The card cannot be read.
    """
    return read_kind(Path(source), read_block(Path(source))) if is_card(source) else None


def refuse_wrong_format(source: str | Path, data_format: str | None, kind: str | None) -> None:
    """Refuses a format beside a card, and one that `check_format` refuses.

    Raises:
        CardError, RecordError: It is refused.
    """
    if data_format is None:
        return
    if is_card(source):
        raise CardError(
            f"{source}: a card names its format itself, with the key 'format'; got {data_format!r} beside it."
        )
    check_format(source, data_format, kind)


def is_mixture_card(source: str | Path) -> bool:
    """Whether a source is the card of a mixture; raises CardError if it is a card that cannot be read."""
    return is_card(source) and is_mixture(source)


def _reader(origin: Origin) -> Callable[..., Iterator[tuple[Row, int]]]:
    """How to get the records of a source as they are, with the number of the part of a mixture that each belongs to."""
    refuse_wrong_format(origin.source, origin.format, origin.kind)
    if not is_card(origin.source):
        return _numbered([reader_of_source(origin.source, origin.split, origin.format, origin.kind)])
    if not is_mixture(origin.source):
        card = DataCard.load(origin.source)
        _check_kind(card, origin.kind)
        return _numbered([reader_of_card(card, origin.split, origin.kind)])
    return _numbered(_readers_of_mixture(origin))


def _readers_of_mixture(origin: Origin) -> list[Reader]:
    mixture = Mixture.load(origin.source)
    _check_kind(mixture, origin.kind)
    if origin.split != "train":
        raise RecordError(f"{origin.source}: the split of a mixture must be 'train', the whole; got {origin.split!r}.")
    return [_reader_of_part(part, mixture, origin.kind) for part in mixture.parts]


def _reader_of_part(part: Part, mixture: Mixture, kind: str) -> Reader:
    if is_mixture_card(part.source):
        raise CardError(f"{mixture.file}: {part.source} must not be a mixture itself. Name its parts.")
    read = _reader(Origin(part.source, kind, part.split, part.format))
    return lambda on_fault=raise_fault: (row for row, _ in read(on_fault))


def _numbered(readers: list[Reader]) -> Callable[..., Iterator[tuple[Row, int]]]:
    return lambda on_fault=raise_fault: ((row, number) for number, read in enumerate(readers) for row in read(on_fault))


def is_card(source: str | Path) -> bool:
    """Whether a source is a data card or the card of a mixture, by its name."""
    return Path(source).suffix.lower() == ".md" and not (Path(source).is_dir() and any(Path(source).iterdir()))


def _check_kind(card: DataCard | Mixture, kind: str) -> None:
    if card.kind not in SERVING_KINDS[kind]:
        raise CardError(
            f"{card.file}: 'pangu_trl.kind' must be {' or '.join(SERVING_KINDS[kind])} to load {kind} records; "
            f"got {card.kind!r}."
        )


def _validated(rows: Iterable[tuple[Row, int]], kind: str) -> Iterator[tuple[tuple[str, dict[str, Any]], int]]:
    """Validates each record, and that all prompts have one form, since a column of Arrow has one type."""
    first_form = None
    for (where, row), part in rows:
        record = validate_record(row, kind, where)
        form = "messages" if isinstance(record.get("prompt"), list) else "text"
        if first_form is None:
            first_form, first_where = form, where
        if form != first_form:
            raise RecordError(
                f"{where}: 'prompt' must be {first_form}, as in {first_where}; got {form}. Convert one of the two "
                "forms, or keep them in two sources."
            )
        yield (where, record), part


def _mixed(
    dataset: datasets.Dataset, mixture: Mixture, origin: Origin, sizes: Mapping[int, int], fingerprint: str
) -> tuple[datasets.Dataset, Origin]:
    """Puts the records of the parts, which follow one another, into the order of the mixture."""
    lengths = [sizes[number] for number in range(len(mixture.parts))]
    order = mixture.order(lengths)
    if not order:
        raise CardError(f"{mixture.file}: the mixture must hold records; its weights and epochs give none.")
    for part, length, count in zip(mixture.parts, lengths, mixture.counts(lengths), strict=True):
        logger.info("%s: %d records of the %d in %s", mixture.file, count, length, part.source)
    digest = hashlib.sha256(f"{fingerprint} {order}".encode()).hexdigest()[:32]
    mixed = dataset.select(order, new_fingerprint=digest)
    return mixed, Origin(origin.source, origin.kind, origin.split, order=order)


@dataclass
class _Summary:
    """What the log says about rankings."""

    num_tied: int = 0
    num_answers: Counter[int] = field(default_factory=Counter)

    def add(self, record: Mapping[str, Any]) -> None:
        if isinstance(record.get("scores"), list):
            self.num_answers[len(record["scores"])] += 1
            self.num_tied += len(set(record["scores"])) == 1

    def describe(self, num_records: int, kind: str) -> str:
        if kind != "ranking":
            return f"{num_records} {kind} records"
        distribution = ", ".join(f"{size}: {count}" for size, count in sorted(self.num_answers.items()))
        return (
            f"{num_records} ranking records (answers per prompt: records = {distribution}); "
            f"all answers tied, nothing to learn: {self.num_tied}"
        )
