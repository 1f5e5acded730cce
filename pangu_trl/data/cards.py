"""Data cards: a dataset's description for people, with a block in its header that says how to read the records."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from .data_files import matching_files
from .formats import FORMATS
from .near_names import nearest_path
from .readers import ReadOptions
from .records import KINDS, RecordError
from .text_lines import check_encoding
from .typed_columns import TYPES
from .typed_tokens import MODE_COLUMN, MODES

# Formats of files beside the card; any other path is a dataset on the Hub. `files` goes by the suffix of each.
FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow", "files")

# What people write for a format, and what it is called.
OTHER_NAMES = {
    "jsonl": "json",
    "jsonlines": "json",
    "ndjson": "json",
    "tsv": "csv",
    "txt": "text",
    "folder": "files",
    "xlsx": "csv (save the sheet as csv)",
    "excel": "csv (save the sheet as csv)",
}

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
        path: A file format, one of `FILE_FORMATS`, or the id of a dataset on the Hub.
        name: The configuration of a Hub dataset.
        revision: The branch, tag or commit of a Hub dataset.
        data_files: The files of each split; those of a file format are absolute paths.
        columns: For each field of our records, or of the format, the source column that holds it, as a path: `a`,
            `a.b` or `a[].b`.
        format: The public format of the rows, one of `FORMATS`; None where the columns are ours.
        types: Columns of text that hold something else, one of `TYPES`.
        encoding: Of text files; UTF-8 by default.
        separator: Between the columns of csv files; by default a comma, and a tab in .tsv files.
        list_field: The field of a JSON file that holds the list of records.
        special_tokens_in_text: What becomes of special tokens that the texts spell; see `typed_tokens`.
    """

    file: Path
    kind: str
    path: str
    name: str | None = None
    revision: str | None = None
    data_files: dict[str, list[str]] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    types: dict[str, str] = field(default_factory=dict)
    encoding: str | None = None
    separator: str | None = None
    list_field: str | None = None
    special_tokens_in_text: str | None = None

    @classmethod
    def load(cls, path: str | Path) -> "DataCard":
        """Reads the `pangu_trl` block of a card.

        Raises:
            FileNotFoundError: If there is no such card, or a local data file that it names is missing.
            CardError: If the block is missing or a key of it is unknown or has an unusable value.
        """
        file = Path(path)
        block = read_block(file)
        known = [attribute.name for attribute in fields(cls) if attribute.name != "file"]
        for key in block:
            if key not in known:
                raise CardError(f"{file}: 'pangu_trl.{key}' is not a key of a card; the keys are {', '.join(known)}.")
        if block.get(MODE_COLUMN, MODES[0]) not in MODES:
            raise refusal(file, MODE_COLUMN, f"one of {', '.join(MODES)}", block[MODE_COLUMN])
        for key in ("path", "name", "revision", "format", "encoding", "separator", "list_field"):
            value = block.get(key)
            if not (isinstance(value, str) and value) and (value is not None or key == "path"):
                raise refusal(file, key, "text", value)
        _check_reading(file, block)
        return cls(
            file=file,
            kind=read_kind(file, block),
            path=block["path"],
            name=block.get("name"),
            revision=block.get("revision"),
            data_files=_read_data_files(file, block["path"], block.get("data_files")),
            columns=_read_columns(file, block),
            format=block.get("format"),
            types=_read_types(file, block.get("types")),
            encoding=block.get("encoding"),
            separator=block.get("separator"),
            list_field=block.get("list_field"),
            special_tokens_in_text=block.get(MODE_COLUMN),
        )

    @property
    def options(self) -> ReadOptions:
        """How the files are read."""
        return ReadOptions(self.encoding, self.separator, self.list_field)

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
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                problem = f"the key '{key_node.value}' occurs twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_block(file: Path) -> dict[str, Any]:
    """The block `pangu_trl` of a card, as it stands there.

    Raises:
        FileNotFoundError: If there is no such card.
        CardError: If it has no such block, or is not UTF-8.
    """
    if file.is_dir():
        raise CardError(f"{file}: must be a data card; got a folder. Name the card in it, or a folder without .md.")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such data card (looked for {file.absolute()}){nearest_path(str(file))}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CardError(
            f"{file}:{line}: a card must be UTF-8; got the byte 0x{error.object[error.start]:02x}. Convert it, e.g. "
            "`iconv -f GB18030 -t UTF-8`."
        ) from error
    header = HEADER.match(text)
    if header is None:
        raise CardError(f"{file}: must begin with a YAML header between two lines '---'; got none.")
    try:
        metadata = yaml.load(header["yaml"], Loader=_UniqueKeyLoader)
    except yaml.reader.ReaderError as error:
        raise CardError(f"{file}: the header must be YAML; {error.reason}: {error.character!r}.") from error
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
            raise refusal(file, "data_files", f"given when 'path' is {path}", data_files)
        return None
    by_split = data_files if isinstance(data_files, dict) else {"train": data_files}
    names = {split: [value] if isinstance(value, str) else value for split, value in by_split.items()}
    for split, values in names.items():
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise refusal(file, "data_files", "a file, a list of files, or such for each split", data_files)
        if not isinstance(split, str):
            raise refusal(file, "data_files", "files for each split, named by text", data_files)
    if path not in FILE_FORMATS:
        return names
    return {split: [path for value in values for path in _locate(file, value)] for split, values in names.items()}


def _locate(file: Path, name: str) -> list[str]:
    """The files that a name or pattern means, seen from the card's folder; addresses stay as they are."""
    if "://" in name:
        return [name]
    located = matching_files(str(file.absolute().parent / name))
    if not located:
        missing = "matches no file" if any(wildcard in name for wildcard in "*?[") else "is missing"
        raise FileNotFoundError(
            f"{file}: 'pangu_trl.data_files' must name files, relative to the card; got {name!r}, which {missing}."
        )
    return located


def read_kind(file: Path, block: Mapping[str, Any]) -> str:
    """The kind of record of a card; raises CardError if it is none."""
    if block.get("kind") not in KINDS:
        raise refusal(file, "kind", f"one of {', '.join(KINDS)}", block.get("kind"))
    return block["kind"]


def _check_reading(file: Path, block: Mapping[str, Any]) -> None:
    """Refuses values of the keys that say how files are read."""
    if block["path"] in OTHER_NAMES:
        raise refusal(file, "path", f"{OTHER_NAMES[block['path']]}, which reads such files too", block["path"])
    if block.get("format") is not None and block["format"] not in FORMATS:
        raise refusal(file, "format", f"one of {', '.join(FORMATS)}", block["format"])
    if block.get("encoding") is not None:
        try:
            check_encoding(block["encoding"])
        except ValueError as error:
            raise CardError(f"{file}: 'pangu_trl.encoding' must be {error}.") from error
    if block.get("separator") is not None and (len(block["separator"]) != 1 or block["separator"] in '"\r\n'):
        raise refusal(file, "separator", "one character, such as ';' or \"\\t\" in double quotes", block["separator"])
    formats = {"encoding": ("json", "csv", "text"), "separator": ("csv",), "list_field": ("json",)}
    for key, needed in formats.items():
        if block.get(key) is not None and block["path"] in FILE_FORMATS and block["path"] not in (*needed, "files"):
            raise CardError(f"{file}: 'pangu_trl.{key}' has no effect when 'path' is {block['path']}; leave it out.")


def _read_types(file: Path, types: Any) -> dict[str, str]:
    if types is None:
        return {}
    if not isinstance(types, dict):
        raise refusal(file, "types", "a mapping of source columns to types", types)
    for name, value in types.items():
        if not isinstance(value, str) or value not in TYPES:
            raise refusal(file, f"types.{name}", f"one of {', '.join(TYPES)}", value)
    return {str(name): value for name, value in types.items()}


def _read_columns(file: Path, block: Mapping[str, Any]) -> dict[str, str]:
    columns, kind, data_format = block.get("columns"), block["kind"], block.get("format")
    known = FORMATS[data_format].fields if data_format else RECORD_FIELDS[kind]
    of_what = f"the format {data_format}" if data_format else f"a {kind}"
    if columns is None:
        return {}
    if not isinstance(columns, dict):
        raise refusal(file, "columns", "a mapping of our fields to source columns", columns)
    for name, path in columns.items():
        if name not in known:
            raise CardError(
                f"{file}: 'pangu_trl.columns.{name}' is not a field of {of_what}; the fields are {', '.join(known)}."
            )
        if not isinstance(path, str) or not COLUMN_PATH.fullmatch(path):
            raise refusal(file, f"columns.{name}", "a path like a, a.b or a[].b", path)
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


def refusal(file: Path, key: str, needed: str, found: Any) -> CardError:
    """The error for a key whose value is not what it must be."""
    return CardError(f"{file}: 'pangu_trl.{key}' must be {needed}; got {found!r}.")
