"""Private data in files that are about to be published: access tokens, and paths of the machine they come from."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TEXT_SUFFIXES = (".json", ".md", ".jinja", ".txt", ".py")
# Vocabularies hold whatever the training text held.
VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "merges.txt")
ACCESS_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
ABSOLUTE_PATH = re.compile(r"(?:/|~/|[A-Za-z]:[\\/])[^\s{}<>]*[^\s{}<>/\\][/\\][^\s{}<>]+")


def refuse_private_data(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Refuses text files that hold an access token or say where on a machine something lay.

    Args:
        files: Paths or contents by name; what is no text and what is a vocabulary is not looked at.
        folder: Where the files come from.

    Raises:
        ValueError: Names every file and what was found in it (of a token only the start).
    """
    places = [place for place in dict.fromkeys([str(folder.absolute()), str(Path.home())]) if place != "/"]
    found = []
    for name, source in files.items():
        if not name.endswith(TEXT_SUFFIXES) or name in VOCABULARIES:
            continue
        text = (source if isinstance(source, bytes) else source.read_bytes()).decode("utf-8", errors="replace")
        found += [f"{name} holds an access token ({token[:6]}...)" for token in ACCESS_TOKEN.findall(text)]
        found += [f"{name} mentions {place}" for place in places if place in text]
        if name.endswith(".json"):
            found += [
                f"{name} has {key} = {value!r}" for key, value in _strings(text) if ABSOLUTE_PATH.fullmatch(value)
            ]
    if found:
        raise ValueError(f"{folder}: not published, as it holds private data: {'; '.join(found)}. Remove it first.")


def _strings(text: str) -> Iterator[tuple[str, str]]:
    """All strings of a JSON file with the keys that lead to them; none of a file that is no JSON."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else name)
        elif isinstance(value, list):
            for item in value:
                yield from walk(item, key)

    try:
        yield from walk(json.loads(text), "")
    except ValueError:
        return
