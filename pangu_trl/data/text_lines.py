"""Lines of text files of any encoding, each with its number, so that a wrong byte can be named."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from .records import OnFault, RecordError, raise_fault

BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

# So many bytes outside ASCII that happen to be valid UTF-8 are no accident.
SURELY_UTF8 = 12


def check_encoding(encoding: str) -> str:
    """Gives an encoding back if Python knows it as one of texts, and raises ValueError otherwise."""
    try:
        "".encode(encoding)
    except LookupError as error:
        raise ValueError(f"an encoding that Python knows, such as gb18030, big5, utf-16 or cp1252; {error}") from error
    return encoding


def numbered_lines(
    file: BinaryIO,
    where: str,
    encoding: str | None = None,
    on_fault: OnFault = raise_fault,
) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file with their ends and their numbers, which count from 1; a byte order mark is left out.

    Lines end at `\\n` alone: a form feed or U+2028 belongs to the text.

    Args:
        file: Opened for bytes.
        where: The file's name, for messages.
        encoding: Of the text; UTF-8 by default.
        on_fault: Gets a line that is not text as an error.

    Raises:
        RecordError: If a line is not text in the encoding.
    """
    encoding = encoding or "utf-8"
    if _has_ascii_line_ends(encoding):
        for number, line in enumerate(file, start=1):
            try:
                text = _decode(line, f"{where}:{number}", encoding)
            except RecordError as error:
                on_fault(error)
                continue
            yield number, text.removeprefix("\ufeff")
    else:
        text = _decode_whole(file.read(), where, encoding).removeprefix("\ufeff")
        for number, line in enumerate(text.split("\n"), start=1):
            yield number, line + "\n"


def _has_ascii_line_ends(encoding: str) -> bool:
    """Whether the byte 0x0A stands for a line end and for nothing else, as in all encodings that extend ASCII."""
    return "\n".encode(encoding) == b"\n"


def _decode(line: bytes, where: str, encoding: str) -> str:
    is_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    if b"\0" in line or (is_utf8 and line[:2] in BYTE_ORDER_MARKS):
        raise RecordError(
            f"{where}: must be {_name(encoding)}; got NUL bytes, as UTF-16 and binary files have them. If it is UTF-16 "
            "text, say `encoding: utf-16` in a data card, or convert the file, e.g. `iconv -f UTF-16 -t UTF-8`."
        )
    # Before decoding: the bytes of UTF-8 can be text of another encoding too, of other characters.
    if not is_utf8 and sum(byte > 127 for byte in line) >= SURELY_UTF8 and _is_utf8(line):
        raise RecordError(
            f"{where}: must be {_name(encoding)}, as the card says; the line is UTF-8. Convert the files to one "
            "encoding, or give each encoding a card."
        )
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise _refusal(error, where, f"position {error.start + 1} of the line", encoding) from error


def _decode_whole(content: bytes, where: str, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise _refusal(error, f"{where}:{line}", f"byte {error.start} of the file", encoding) from error


def _refusal(error: UnicodeDecodeError, where: str, place: str, encoding: str) -> RecordError:
    return RecordError(
        f"{where}: must be {_name(encoding)}; got the byte 0x{error.object[error.start]:02x} at {place}. Convert the "
        "file, e.g. `iconv -f GB18030 -t UTF-8`, or name its encoding in a data card, e.g. `encoding: gb18030`."
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _name(encoding: str) -> str:
    return "UTF-8" if encoding == "utf-8" else encoding
