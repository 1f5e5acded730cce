"""`pangu-trl train-tokenizer`: a vocabulary of one's own text."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .options import positive_int

SUMMARY = "train a vocabulary on text, with the rules and the special ids of the official one"
EXAMPLE = "pangu-trl train-tokenizer texts.txt --vocab-size 8000 --output my-tokenizer"

# The columns of canonical records that hold text.
_TEXT_COLUMNS = ("text", "prompt", "completion", "responses", "chosen", "rejected")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="texts, one a line (.txt); or records, all texts of which are taken: JSON lines (.jsonl), data card (.md)",
    )
    parser.add_argument(
        "--split", default="train", help="split to take of data cards; files have only train (default: train)"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="tokenizer folder to write; must hold no tokenizer"
    )
    parser.add_argument(
        "--vocab-size",
        required=True,
        type=positive_int,
        metavar="N",
        help="number of pieces, the ten special ones included; the official vocabulary has 40000",
    )
    parser.add_argument(
        "--num-threads",
        type=positive_int,
        default=2,
        metavar="N",
        help="threads of the trainer, on which its result depends (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

    texts = [text for source in args.sources for text in _read_texts(source, args.split)]
    tokenizer = train_vocabulary(texts, args.output, args.vocab_size, args.num_threads)
    print(f"{args.output}: {len(tokenizer)} pieces from {len(texts)} texts of {sum(map(len, texts))} characters")


def _read_texts(source: str, split: str) -> Iterator[str]:
    from pangu_trl.data import DataCard, load_records
    from pangu_trl.data.jsonl import read_numbered_jsonl

    suffix = Path(source).suffix
    if suffix == ".md":
        records = load_records(source, DataCard.load(source).kind, split)
        for number, record in enumerate(records):
            yield from _texts_of_record(record, f"{source}[{split}] row {number}")
        return
    if suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{source}: must be a .txt, .jsonl or .md file; got {suffix or 'no suffix'!r}")
    if split != "train":
        raise ValueError(f"{source}: only data cards have splits; got --split {split}")
    if suffix == ".jsonl":
        for line, record in read_numbered_jsonl(source):
            yield from _texts_of_record(record, f"{source}:{line}")
    else:
        yield from _lines(Path(source))


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (looked for {path.absolute()}).")
    # At "\n" only: a form feed or U+2028 belongs to the text.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: must be UTF-8; got the byte 0x{line[error.start]:02x} at position "
                f"{error.start + 1} of the line. Convert the file, e.g. `iconv -f GB18030 -t UTF-8`."
            ) from error
        if text:
            yield text


def _texts_of_record(record: Mapping[str, Any], where: str) -> Iterator[str]:
    found = False
    for column in _TEXT_COLUMNS:
        for text in _strings(record.get(column)):
            found = True
            yield text
    if not found:
        raise ValueError(
            f"{where}: must hold text in one of {', '.join(_TEXT_COLUMNS)}; got {', '.join(map(repr, record))}"
        )


def _strings(value: Any) -> Iterator[str]:
    """Yields a string, the strings of a list, the contents of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(value.get("content"))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
