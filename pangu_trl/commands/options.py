"""Options that several commands share, and the checks behind them."""

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_trl.runs.judge_form import FORM_HELP, FORMS

if TYPE_CHECKING:
    from pangu_trl.answers.records import Answers

# Columns that describe the answers a file holds; new answers must not inherit them.
ANSWER_COLUMNS = ("responses", "scores", "finished", "ranked", "chosen", "rejected")


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


def add_judge_option(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--judge",
        required=required,
        help="path/to/file.py:function or package.module:function, a Python function f(prompts, completions, "
        "**columns) -> list[float]; or folder or hub id of a reward model" + ("" if required else " (default: none)"),
    )
    parser.add_argument("--judge-form", choices=FORMS, default="record", help=FORM_HELP + " (default: %(default)s)")


def add_output(parser: argparse.ArgumentParser, metavar: str, content: str, required: bool = True) -> None:
    """`--output`, which is described by what it will hold, and `--overwrite`; see `refuse_existing`."""
    parser.add_argument("--output", required=required, type=Path, metavar=metavar, help=content)
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def refuse_existing(args: argparse.Namespace, is_folder: bool = False) -> None:
    """Refuses an output that exists or cannot be written, before hours of work rather than after."""
    output = args.output
    if output.exists() and not args.overwrite:
        raise FileExistsError(f"{output}: exists already; choose another name, or replace it with --overwrite")
    if output.exists() and output.is_dir() != is_folder:
        kinds = ("a folder", "a file") if is_folder else ("a file", "a folder")
        raise FileExistsError(f"{output}: must be {kinds[0]}; got {kinds[1]}. Choose another name")
    parent = next(path for path in output.absolute().parents if path.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{output}: cannot be written, as {parent} is a file; choose another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{output}: cannot be written, as nothing may be written in {parent}; choose another place"
        )


def note(args: argparse.Namespace, message: str) -> None:
    print(f"pangu-trl {args.command}: {message}", file=sys.stderr)


def count_answers(answers: "Answers") -> str:
    num_answers = sum(len(record["responses"]) for record in answers.records)
    return (
        f"{len(answers.records)} prompts, {num_answers} answers, {answers.num_empty} empty, "
        f"{answers.num_duplicates} repeating another answer to their prompt"
    )
