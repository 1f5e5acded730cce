"""What of a file can be searched: text in any encoding, strings of JSON, headers, a vocabulary's origin."""

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal

# Files, or parts of one by their keys, that hold whatever the training text held.
VOCABULARIES: dict[str, tuple[str, ...]] = {
    "tokenizer.json": ("model.vocab", "model.merges"),
    "tekken.json": ("",),
    "vocab.*": ("",),
    "merges.txt": ("",),
    "*.tiktoken": ("",),
    "*.model": ("",),
}
CODE_SUFFIXES = (".py", ".jinja")
_BOMS = {
    BOM_UTF32_LE: "utf-32",  # Before UTF-16, whose mark it begins with.
    BOM_UTF32_BE: "utf-32",
    BOM_UTF8: "utf-8-sig",
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
}
_CONTROL_BYTES = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
# Of a file that is no text: as much as is searched at a time, and what the parts share.
_PART, _OVERLAP = 1 << 22, 1 << 12


@dataclass(frozen=True)
class Passage:
    """A piece of a file that is searched by itself.

    Attributes:
        text: What is searched.
        kind: A text, code, a value (which may be a path as a whole), a part of a vocabulary, bytes that are no text, or
            where a SentencePiece vocabulary was made.
        key: The keys that lead to it in a JSON file; None if lines say where something is.
        line: Number of the line that holds it as JSON.
    """

    text: str
    kind: Literal["text", "code", "value", "vocabulary", "bytes", "origin"]
    key: str | None = None
    line: int | None = None


def passages(name: str, source: Path | bytes) -> Iterator[Passage]:
    """Yields everything in a file that private data could stand in.

    Args:
        name: Name of the file, which tells vocabularies and weights.
        source: The file, or its content.
    """
    if name.endswith(".safetensors") and isinstance(source, Path):
        header = _safetensors_header(source)
        if header is not None:
            yield from _strings(header, "", ())
            return
    parts = next((keys for file, keys in VOCABULARIES.items() if fnmatchcase(PurePosixPath(name).name, file)), ())
    if not _looks_like_text(_read(source, 1 << 16)):
        kind = "vocabulary" if parts else "bytes"
        yield from (Passage(text, kind) for text in _readings(source))
        if name.endswith(".model"):
            yield from (Passage(path, "origin", "trainer_spec") for path in _sentencepiece_origin(_read(source)))
        return
    text = decode(_read(source))
    if "" in parts:
        yield Passage(text, "vocabulary")
    elif name.endswith((".jsonl", ".ndjson")):
        for number, line in enumerate(text.split("\n"), 1):
            yield from (replace(passage, line=number) for passage in _json_or_text(line, ()))
    else:
        yield from _json_or_text(text, parts, "code" if name.endswith(CODE_SUFFIXES) else "text")


def decode(data: bytes) -> str:
    """Decodes a text in UTF-8, UTF-16 or UTF-32 with or without a mark, GB18030, or else byte by byte."""
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return data.decode(encoding, errors="replace")
    for encoding in ("utf-8", _wide_encoding(data), "gb18030"):
        try:
            if encoding is not None and not (encoding == "utf-8" and _wide_encoding(data)):
                return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _looks_like_text(start: bytes) -> bool:
    if start.startswith(tuple(_BOMS)) or _wide_encoding(start):
        return True
    control = len(start) - len(start.translate(None, _CONTROL_BYTES))
    return control <= len(start) // 50


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark shows by where the zero bytes of ASCII are; None if there is no such order."""
    size = len(data) - len(data) % 4
    if size == 0 or b"\0" not in data:
        return None
    zeros = [data[index:size:4].count(0) / (size / 4) for index in range(4)]
    is_zero = [share > 0.2 for share in zeros]
    return {
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
    }.get(tuple(is_zero))


def _read(source: Path | bytes, size: int = -1) -> bytes:
    if isinstance(source, bytes):
        return source if size < 0 else source[:size]
    with source.open("rb") as file:
        return file.read(size)


def _readings(source: Path | bytes) -> Iterator[str]:
    """Bytes that are no text, in parts, as strings of one and of two bytes a character."""
    if isinstance(source, bytes):
        parts = (source[start : start + _PART + _OVERLAP] for start in range(0, len(source), _PART))
    else:
        parts = _parts_of_file(source)
    for part in parts:
        yield part.decode("latin-1")
        if b"\0" in part:
            yield part.decode("utf-16-le", errors="replace")
            yield part[1:].decode("utf-16-le", errors="replace")


def _parts_of_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        before = b""
        while part := file.read(_PART):
            yield before + part
            before = part[-_OVERLAP:]


def _json_or_text(
    text: str, vocabulary_keys: tuple[str, ...], otherwise: Literal["text", "code"] = "text"
) -> Iterator[Passage]:
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
        try:
            # Of a key that stands twice both values are published.
            content = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError):
            pass
        else:
            yield from _strings(content, "", vocabulary_keys)
            return
    yield Passage(text, otherwise)


class _Pairs(list):
    """The keys and values of a JSON object, in order."""


def _strings(value: Any, key: str, vocabulary_keys: tuple[str, ...]) -> Iterator[Passage]:
    """All keys and strings below a JSON value; a vocabulary as one passage."""
    if key in vocabulary_keys:
        yield Passage("\n".join(_flat(value)), "vocabulary", key)
    elif isinstance(value, str):
        yield Passage(value, "value", key)
    elif isinstance(value, _Pairs):
        for name, item in value:
            yield Passage(name, "value", key or "the top")
            yield from _strings(item, f"{key}.{name}" if key else name, vocabulary_keys)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{key}[{index}]", vocabulary_keys)


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)


def _safetensors_header(path: Path) -> Any:
    """The JSON at the start of a safetensors file; None if it is none."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return None
        try:
            return json.loads(file.read(size), object_pairs_hook=_Pairs)
        except (ValueError, RecursionError):
            return None


def _sentencepiece_origin(model: bytes) -> list[str]:
    """The files that a SentencePiece model was made from and as, which its training writes into it."""
    try:
        trainers = [value for field, value in _protobuf_fields(model) if field == 2 and isinstance(value, bytes)]
        # TrainerSpec: input = 1, model_prefix = 2.
        found = [value for spec in trainers for field, value in _protobuf_fields(spec) if field in (1, 2)]
    except (IndexError, ValueError):
        return []
    return [value.decode("utf-8", errors="replace") for value in found if isinstance(value, bytes)]


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"no protocol buffer: wire type {kind}")
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield tag >> 3, message[position : position + size]
        position += size
