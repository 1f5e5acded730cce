"""Rows of a source of any kind: a file, a folder, a data card, or a dataset on the Hub."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from .cards import FILE_FORMATS, CardError, DataCard
from .data_files import DataFile, as_data_file, folder_splits, identify, known_suffixes
from .formats import FORMATS, convert_rows
from .near_names import HUB_ID, did_you_mean, nearest_path
from .readers import ReadOptions, Row, rows_of_files
from .records import OnFault, RecordError, raise_fault
from .tables import rows_of_dataset
from .typed_columns import read_types
from .typed_tokens import MODE_COLUMN

logger = logging.getLogger(__name__)

# Called with what to do about single rows that are wrong; it raises where nothing is said.
Reader = Callable[..., Iterator[Row]]

# Packaged builders of `datasets` whose files our readers read.
OWN_READERS = {"json", "csv", "parquet", "text", "arrow"}


def reader_of_source(source: str | Path, split: str, data_format: str | None, kind: str) -> Reader:
    """How to get the rows of a file, a folder or a Hub dataset, with their places, as often as they are needed.

    `check_format` has seen the format.

    Raises:
        RecordError, OSError: If there is no such source or split; and the reader, if a row cannot be read.
    """
    if Path(source).is_dir():
        read = _folder(Path(source), split)
    elif Path(source).exists() or Path(source).is_symlink() or identify(str(source))[0]:
        read = _single_file(Path(source), split)
    else:
        read = _hub(str(source), split)
    return _converted(read, data_format, kind)


def reader_of_card(card: DataCard, split: str, kind: str) -> Reader:
    """How to get the rows of a card, with the names of its fields; raises as `reader_of_source`."""
    if card.path in FILE_FORMATS:
        files = [_file_of_card(card, path) for path in _split_of(card.data_files or {}, split, str(card.file))]
        read = _files(files, card.options)
    else:
        read = _hub_dataset(card.path, card.name, card.revision, card.data_files, split, card.options)
    told: set[str] = set()

    def read_renamed(on_fault: OnFault = raise_fault) -> Iterator[Row]:
        rows = read(on_fault)
        if card.types:
            rows = read_types(rows, card.types, str(card.file), on_fault)
        return _renamed(rows, card, told, on_fault)

    # A prompt may be taken from a demonstration or a ranking.
    wanted = kind if card.format is None or kind in FORMATS[card.format].kinds else card.kind
    read_records = _converted(read_renamed, card.format, wanted)
    if card.special_tokens_in_text is None:
        return read_records
    own = {MODE_COLUMN: card.special_tokens_in_text}
    return lambda on_fault=raise_fault: ((where, {**row, **own}) for where, row in read_records(on_fault))


def check_format(source: str | Path, data_format: str, kind: str | None) -> None:
    """Refuses a format that there is not, and one without records of a kind; None stands for any kind.

    Raises:
        RecordError: It is one of these.
    """
    if data_format not in FORMATS:
        raise RecordError(
            f"{source}: the format must be one of {', '.join(FORMATS)}; got {data_format!r}"
            f"{did_you_mean(data_format, FORMATS)}."
        )
    if kind is not None and kind not in FORMATS[data_format].kinds:
        raise RecordError(
            f"{source}: the format {data_format} has records of the kind {' or '.join(FORMATS[data_format].kinds)}; "
            f"got {kind!r}."
        )


def _converted(read: Reader, data_format: str | None, kind: str) -> Reader:
    """Makes records out of rows of a public format; without one, the rows are records."""
    if data_format is None:
        return read
    return lambda on_fault=raise_fault: convert_rows(read(on_fault), data_format, FORMATS[data_format], kind, on_fault)


def _renamed(rows: Iterator[Row], card: DataCard, told: set[str], on_fault: OnFault) -> Iterator[Row]:
    for where, row in rows:
        replaced = ((row.keys() - card.renamed_columns) & card.columns.keys()) - told
        for name in sorted(replaced):
            logger.info("%s: the source's own column '%s' gives way to '%s'.", card.file, name, card.columns[name])
        told |= replaced
        if card.columns.get("prompt") == "instruction" and row.get("input") and "input" not in told:
            logger.warning(
                "%s: rows have an 'input' beside 'instruction', which does not reach the prompt. `format: alpaca` puts "
                "it there; leave it out of the rows to silence this.",
                where,
            )
            told.add("input")
        try:
            record = card.map_columns(row, where)
        except RecordError as error:
            on_fault(error)
            continue
        yield where, record


def _files(files: list[DataFile], options: ReadOptions) -> Reader:
    return lambda on_fault=raise_fault: rows_of_files(files, options, on_fault)


def _file_of_card(card: DataCard, path: str) -> DataFile:
    local = _fetched(path, str(card.file)) if "://" in path else path
    by_name, compression = identify(path)
    if card.path == "files":
        return DataFile(local, as_data_file(path).format, compression, path)
    if by_name is not None and {"tsv": "csv", "jsonl": "json"}.get(by_name, by_name) != card.path and by_name != "text":
        raise CardError(
            f"{card.file}: 'pangu_trl.path' must be the format of the files; got {card.path!r} and {path}. Files of "
            "different formats need 'path: files', which goes by their suffixes."
        )
    is_dialect = (card.path, by_name) in (("csv", "tsv"), ("json", "jsonl"))
    return DataFile(local, by_name if is_dialect else card.path, compression, path)


def _single_file(path: Path, split: str) -> Reader:
    file = as_data_file(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file (looked for {path.absolute()}){nearest_path(str(path))}.")
    if split != "train":
        # Another split must not silently be the training data.
        raise RecordError(f"{path}: the split of a file must be 'train', the whole file; got {split!r}.")
    return _files([file], ReadOptions())


def _folder(folder: Path, split: str) -> Reader:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _saved_dataset(folder, split)
    files = _split_of(folder_splits(folder), split, str(folder))
    names = [str(Path(file.path).relative_to(folder)) for file in files]
    logger.info("%s[%s]: reads %s", folder, split, ", ".join(names))
    return _files(files, ReadOptions())


def _saved_dataset(folder: Path, split: str) -> Reader:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, datasets.exceptions.DatasetsError, KeyError, TypeError) as error:
        raise RecordError(f"{folder}: must be a whole folder of `save_to_disk`; {_one_line(error)}.") from error
    dataset = _split_of(saved if isinstance(saved, dict) else {"train": saved}, split, str(folder))
    return lambda *_: rows_of_dataset(dataset, f"{folder}[{split}]")


def _hub(source: str, split: str) -> Reader:
    found = HUB_ID.fullmatch(source)
    if found is None:
        raise FileNotFoundError(
            f"{source}: no such file or folder (looked for {Path(source).absolute()}){nearest_path(source)}, and "
            "not the id of a dataset on the Hub, OWNER/NAME or OWNER/NAME@REVISION."
        )
    return _hub_dataset(found["id"], None, found["revision"], None, split, ReadOptions())


def _hub_dataset(
    path: str,
    name: str | None,
    revision: str | None,
    data_files: dict[str, list[str]] | None,
    split: str,
    options: ReadOptions,
) -> Reader:
    """Files that `datasets` would read by their suffix are read here, as local ones are."""
    place = path if revision is None else f"{path}@{revision}"
    request = {"path": path, "name": name, "revision": revision, "data_files": data_files}
    builder = _from_hub(lambda: datasets.load_dataset_builder(**request), place)
    files = getattr(builder.config, "data_files", None)
    if type(builder).__module__.split(".")[-1] not in OWN_READERS or not files:
        dataset = _from_hub(lambda: datasets.load_dataset(**request, split=split), place)
        return lambda *_: rows_of_dataset(dataset, f"{place}[{split}]")
    addresses = [str(address) for address in _split_of({str(key): files[key] for key in files}, split, place)]
    others = ", ".join(sorted(str(key) for key in files if str(key) != split)) or "none"
    logger.info("%s[%s]: reads %s; other splits: %s", place, split, ", ".join(addresses), others)
    located = []
    for address in addresses:
        data_format, compression = identify(address)
        if data_format is None:
            raise RecordError(f"{place}: a file of the dataset must end in {known_suffixes()}; got {address}.")
        name_of_file = address.removeprefix("hf://datasets/")
        located.append(DataFile(_fetched(address, place), data_format, compression, name_of_file))
    return _files(located, options)


def _fetched(address: str, place: str) -> str:
    return str(_from_hub(lambda: datasets.DownloadManager().download(address), place, address))


def _from_hub(load: Callable[[], Any], place: str, address: str | None = None) -> Any:
    try:
        return load()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        wanted = (
            f"{address} cannot be fetched"
            if address
            else f"no such file or folder (looked for {Path(place).absolute()}){nearest_path(place)}, and no dataset "
            "on the Hub to be had"
        )
        raise OSError(f"{place}: {wanted}; {_one_line(error)}") from error


def _split_of(splits: Mapping[str, Any], split: str, place: str) -> Any:
    if split not in splits:
        raise RecordError(
            f"{place}: the split must be one of {', '.join(map(str, splits))}; got {split!r}. Splits are keys of "
            "'data_files' in a data card, or folders train/, validation/ and test/."
        )
    return splits[split]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
