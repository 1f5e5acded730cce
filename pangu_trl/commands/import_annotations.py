"""`pangu-trl import-annotations`: prompts, answers and rankings from the files of other tools."""

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_trl.runs.counts import counted

from .options import note, refuse_existing

if TYPE_CHECKING:
    from pangu_trl.annotation.decisions import Decision
    from pangu_trl.annotation.exchange.exchanged import Exchanged

SUMMARY = "take over prompts, answers and rankings from Argilla, Label Studio or a spreadsheet"
EXAMPLE = "pangu-trl import-annotations ranked.csv --form csv --answers answers.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="file that the other tool exported")
    parser.add_argument("--form", required=True, choices=("argilla", "label-studio", "csv"), help="what wrote the file")
    parser.add_argument(
        "--answers",
        required=True,
        type=Path,
        metavar="ANSWERS.jsonl",
        help="the answers file that the rankings are on; it is made if it does not exist. The decisions go into the "
        "store beside it, as if they had been taken with `pangu-trl annotate`",
    )
    parser.add_argument(
        "--buckets",
        metavar="BEST,...,WORST",
        help="names of the buckets of a Label Studio Ranker, best first; answers in one bucket are tied (default: one "
        "order without buckets, or those of `export-annotations`)",
    )


def run(args: argparse.Namespace) -> None:
    if args.buckets is not None and args.form != "label-studio":
        raise ValueError("--buckets are those of a Label Studio Ranker; leave them out")
    if args.answers.suffix != ".jsonl":
        raise ValueError(f"{args.answers}: the answers file must end in .jsonl")
    from pangu_trl.annotation.prompts import AnswersFile
    from pangu_trl.annotation.store import AlreadyDecided, Store, now, store_path
    from pangu_trl.data.jsonl import write_jsonl

    found = _read(args, now())
    if not args.answers.exists():
        refuse_existing(argparse.Namespace(output=args.answers, overwrite=False))
        write_jsonl(args.answers, found.records)
        print(f"{args.answers}: {counted(len(found.records), 'prompt')} with their answers")
    file = AnswersFile.load(args.answers)
    decisions = _placed(args, found, file)
    known = 0
    if decisions:
        with Store(store_path(args.answers)) as store:
            before = {kept.number for kept in store.decisions()}
            for decision in decisions:
                try:
                    known += store.add(decision, _request(decision)) in before
                except AlreadyDecided:
                    known += 1
    if known:
        note(args, f"{known} decisions left out, as the store has one of the same annotator on the same prompt already")
    print(f"{store_path(args.answers)}: {counted(len(decisions) - known, 'decision')} taken over")


def _read(args: argparse.Namespace, at: str) -> "Exchanged":
    from pangu_trl.annotation.exchange.argilla import read_argilla
    from pangu_trl.annotation.exchange.label_studio import read_label_studio
    from pangu_trl.annotation.exchange.spreadsheet import read_spreadsheet

    if not args.file.is_file():
        raise FileNotFoundError(f"{args.file}: no such file")
    if args.form == "label-studio":
        buckets = None if args.buckets is None else [name.strip() for name in args.buckets.split(",")]
        return read_label_studio(args.file, at, buckets)
    return {"argilla": read_argilla, "csv": read_spreadsheet}[args.form](args.file, at)


def _placed(args: argparse.Namespace, found: "Exchanged", file: Any) -> "list[Decision]":
    """The decisions with the lines of the answers file; refuses those on other answers."""
    unknown = [decision for decision in found.decisions if decision.prompt not in file.rows]
    if unknown:
        raise ValueError(
            f"{args.file}: {len(unknown)} decisions are on prompts or answers that {args.answers} does not hold, the "
            f"first on its record {unknown[0].line}: texts were changed, or it is another file. With an --answers that "
            "does not exist yet, one is made of what the file says"
        )
    return [
        replace(decision, line=file.line(decision.prompt), file_digest=decision.file_digest or file.digest)
        for decision in found.decisions
    ]


def _request(decision: "Decision") -> str:
    """The same word for the same decision, so that a second import adds nothing."""
    said = asdict(decision) | {"decided_at": None, "file_digest": None, "line": None}
    return f"import {hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()}"
