"""Private data in files that are about to be published: credentials, and paths of the machine they come from."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .contents import Passage, passages
from .credentials import find_credentials, masked, without_credentials
from .private_paths import find_home_paths, find_paths, find_rooted_paths, is_path

# More findings than a person reads at a time.
_MOST_SHOWN = 20


def refuse_private_data(files: Mapping[str, Path | bytes], folder: Path, public_paths: Sequence[str] = ()) -> None:
    """Refuses files that hold a credential or say where on a machine something lay.

    Every file is searched, whatever its suffix: texts in full, of anything else the bytes. The header of a safetensors
    file counts, its numbers do not. A vocabulary holds what looks like paths, so only home folders are sought in it.

    Args:
        files: Paths or contents by name.
        folder: Where the files come from.
        public_paths: Paths that may be published, with what is below them.

    Raises:
        ValueError: Names file, line or key, and what was found (of a secret only how all of its kind begin); or one of
            `public_paths` stands nowhere.
    """
    places = [str(folder.absolute()), str(folder.resolve()), str(Path.home())]
    own_places = _place_pattern([place for place in dict.fromkeys(places) if len(place) > 1])
    found, used = [], set()
    for name, source in files.items():
        found += [f"{name}: its name holds {what} ({shown})" for _, what, shown in _secrets(Passage(name, "text"))]
        for passage in passages(name, source):
            for position, what, shown in _secrets(passage):
                found.append(f"{_place(name, passage, position)}: {what} ({shown})")
            for position, path in _paths(passage, own_places):
                allowed = [public for public in public_paths if _is_below(path, public)]
                used |= set(allowed)
                if not allowed:
                    shown = repr(without_credentials(path[:200]))
                    found.append(f"{_place(name, passage, position)}: a path of somebody's machine ({shown})")
    if found:
        found = list(dict.fromkeys(found))
        more = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        raise ValueError(
            f"{folder}: not published, as it holds private data: {'; '.join(found[:_MOST_SHOWN])}{more}. Remove it "
            "first; a path that is nobody's secret may go along by public_paths (--public-path)."
        )
    unused = [path for path in public_paths if path not in used]
    if unused:
        raise ValueError(f"{folder}: no file names {', '.join(map(repr, unused))}; leave it out of --public-path.")


def _secrets(passage: Passage) -> Iterator[tuple[int, str, str]]:
    """Position, kind and beginning of every credential."""
    if passage.kind == "origin":
        return
    found = {passage.text[start:end]: (start, what) for start, end, what in find_credentials(passage.text)}
    if passage.kind == "value" and passage.key and len(passage.text) >= 16:
        # What a key is may show only by the name of its setting.
        text = f"{passage.key}: {passage.text}"
        for start, end, what in find_credentials(text):
            if start >= len(text) - len(passage.text):
                found.setdefault(text[start:end], (0, what))
    for secret, (position, what) in found.items():
        yield position, what, masked(secret)


def _paths(passage: Passage, own_places: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Position and text of every path that says where something lay."""
    text = passage.text
    if passage.kind == "origin":
        # Published vocabularies name the files of their makers, which is known to all; not those of this machine.
        path = Path(text)
        if path.is_absolute() and (path.exists() or (len(path.parts) > 2 and path.parent.exists())):
            yield 0, text
        return
    if passage.kind == "value" and is_path(text):
        yield 0, text.strip()
        return
    search = {"vocabulary": find_home_paths, "bytes": find_rooted_paths}.get(passage.kind, find_paths)
    spans = list(search(text, True) if passage.kind in ("code", "value") else search(text))
    yield from ((start, text[start:end]) for start, end in spans)
    for match in own_places.finditer(text):
        # A vocabulary may well hold "/root".
        is_chance = passage.kind in ("vocabulary", "bytes") and match[0].count("/") < 2
        if not is_chance and not any(start <= match.start() < end for start, end in spans):
            yield match.start(), match[0]


def _place_pattern(places: Sequence[str]) -> re.Pattern[str]:
    names = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
    return re.compile(rf"(?<![\w.-])(?:{names})(?![\w-])")


def _place(name: str, passage: Passage, position: int) -> str:
    line = passage.line
    if line is None and passage.key is None and passage.kind != "bytes":
        line = passage.text.count("\n", 0, position) + 1
    place = name if line is None else f"{name}, line {line}"
    return place if passage.key is None else f"{place}, key {without_credentials(passage.key)!r}"


def _is_below(path: str, public: str) -> bool:
    return path == public or path.startswith(public.rstrip("/\\") + ("\\" if "\\" in public else "/"))
