"""`pangu-trl score`: sampled answers scored by a judge."""

import argparse
from typing import TYPE_CHECKING, Any

from .options import (
    ANSWER_COLUMNS,
    add_answers_and_batch_size,
    add_judge_option,
    add_output,
    check_writable,
    count_answers,
    judge_journal,
    note,
    refuse_existing,
)

if TYPE_CHECKING:
    from pangu_trl.answers.records import Answers

SUMMARY = "have sampled answers scored by a judge"
EXAMPLE = "pangu-trl score answers.jsonl --judge judge.py:sentiment --output ranked.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_answers_and_batch_size(parser)
    add_judge_option(parser, required=True)
    add_output(parser, "FILE.jsonl", "the records with their scores")
    parser.add_argument(
        "--score-column",
        default="scores",
        metavar="NAME",
        help="column for the scores. 'scores' makes rankings, which need two or more answers a prompt, none of them "
        "empty; any other name only adds a column (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    refuse_existing(args)
    from pangu_trl.answers.judge import load_judge, score_answers
    from pangu_trl.answers.records import Answers, without_empty_answers

    answers = Answers.load(args.answers, args.special_tokens_in_text)
    _refuse_taken_column(args, answers)
    makes_ranking = args.score_column == "scores"
    if makes_ranking:
        _refuse_single_answers(answers)
        before = answers
        answers = without_empty_answers(answers)
        num_empty = before.num_empty
        if num_empty:
            num_records = len(before.records) - len(answers.records)
            note(
                args,
                f"warning: left out {num_empty} empty answers, as a ranking holds none, and {num_records} records "
                "that have fewer than two others",
            )
        if not answers.records:
            raise ValueError(f"{args.answers}: no record has two answers that are not empty, so there is no ranking")
    check_writable(answers.records, answers.places)
    with judge_journal(args, answers) as journal:
        scores = score_answers(load_judge(args.judge, args.batch_size, args.judge_form), answers, journal)
        records = _write_scores(args, answers, scores)
        journal.remove()
    print(f"{args.output}: {count_answers(Answers(records, answers.places))}")


def _write_scores(args: argparse.Namespace, answers: "Answers", scores: list[list[float]]) -> list[dict[str, Any]]:
    from pangu_trl.data.jsonl import write_jsonl
    from pangu_trl.data.records import validate_record

    records = [record | {args.score_column: row} for record, row in zip(answers.records, scores, strict=True)]
    if args.score_column == "scores":
        for record, place in zip(records, answers.places, strict=True):
            # The scores rank the answers from now on.
            record.pop("ranked", None)
            validate_record(record, "ranking", place)
    write_jsonl(args.output, records, overwrite=args.overwrite)
    return records


def _refuse_taken_column(args: argparse.Namespace, answers: "Answers") -> None:
    for record, place in zip(answers.records, answers.places, strict=True):
        if args.score_column in record or args.score_column in ANSWER_COLUMNS and args.score_column != "scores":
            raise ValueError(f"{place}: column '{args.score_column}' is taken; give another name as --score-column")


def _refuse_single_answers(answers: "Answers") -> None:
    for record, place in zip(answers.records, answers.places, strict=True):
        if len(record["responses"]) < 2:
            raise ValueError(
                f"{place}: a ranking needs two or more answers; got 1. To judge single answers use `pangu-trl evaluate "
                "--judge`, or add a column that is no ranking with --score-column NAME"
            )
