"""`pangu-trl check-data`: every fault of a data source in one run, and a picture of its records."""

import argparse
from typing import Any

from .options import add_format, add_json, add_special_tokens, note, positive_int, print_json

SUMMARY = "look for faults in records, all in one run, and sum the records up"
EXAMPLE = "pangu-trl check-data train.jsonl --model runs/sft --max-length 512 --against held-out.jsonl"

KINDS = ("demonstration", "ranking", "prompt", "text")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DATA", help="a .jsonl file, a .md data card, a folder or a hub dataset")
    parser.add_argument(
        "--kind", choices=KINDS, help="kind of record (default: the card's, or what the first record says)"
    )
    parser.add_argument("--split", default="train", help="split of the data (default: %(default)s)")
    add_format(parser)
    parser.add_argument(
        "--model", help="folder or hub id whose tokenizer counts lengths and knows special tokens (default: characters)"
    )
    parser.add_argument(
        "--max-length",
        type=positive_int,
        metavar="N",
        help="count what training with this max_length would leave out; of prompts the longest allowed; needs --model",
    )
    parser.add_argument(
        "--against",
        metavar="OTHER",
        help="look for the same records and prompts in these, e.g. the held-out ones; they have the format of DATA, or "
        "are a card",
    )
    parser.add_argument(
        "--no-near-duplicates",
        action="store_true",
        help="do not look for records that are nearly the same, which takes 256 bytes of memory a record",
    )
    add_special_tokens(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.max_length is not None and args.model is None:
        raise ValueError("--max-length counts tokens: name the model whose tokenizer counts them with --model")
    from pangu_trl.data.checking import CheckOptions, check_source
    from pangu_trl.data.near_duplicates import is_available

    looks_for_near = not args.no_near_duplicates
    if looks_for_near and not is_available():
        note(args, "near duplicates are not looked for: pip install rensa, or say --no-near-duplicates")
    tokenizer = None
    if args.model is not None:
        from pangu_trl.models.loading import load_tokenizer

        tokenizer = load_tokenizer(args.model)
    options = CheckOptions(
        args.kind,
        args.split,
        args.format,
        tokenizer,
        args.max_length,
        args.against,
        near_duplicates=looks_for_near,
        special_tokens_in_text=args.special_tokens_in_text,
    )
    faults: list[str] = []
    picture = check_source(args.source, options, faults.append if args.json else print)
    if args.json:
        figures = {"source": args.source, "kind": picture.kind, "faults": faults, **picture.figures}
        print_json(figures)
    else:
        print(f"{args.source}: {picture.num_faults} faults in records of the kind {picture.kind}")
        for name, value in _lines("", picture.figures):
            print(f"{name:44}  {value}")
    return 1 if picture.num_faults else 0


def _lines(prefix: str, figures: dict[str, Any]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in figures.items():
        if isinstance(value, dict) and value:
            lines += _lines(f"{prefix}{name}/", value)
        elif value is not None and value != {}:
            lines.append((prefix + name, format(value, ".4g") if isinstance(value, float) else str(value)))
    return lines
