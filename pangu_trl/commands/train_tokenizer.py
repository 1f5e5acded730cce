"""`pangu-trl train-tokenizer`: a vocabulary of one's own text."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pangu_trl.runs.counts import counted

from .options import add_format, positive_int

SUMMARY = "train a vocabulary on text, with the rules and the special ids of the official one"
EXAMPLE = "pangu-trl train-tokenizer texts.txt --vocab-size 8000 --output my-tokenizer"

# The columns of canonical records that hold text.
_TEXT_COLUMNS = ("text", "prompt", "completion", "responses", "chosen", "rejected")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="texts, one a line (.txt), or records, all texts of which are taken: a file, a folder, a data card or "
        "mixture (.md), or a hub dataset",
    )
    parser.add_argument(
        "--split", default="train", help="split to take of the sources; files have only train (default: train)"
    )
    add_format(parser)
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

    texts = [text for source in args.sources for text in _read_texts(source, args.split, args.format)]
    tokenizer = train_vocabulary(texts, args.output, args.vocab_size, args.num_threads)
    size = f"{counted(len(texts), 'text')} of {sum(map(len, texts))} characters"
    print(f"{args.output}: {len(tokenizer)} pieces from {size}")


def _read_texts(source: str, split: str, data_format: str | None) -> Iterator[str]:
    """All texts of a source, through the reader of the other commands; a mixture gives its mixture."""
    from pangu_trl.data.formats import FORMATS
    from pangu_trl.data.loading import Origin, is_mixture_card, kind_of_card, load_records, place_of, read_rows

    kind = kind_of_card(source)
    if kind is not None and is_mixture_card(source):
        records = load_records(source, kind, split, data_format)
        for row, record in enumerate(records):
            yield from _texts_of_record(record, lambda row=row: str(place_of(records, row)))
        return
    if kind is None:
        # Of our own columns every one is taken, whatever the kind.
        kind = FORMATS[data_format].kinds[0] if data_format in FORMATS else "text"
    for place, record in read_rows(Origin(source, kind, split, data_format)):
        yield from _texts_of_record(record, lambda place=place: place)


def _texts_of_record(record: Mapping[str, Any], where: Callable[[], str]) -> Iterator[str]:
    found = False
    for column in _TEXT_COLUMNS:
        for text in _strings(record.get(column)):
            found = True
            yield text
    if not found:
        from pangu_trl.data.records import hint_of_format

        raise ValueError(
            f"{where()}: must hold text in one of {', '.join(_TEXT_COLUMNS)}; got {', '.join(map(repr, record))}."
            f"{hint_of_format(record)}"
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
