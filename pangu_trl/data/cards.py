"""Data cards: a dataset's description for people, with a block in its header that says how to read the records."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from .records import KINDS, RecordError
from .typed_tokens import MODE_COLUMN, MODES

# Formats of `datasets.load_dataset` that read files beside the card; any other path is a dataset on the Hub.
FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow")

RECORD_FIELDS = {
    "demonstration": ("prompt", "completion"),
    "ranking": ("prompt", "responses", "scores", "chosen", "rejected", "ranked"),
    "prompt": ("prompt",),
    "text": ("text",),
}

HEADER = re.compile(r"\A---[ \t]*\n(?P<yaml>.*?\n)---[ \t]*(?:\n|\Z)", re.DOTALL)
COLUMN_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+)*(\[\](\.[^.\[\]]+)+)?")


class CardError(ValueError):
    """A data card that cannot be used; the message names the card, the key, what it must be and what it is."""


@dataclass(frozen=True)
class DataCard:
    """How to turn a source that `datasets.load_dataset` can read into canonical records.

    Attributes:
        file: The card itself.
        kind: The kind of record, one of `KINDS`.
        path: A file format (json, csv, parquet, text, arrow) or the id of a dataset on the Hub.
        name: The configuration of a Hub dataset.
        revision: The branch, tag or commit of a Hub dataset.
        data_files: The files of each split; those of a file format are absolute paths.
        columns: For each field of our records the source column that holds it, as a path: `a`, `a.b` or `a[].b`.
        special_tokens_in_text: What becomes of special tokens that the texts spell; see `typed_tokens`.
    """

    file: Path
    kind: str
    path: str
    name: str | None = None
    revision: str | None = None
    data_files: dict[str, list[str]] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    special_tokens_in_text: str | None = None

    @classmethod
    def load(cls, path: str | Path) -> "DataCard":
        """Reads the `pangu_trl` block of a card.

        Raises:
            FileNotFoundError: If there is no such card, or a local data file that it names is missing.
            CardError: If the block is missing or a key of it is unknown or has an unusable value.
        """
        file = Path(path)
        block = _read_block(file)
        known = [attribute.name for attribute in fields(cls) if attribute.name != "file"]
        for key in block:
            if key not in known:
                raise CardError(f"{file}: 'pangu_trl.{key}' is not a key of a card; the keys are {', '.join(known)}.")
        if block.get("kind") not in KINDS:
            raise _refusal(file, "kind", f"one of {', '.join(KINDS)}", block.get("kind"))
        if block.get(MODE_COLUMN, MODES[0]) not in MODES:
            raise _refusal(file, MODE_COLUMN, f"one of {', '.join(MODES)}", block[MODE_COLUMN])
        for key in ("path", "name", "revision"):
            value = block.get(key)
            if not (isinstance(value, str) and value) and (value is not None or key == "path"):
                raise _refusal(file, key, "text", value)
        return cls(
            file=file,
            kind=block["kind"],
            path=block["path"],
            name=block.get("name"),
            revision=block.get("revision"),
            data_files=_read_data_files(file, block["path"], block.get("data_files")),
            columns=_read_columns(file, block["kind"], block.get("columns")),
            special_tokens_in_text=block.get(MODE_COLUMN),
        )

    @property
    def renamed_columns(self) -> set[str]:
        """Source columns that a record holds under our name instead of theirs."""
        return {path for path in self.columns.values() if "." not in path}

    def map_columns(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Gives the fields of a source row our names; columns of which the card takes only a part, or none, are kept.

        Raises:
            RecordError: If the row lacks a column that the card names.
        """
        renamed = self.renamed_columns
        kept = {name: value for name, value in row.items() if name not in renamed}
        return kept | {name: _read_path(row, path, f"{where}: '{path}'") for name, path in self.columns.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a repeated key is an error; by default the last value wins without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                problem = f"the key '{key_node.value}' occurs twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _read_block(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such data card (looked for {file.absolute()}).")
    header = HEADER.match(file.read_text(encoding="utf-8-sig"))
    if header is None:
        raise CardError(f"{file}: must begin with a YAML header between two lines '---'; got none.")
    try:
        metadata = yaml.load(header["yaml"], Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        # The mark counts from 0 and does not see the opening line of the header.
        line = error.problem_mark.line + 2
        raise CardError(
            f"{file}:{line}: the header must be YAML; {error.problem}. Inside {{...}} a path such as answers[].text "
            "needs quotes."
        ) from error
    block = metadata.get("pangu_trl") if isinstance(metadata, dict) else None
    if not isinstance(block, dict):
        raise CardError(
            f"{file}: the header must hold a block 'pangu_trl' with at least 'kind' and 'path'; got {block!r}."
        )
    return block


def _read_data_files(file: Path, path: str, data_files: Any) -> dict[str, list[str]] | None:
    if data_files is None:
        if path in FILE_FORMATS:
            raise _refusal(file, "data_files", f"given when 'path' is {path}", data_files)
        return None
    by_split = data_files if isinstance(data_files, dict) else {"train": data_files}
    names = {split: [value] if isinstance(value, str) else value for split, value in by_split.items()}
    for split, values in names.items():
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise _refusal(file, "data_files", "a file, a list of files, or such for each split", data_files)
        if not isinstance(split, str):
            raise _refusal(file, "data_files", "files for each split, named by text", data_files)
    if path not in FILE_FORMATS:
        return names
    return {split: [_locate(file, value) for value in values] for split, values in names.items()}


def _locate(file: Path, name: str) -> str:
    """Resolves a data file against the card's folder; addresses stay as they are."""
    if "://" in name:
        return name
    located = file.absolute().parent / name
    if not any(wildcard in name for wildcard in "*?[") and not located.is_file():
        raise FileNotFoundError(
            f"{file}: 'pangu_trl.data_files' must name files, relative to the card; got {name!r}, which is missing."
        )
    return str(located)


def _read_columns(file: Path, kind: str, columns: Any) -> dict[str, str]:
    if columns is None:
        return {}
    if not isinstance(columns, dict):
        raise _refusal(file, "columns", "a mapping of our fields to source columns", columns)
    for name, path in columns.items():
        if name not in RECORD_FIELDS[kind]:
            raise CardError(
                f"{file}: 'pangu_trl.columns.{name}' is not a field of a {kind}; "
                f"the fields are {', '.join(RECORD_FIELDS[kind])}."
            )
        if not isinstance(path, str) or not COLUMN_PATH.fullmatch(path):
            raise _refusal(file, f"columns.{name}", "a path like a, a.b or a[].b", path)
    return columns


def _read_path(value: Any, path: str, where: str) -> Any:
    outer, each, inner = path.partition("[].")
    for name in outer.split("."):
        value = _read_key(value, name, where)
    if not each:
        return value
    if not isinstance(value, list):
        raise RecordError(f"{where} needs a list at '{outer}'; got {type(value).__name__}.")
    return [_read_path(item, inner, where) for item in value]


def _read_key(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise RecordError(f"{where} needs an object with '{name}'; got {type(value).__name__}.")
    if name not in value:
        raise RecordError(f"{where} needs '{name}'; there is only {', '.join(map(str, value)) or 'an empty object'}.")
    return value[name]


def _refusal(file: Path, key: str, needed: str, found: Any) -> CardError:
    return CardError(f"{file}: 'pangu_trl.{key}' must be {needed}; got {found!r}.")
