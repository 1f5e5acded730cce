"""What a name that is not there may have meant: of words, and of files and folders."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .data_files import is_data_file

# OWNER/NAME or NAME, of data also with @REVISION.
HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^@]+))?")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as a hint in brackets, or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def is_path(name: str) -> bool:
    """Whether a name can only be meant as a file or folder: by how it begins, or since no Hub id has its form."""
    return name.startswith(("/", "./", "../", "~")) or HUB_ID.fullmatch(name) is None


def names_file(name: str) -> bool:
    """Whether a name is meant as a file or folder by its form, or by the suffix of data, cards and settings."""
    return is_path(name) or is_data_file(name) or name.lower().endswith((".md", ".yaml", ".yml"))


def nearest_path(name: str, only_folders: bool = False) -> str:
    """The nearest file or folder that there is as a hint in brackets, or nothing.

    Of the first part of the path that is not there the nearest name in its folder is taken.
    """
    if Path(name).expanduser().exists():
        return f" (~ is not expanded here; did you mean {Path(name).expanduser()}?)"
    head, rest = name.rstrip("/"), ""
    while os.path.dirname(head) not in ("", head) and not os.path.exists(os.path.dirname(head)):
        head, rest = os.path.dirname(head), os.path.join(os.path.basename(head), rest)
    folder, missing = os.path.split(head)
    try:
        names = [entry.name for entry in os.scandir(folder or ".") if entry.is_dir() or not (only_folders or rest)]
    except OSError:
        return ""
    # Names are not near because they end alike.
    suffix = os.path.splitext(missing)[1]
    stems = {found.removesuffix(suffix): found for found in names}
    near = difflib.get_close_matches(missing.removesuffix(suffix), stems, n=1)
    if not near:
        return ""
    found = os.path.join(folder, stems[near[0]])
    whole = os.path.join(found, rest.rstrip("/")) if rest else found
    return f" (did you mean {whole if os.path.exists(whole) else found}?)"
