"""`pangu-trl export-annotations`: what annotators decided, as rankings for the reward stage or for another tool."""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_trl.runs.counts import counted

from .options import add_output, note, refuse_existing

if TYPE_CHECKING:
    from pangu_trl.annotation.decisions import Decision
    from pangu_trl.annotation.rankings import Rankings
    from pangu_trl.answers.records import Answers

SUMMARY = "write what annotators decided: rankings for the reward stage, or files of other tools"
EXAMPLE = "pangu-trl export-annotations answers.jsonl --output rankings.jsonl"

SUFFIXES = {"rankings": ".jsonl", "argilla": ".json", "label-studio": ".json", "csv": ".csv"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", metavar="ANSWERS.jsonl", type=Path, help="file that was ranked")
    parser.add_argument(
        "--store",
        nargs="+",
        metavar="STORE",
        help="files of decisions on it (default: the one that `pangu-trl annotate` keeps beside it)",
    )
    parser.add_argument(
        "--form",
        choices=tuple(SUFFIXES),
        default="rankings",
        help="rankings, the records of the reward stage; or Argilla's, Label Studio's, or CSV for spreadsheets, which "
        "hold the prompts that nobody ranked as well (default: %(default)s)",
    )
    add_output(
        parser,
        "FILE",
        "the rankings, with a data card of the same name beside them; or the file for the other tool, which for Label "
        "Studio has the labelling interface beside it as .xml",
    )
    parser.add_argument(
        "--invalid",
        choices=("last", "drop"),
        default="last",
        help="in rankings, invalid answers come behind all others; or those are left out that half of their annotators "
        "or more call invalid (default: %(default)s)",
    )
    parser.add_argument(
        "--soft-labels",
        action="store_true",
        help="in rankings, also write the scores by each annotator, of which the reward stage makes shares of votes",
    )


def run(args: argparse.Namespace) -> None:
    if args.output.suffix != SUFFIXES[args.form]:
        raise ValueError(f"{args.output}: a file of the form {args.form} must end in {SUFFIXES[args.form]}")
    if args.form != "rankings" and (args.invalid != "last" or args.soft_labels):
        raise ValueError(f"--invalid and --soft-labels are about rankings; leave them out with --form {args.form}")
    beside = {"rankings": args.output.with_suffix(".md"), "label-studio": args.output.with_suffix(".xml")}
    for path in [args.output, *filter(None, [beside.get(args.form)])]:
        refuse_existing(argparse.Namespace(output=path, overwrite=args.overwrite))
    from pangu_trl.annotation.store import read_decisions, store_path
    from pangu_trl.answers.records import Answers

    answers = Answers.load(args.answers)
    stores = args.store or [store_path(args.answers)]
    decisions = [decision for store in stores for decision in read_decisions(store)]
    if args.form == "rankings":
        _write_rankings(args, answers, decisions, beside["rankings"])
    else:
        _write_other(args, answers, decisions, beside["label-studio"])


def _write_rankings(
    args: argparse.Namespace, answers: "Answers", decisions: Sequence["Decision"], card_path: Path
) -> None:
    from pangu_trl.annotation.agreement.figures import measure_agreement
    from pangu_trl.annotation.ranking_card import ranking_card
    from pangu_trl.annotation.rankings import make_rankings
    from pangu_trl.data.jsonl import write_jsonl

    agreement = measure_agreement(decisions)
    found = make_rankings(answers, decisions, args.invalid, args.soft_labels)
    _say_what_is_missing(args, found)
    if not found.records:
        raise ValueError(f"{args.answers}: no prompt has a ranking that could be written")
    card = ranking_card(args.output, args.answers, found, decisions, agreement, args.invalid, args.soft_labels)
    write_jsonl(args.output, found.records, overwrite=args.overwrite)
    _put_in_place(card_path, lambda path: path.write_text(card, "utf-8"))
    names = {name for record in found.records for name in record["annotators"]}
    rankings, annotators = counted(len(found.records), "ranking"), counted(len(names), "annotator")
    print(f"{args.output}: {rankings} by {annotators}; {card_path}: their data card")


def _say_what_is_missing(args: argparse.Namespace, found: "Rankings") -> None:
    from pangu_trl.annotation.ranking_card import left_out

    lines = [line.removeprefix("- ") for line in left_out(found) if line.startswith("- ")]
    if lines:
        note(args, f"left out: {'; '.join(lines)}")
    if found.too_few:
        note(args, f"lines with fewer than two answers left: {', '.join(map(str, found.too_few))}")
    if found.unknown:
        note(
            args,
            f"{found.unknown.total()} decisions are on prompts or answers that {args.answers} does not hold; export "
            "them with the version of the file that was open then",
        )
    if found.evened:
        note(args, f"{found.evened} records hold equal answers that were ranked apart; they share their mean score now")
    if found.tied:
        note(args, f"{found.tied} records tie all their answers, and the reward stage will pass over them")
    if found.overwritten:
        names = ", ".join(sorted(found.overwritten))
        note(args, f"columns of {args.answers} that gave way to those of the annotation: {names}")


def _write_other(args: argparse.Namespace, answers: "Answers", decisions: Sequence["Decision"], beside: Path) -> None:
    from pangu_trl.annotation.exchange.argilla import write_argilla
    from pangu_trl.annotation.exchange.label_studio import labelling_interface, write_label_studio
    from pangu_trl.annotation.exchange.spreadsheet import write_spreadsheet

    write = {"argilla": write_argilla, "label-studio": write_label_studio, "csv": write_spreadsheet}[args.form]
    lost: Counter[str] = Counter()
    _put_in_place(args.output, lambda path: lost.update(write(path, answers, decisions)))
    lost = +lost
    if lost:
        what = "; ".join(f"{name} ({count})" for name, count in sorted(lost.items()))
        note(args, f"{args.form} has no place for: {what}")
    print(f"{args.output}: {counted(len(answers.records), 'prompt')}, {counted(len(decisions), 'decision')}")
    if args.form == "label-studio":
        _put_in_place(beside, lambda path: path.write_text(labelling_interface(answers), "utf-8"))
        print(f"{beside}: the labelling interface to choose for the project")


def _put_in_place(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
