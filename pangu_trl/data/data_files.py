"""Which files a folder or a pattern holds, what is in them, and what is left out."""

import glob
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .records import RecordError

logger = logging.getLogger(__name__)

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
SPLIT_FOLDERS = ("train", "validation", "test")

# Files that describe a dataset; their absence from the records surprises nobody.
DESCRIPTIONS = {
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
    "license",
    "license.txt",
}
SPLIT_WORDS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}


@dataclass(frozen=True)
class DataFile:
    """A file of records.

    Attributes:
        path: Where it is.
        format: One of the values of `FORMATS`.
        compression: One of `COMPRESSIONS`, or None.
        address: The name that messages give it; the path by default, and the address of a downloaded file.
    """

    path: str
    format: str
    compression: str | None = None
    address: str | None = None

    @property
    def name(self) -> str:
        return self.address or self.path


def identify(name: str) -> tuple[str | None, str | None]:
    """Format and compression by the suffixes of a name; the format is None where it has none that we know."""
    stem, suffix = os.path.splitext(name.lower())
    compression = suffix if suffix in COMPRESSIONS else None
    if compression:
        suffix = os.path.splitext(stem)[1]
    return FORMATS.get(suffix), compression


def known_suffixes() -> str:
    """The suffixes of data files, for messages."""
    return f"{', '.join(FORMATS)}, also with {', '.join(COMPRESSIONS)} behind"


def is_data_file(name: str) -> bool:
    """Whether the name of a file says that it holds records."""
    data_format, compression = identify(name)
    return data_format is not None or compression == ".zip"


def as_data_file(path: str | Path) -> DataFile:
    """A file whose suffix says what it holds.

    Raises:
        RecordError: If it does not.
    """
    data_format, compression = identify(str(path))
    if data_format is None and compression != ".zip":
        raise RecordError(
            f"{path}: a file of records must end in {known_suffixes()}, or be a data card .md; got "
            f"{Path(path).suffix or 'no suffix'!r}. Rename it, or name it in a data card, whose 'path' says the format."
        )
    return DataFile(str(path), data_format or "", compression)


def folder_splits(folder: str | Path) -> dict[str, list[DataFile]]:
    """The data files of a folder by split; what is left out is logged with the reason.

    Splits are the folders train, validation and test, if there is one of them; otherwise all files are the split train,
    whatever their names.

    Raises:
        RecordError: If there is no data file.
    """
    folder = Path(folder)
    left_out: list[tuple[str, str]] = []
    split_folders = [name for name in SPLIT_FOLDERS if (folder / name).is_dir()]
    splits: dict[str, list[DataFile]] = {name: [] for name in split_folders} or {"train": []}
    for path in _walk(folder, left_out):
        relative = path.relative_to(folder)
        reason = _reason_to_leave_out(relative)
        if reason is None and split_folders and relative.parts[0] not in split_folders:
            reason = f"outside of the folders of splits, {', '.join(split_folders)}"
        if reason is not None:
            left_out.append((str(relative), reason))
        else:
            splits[relative.parts[0] if split_folders else "train"].append(as_data_file(path))
    _log_left_out(folder, left_out)
    if not any(splits.values()):
        raise RecordError(
            f"{folder}: the folder must hold a data file, ending in {known_suffixes()}; it holds "
            f"{', '.join(name for name, _ in left_out[:10]) or 'nothing'}."
        )
    splits = {name: files for name, files in splits.items() if files}
    if not split_folders:
        _warn_of_split_words(folder, splits["train"])
    return splits


def matching_files(pattern: str) -> list[str]:
    """The files that a path or a pattern (`*`, `?`, `[...]`, `**`) names, sorted; the files of a folder, if it is one.

    Raises:
        RecordError: If a folder holds no data file.
    """
    if os.path.isdir(pattern):
        splits = folder_splits(pattern)
        return [file.path for files in splits.values() for file in files]
    if os.path.exists(pattern):
        return [pattern]
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def _walk(folder: Path, left_out: list[tuple[str, str]], top: Path | None = None) -> Iterator[Path]:
    """All files below a folder in the order of their names, each folder once even where links lead back to it."""
    top = top or folder
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            name = str(path.relative_to(top)) + "/"
            if path.name.startswith((".", "__")):
                left_out.append((name, "hidden or a tool's own folder"))
            elif path.is_symlink() and path.resolve() in (folder.resolve(), *folder.resolve().parents):
                left_out.append((name, "a link back to a folder above it"))
            else:
                yield from _walk(path, left_out, top)
        else:
            yield path


def _reason_to_leave_out(relative: Path) -> str | None:
    name = relative.name
    if name.startswith((".", "__")):
        return "hidden"
    if name.lower() in DESCRIPTIONS or relative.suffix.lower() in (".md", ".rst"):
        return "a description"
    if not is_data_file(name):
        return f"{relative.suffix or 'no suffix'!r} is not the suffix of a data file"
    return None


def _log_left_out(folder: Path, left_out: list[tuple[str, str]]) -> None:
    is_expected = all(reason == "a description" for _, reason in left_out)
    if left_out:
        logger.log(
            logging.INFO if is_expected else logging.WARNING,
            "%s: left out %s",
            folder,
            "; ".join(f"{name} ({reason})" for name, reason in left_out),
        )


def _warn_of_split_words(folder: Path, files: list[DataFile]) -> None:
    words = sorted(
        {Path(file.path).name for file in files if Path(file.path).name.split(".")[0].split("-")[0] in SPLIT_WORDS}
    )
    if words and len(files) > 1:
        logger.warning(
            "%s: %s and the other files are all read as the split train: splits are not guessed from the names of "
            "files. Put them into folders train/, validation/ and test/, or name them in a data card, to silence this.",
            folder,
            ", ".join(words),
        )
