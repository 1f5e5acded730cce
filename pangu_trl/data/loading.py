"""Loading canonical records from JSON lines, data cards, or anything that `datasets` can load."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.fingerprint import Hasher

from .cards import CardError, DataCard
from .jsonl import read_numbered_jsonl
from .records import RecordError, validate_record
from .typed_tokens import MODE_COLUMN, check_mode

logger = logging.getLogger(__name__)

# Which kinds of card can serve each kind of request: a prompt is part of a demonstration and of a ranking.
SERVING_KINDS = {
    "demonstration": ("demonstration",),
    "ranking": ("ranking",),
    "prompt": ("prompt", "demonstration", "ranking"),
    "text": ("text",),
}

Row = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Origin:
    """What `load_records` was asked for; the dataset keeps it as long as its rows stay as they are."""

    source: str | Path
    kind: str
    split: str


def load_records(
    source: str | Path, kind: str, split: str = "train", special_tokens_in_text: str | None = None
) -> datasets.Dataset:
    """Loads and validates every record of a source.

    The result lives in the cache of `datasets` under a fingerprint of its content, so that later steps are computed
    once for the same records.

    Args:
        source: A `.jsonl` file, a `.md` data card, or what `datasets.load_dataset` takes: a Hub id or a folder.
        kind: The kind of record wanted: demonstration, ranking, prompt or text. Demonstrations and rankings can serve
            as prompts.
        split: The split to load. A `.jsonl` file has only `train`.
        special_tokens_in_text: What becomes of special tokens that the texts spell, one of `typed_tokens.MODES`; it
            goes with the records as a column of that name. None leaves it to the card, or to a column of the source.

    Returns:
        A dataset with the columns of the kind (see `records.py`) and every other column of the source.

    Raises:
        RecordError: If a record does not fit; the message begins with FILE:LINE or `SOURCE[SPLIT] row N` (from 0).
        CardError: If a card is broken or describes another kind of record.
    """
    if kind not in SERVING_KINDS:
        raise RecordError(f"{source}: the kind of record must be one of {', '.join(SERVING_KINDS)}; got {kind!r}.")
    origin = Origin(source, kind, split)
    records = _validated(read_rows(origin), kind)
    if special_tokens_in_text is not None:
        mode = check_mode(special_tokens_in_text, MODE_COLUMN)
        records = (record | {MODE_COLUMN: mode} for record in records)
    dataset = _to_dataset(records, f"{source}[{split}]")
    # On the object alone: whatever `datasets` derives from it may have other rows.
    dataset.origin = origin
    logger.info("%s[%s]: %s", source, split, _summary(dataset, kind))
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
    return next((place for place, _ in islice(read_rows(origin), row, None)), None)


def read_rows(origin: Origin, on_fault: Callable[[RecordError], None] | None = None) -> Iterator[Row]:
    """The records of a source as they are, with their places.

    With `on_fault` a line that is no record is handed to it instead of raised, and left out.
    """
    suffix = Path(origin.source).suffix
    if suffix == ".jsonl":
        return _rows_of_jsonl(Path(origin.source), origin.split, on_fault)
    if suffix == ".md":
        return _rows_of_card(DataCard.load(origin.source), origin.kind, origin.split)
    if Path(origin.source).is_file():
        raise RecordError(
            f"{origin.source}: a file of records must be .jsonl, or a data card .md; got {suffix or 'no suffix'!r}."
        )
    return _rows_of_dataset(origin.source, origin.split)


def _rows_of_jsonl(path: Path, split: str, on_fault: Callable[[RecordError], None] | None = None) -> Iterator[Row]:
    if split != "train":
        # Another split must not silently be the training data.
        raise RecordError(f"{path}: the split of a JSON lines file must be 'train', the whole file; got {split!r}.")
    return ((f"{path}:{line}", record) for line, record in read_numbered_jsonl(path, on_fault))


def _rows_of_card(card: DataCard, kind: str, split: str) -> Iterator[Row]:
    if card.kind not in SERVING_KINDS[kind]:
        raise CardError(
            f"{card.file}: 'pangu_trl.kind' must be {' or '.join(SERVING_KINDS[kind])} to load {kind} records; "
            f"got {card.kind!r}."
        )
    dataset = datasets.load_dataset(
        card.path, name=card.name, revision=card.revision, data_files=card.data_files, split=split
    )
    replaced = (set(dataset.column_names) - card.renamed_columns) & card.columns.keys()
    for name in sorted(replaced):
        logger.info("%s: the source's own column '%s' gives way to '%s'.", card.file, name, card.columns[name])
    for number, row in enumerate(dataset):
        where = f"{card.file}[{split}] row {number}"
        own = {} if card.special_tokens_in_text is None else {MODE_COLUMN: card.special_tokens_in_text}
        yield where, card.map_columns(row, where) | own


def _rows_of_dataset(source: str | Path, split: str) -> Iterator[Row]:
    dataset = datasets.load_dataset(str(source), split=split)
    return ((f"{source}[{split}] row {number}", row) for number, row in enumerate(dataset))


def _validated(rows: Iterable[Row], kind: str) -> Iterator[dict[str, Any]]:
    """Validates each record, and that all prompts have one form, since a column of Arrow has one type."""
    first_form = None
    for where, row in rows:
        record = validate_record(row, kind, where)
        form = "messages" if isinstance(record.get("prompt"), list) else "text"
        if first_form is None:
            first_form, first_where = form, where
        if form != first_form:
            raise RecordError(
                f"{where}: 'prompt' must be {first_form}, as in {first_where}; got {form}. Convert one of the two "
                "forms, or keep them in two sources."
            )
        yield record


def _to_dataset(records: Iterable[dict[str, Any]], source: str) -> datasets.Dataset:
    records = list(records)
    # Names in order of first appearance: `Dataset.from_list` would keep only the columns of the first record.
    names = dict.fromkeys(name for record in records for name in record)
    table = pa.table({name: _to_arrow([record.get(name) for record in records], name, source) for name in names})
    in_memory = datasets.Dataset(table)
    # A dataset in memory has no cache: every later `map` would be computed again in every run and on every rank.
    return datasets.Dataset.from_generator(
        _iterate,
        features=in_memory.features,
        gen_kwargs={"dataset": in_memory},
        fingerprint=Hasher.hash(table),
    )


def _iterate(dataset: datasets.Dataset) -> Iterator[dict[str, Any]]:
    yield from dataset


def _to_arrow(values: list[Any], name: str, source: str) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise RecordError(
            f"{source}: '{name}' must have one type in all records; got {error}. Convert the column or remove it."
        ) from error


def _summary(dataset: datasets.Dataset, kind: str) -> str:
    if kind != "ranking":
        return f"{len(dataset)} {kind} records"
    groups = list(dataset["scores"])
    counts = Counter(len(scores) for scores in groups)
    distribution = ", ".join(f"{size}: {count}" for size, count in sorted(counts.items()))
    num_tied = sum(len(set(scores)) == 1 for scores in groups)
    return (
        f"{len(dataset)} ranking records (answers per prompt: records = {distribution}); "
        f"all answers tied, nothing to learn: {num_tied}"
    )
