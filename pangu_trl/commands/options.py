"""Options that several commands share, and the checks behind them."""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_trl.runs.counts import counted
from pangu_trl.runs.judge_form import FORM_HELP, FORMS

if TYPE_CHECKING:
    from pangu_trl.answers.journal import Journal
    from pangu_trl.answers.records import Answers

# Columns that describe the answers a file holds; new answers must not inherit them.
ANSWER_COLUMNS = ("responses", "scores", "finished", "ranked", "chosen", "rejected")


# In bytes, of a file or folder on the usual file systems.
LONGEST_NAME = 255


def positive_int(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or greater; got {text!r}")
    return number


def score_gap(text: str) -> float:
    try:
        gap = float(text)
    except ValueError:
        gap = math.nan
    if not 0 <= gap < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number, 0 or greater; got {text!r}")
    return gap


def add_answers_and_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", metavar="ANSWERS.jsonl", help="file that `pangu-trl sample` or `score` wrote")
    add_batch_size(parser)
    add_special_tokens(parser)


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="public format of the rows, e.g. sharegpt or alpaca, where the data are no card; data_cards/README.md "
        "has them all (default: the columns are ours)",
    )


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=positive_int, default=32, help="answers the judge gets at a time (default: %(default)s)"
    )


def add_judge_option(parser: argparse.ArgumentParser, required: bool, several: bool = False) -> None:
    parser.add_argument(
        "--judge",
        required=required,
        action="append" if several else "store",
        help="path/to/file.py:function or package.module:function, a Python function f(prompts, completions, "
        "**columns) -> list[float]; or folder or hub id of a reward model"
        + ("; several times for an ensemble" if several else "")
        + ("" if required else " (default: none)"),
    )
    parser.add_argument("--judge-form", choices=FORMS, default="record", help=FORM_HELP + " (default: %(default)s)")


def add_output(parser: argparse.ArgumentParser, metavar: str, content: str, required: bool = True) -> None:
    """`--output`, which is described by what it will hold, and `--overwrite`; see `refuse_existing`."""
    parser.add_argument("--output", required=required, type=Path, metavar=metavar, help=content)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def add_sampling(parser: argparse.ArgumentParser, max_new_tokens: int = 64) -> None:
    """How answers are drawn; see `answers.sampling.SamplingConfig`."""
    parser.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, help="longest answer, in tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="divides the logits; 0 always takes the likeliest token (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens that hold this probability together; 1 keeps all (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, help="draw from this many likeliest tokens; 0 keeps all (default: %(default)s)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object with the figures")


def print_json(figures: Mapping[str, Any]) -> None:
    """Prints figures as one JSON object, in characters that every console has."""
    json.dump(figures, sys.stdout, indent=2, allow_nan=False)
    print()


def add_special_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--special-tokens-in-text",
        choices=("split", "refuse", "keep"),
        help="special tokens that the texts spell become ordinary text, are an error, or become the special tokens "
        "(default: what the record, or a data card, says, otherwise split)",
    )


def refuse_existing(args: argparse.Namespace, is_folder: bool = False) -> None:
    """Refuses an output that exists or cannot be written, before hours of work rather than after."""
    output = args.output
    for name in output.parts:
        # Room for what stands around the name until the file is whole.
        if len(os.fsencode(name)) + 30 > LONGEST_NAME:
            raise OSError(f"{name[:20]}...: cannot be written, as the name is too long; choose a shorter one")
    if output.is_symlink() or (output.exists() and not output.is_file() and not output.is_dir()):
        # Putting the result in place would remove what is there: /dev/stdout is such a link.
        kind = "a link" if output.is_symlink() else "no regular file"
        raise FileExistsError(f"{output}: is {kind}, which is never replaced; name a file")
    if output.exists() and not args.overwrite:
        raise FileExistsError(f"{output}: exists already; choose another name, or replace it with --overwrite")
    if output.exists() and output.is_dir() != is_folder:
        kinds = ("a folder", "a file") if is_folder else ("a file", "a folder")
        raise FileExistsError(f"{output}: must be {kinds[0]}; got {kinds[1]}. Choose another name")
    parent = next(path for path in output.absolute().parents if path.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{output}: cannot be written, as {parent} is a file; choose another name")
    folder = output if output.is_dir() else parent
    try:
        # What the permissions say does not hold for root, nor below /proc.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(
            f"{output}: cannot be written, as nothing may be written in {folder} ({error.strerror}); choose another "
            "place"
        ) from error


def open_journal(args: argparse.Namespace, options: Sequence[str], records: Iterable[Any]) -> "Journal":
    """The journal beside `--output`: results as they come, for a second call to go on with.

    Args:
        args: The command's options.
        options: Those that the results depend on. A model's or judge's files must be the same, too.
        records: What the command reads; the results depend on that as well.
    """
    from pangu_trl.answers.journal import Journal, digest, fingerprint

    names = {name: getattr(args, name) for name in options}
    files = {f"files of {name}": fingerprint(names[name]) for name in ("model", "adapter", "judge") if name in names}
    journal = Journal(
        args.output, {"command": args.command, **names, **files, "records": digest(records)}, args.overwrite
    )
    if journal.known:
        note(args, f"goes on where an earlier call was stopped, with the results in {journal.path}")
    return journal


def judge_journal(args: argparse.Namespace, *read: "Answers | None") -> AbstractContextManager["Journal | None"]:
    """The journal of a judge's scores of the answers that a command reads; none where nothing is judged or written."""
    if args.judge is None or args.output is None:
        return nullcontext()
    records = [record for answers in read if answers is not None for record in answers.records]
    return open_journal(args, ("judge", "batch_size"), records)


def check_writable(records: Sequence[Any], places: Sequence[str]) -> None:
    """Refuses records that JSON cannot hold, as NaN or dates, before the work that they will be written with."""
    for record, place in zip(records, places, strict=True):
        try:
            json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{place}: cannot be written again as JSON, so its answers would be lost: {error}. Remove or convert "
                "the column"
            ) from error


def note(args: argparse.Namespace, message: str) -> None:
    print(f"pangu-trl {args.command}: {message}", file=sys.stderr)


def count_answers(answers: "Answers") -> str:
    num_answers = sum(len(record["responses"]) for record in answers.records)
    return (
        f"{counted(len(answers.records), 'prompt')}, {counted(num_answers, 'answer')}, {answers.num_empty} empty, "
        f"{answers.num_duplicates} repeating another answer to their prompt"
    )
