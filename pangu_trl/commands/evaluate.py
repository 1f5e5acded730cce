"""`pangu-trl evaluate`: figures of sampled answers, of their scores and of the judge."""

import argparse
from typing import TYPE_CHECKING

from .options import (
    add_answers_and_batch_size,
    add_json,
    add_judge_option,
    add_output,
    judge_journal,
    note,
    print_json,
    refuse_existing,
    score_gap,
)

if TYPE_CHECKING:
    from pangu_trl.answers.records import Answers

SUMMARY = "sum up sampled answers, their scores and their judge"
EXAMPLE = "pangu-trl evaluate ranked.jsonl --judge runs/reward --output figures.json"

_SCORE_COLUMN = "scores"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_answers_and_batch_size(parser)
    add_judge_option(parser, required=False)
    parser.add_argument(
        "--score-column",
        default=_SCORE_COLUMN,
        metavar="NAME",
        help="column of the files that holds scores. They are summed up if there is no --judge; if there is, the judge "
        "is compared with them (default: %(default)s)",
    )
    parser.add_argument(
        "--min-score-gap",
        type=score_gap,
        default=0.0,
        metavar="GAP",
        help="smallest difference of the file's scores at which a pair of answers counts in the judge's pair accuracy "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--against",
        metavar="OTHER.jsonl",
        help="answers to the same prompts to compare with: difference of mean scores, win rate (default: none)",
    )
    add_output(
        parser,
        "FILE.json",
        "write the figures as JSON, and keep the judge's scores beside it as they come, for a second call to go on "
        "with (default: only print them; a judging that is stopped begins again)",
        required=False,
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    if args.output is not None:
        refuse_existing(args)
    from pangu_trl.answers.records import Answers
    from pangu_trl.data.jsonl import write_jsonl

    answers = Answers.load(args.answers, args.special_tokens_in_text)
    others = None if args.against is None else Answers.load(args.against, args.special_tokens_in_text)
    if args.judge is not None and args.output is None:
        note(args, "without --output no score is kept: a judging that is stopped begins again")
    written_scores = answers.scores(args.score_column)
    if written_scores is None and args.score_column != _SCORE_COLUMN:
        raise ValueError(f"{args.answers}: no record has the column '{args.score_column}'; name one that is there")
    other_scores = None if others is None else others.scores(args.score_column)
    scores = written_scores
    with judge_journal(args, answers, others) as journal:
        if args.judge is not None:
            from pangu_trl.answers.judge import load_judge, score_answers

            judge = load_judge(args.judge, args.batch_size, args.judge_form)
            scores = score_answers(judge, answers, journal)
            other_scores = None if others is None else score_answers(judge, others, journal, "others")
        metrics = _figures(args, answers, scores, written_scores, others, other_scores)
        if args.output is not None:
            # One record of JSON lines is a JSON file, and this way it appears in one step.
            write_jsonl(args.output, [metrics], overwrite=args.overwrite)
        if journal is not None:
            journal.remove()
    if args.json:
        print_json(metrics)
        return
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:{width}}  {'-' if value is None else format(value, '.4g')}")


def _figures(
    args: argparse.Namespace,
    answers: "Answers",
    scores: list[list[float]] | None,
    written_scores: list[list[float]] | None,
    others: "Answers | None",
    other_scores: list[list[float]] | None,
) -> dict[str, float | None]:
    from pangu_trl.answers.summary import summarise_answers

    metrics: dict[str, float | None] = dict(summarise_answers(answers, scores))
    if args.judge is not None and written_scores is not None:
        from pangu_trl.reward.evaluation import judge_agreement

        metrics |= judge_agreement(scores, written_scores, args.min_score_gap)
    if others is not None:
        if scores is None or other_scores is None:
            path = args.answers if scores is None else args.against
            raise ValueError(
                f"{path}: no column '{args.score_column}' to compare by; give a --judge, or score the file"
            )
        metrics |= _compare(args, answers, scores, others, other_scores)
    return metrics


def _compare(
    args: argparse.Namespace,
    answers: "Answers",
    scores: list[list[float]],
    others: "Answers",
    other_scores: list[list[float]],
) -> dict[str, float]:
    from pangu_trl.answers.summary import compare_scores, match_prompts

    matched = match_prompts(answers.records, others.records)
    if not matched:
        raise ValueError(f"{args.against}: has no prompt of {args.answers}; compare answers to the same prompts")
    unmatched = len(answers.records) + len(others.records) - 2 * len(matched)
    if unmatched:
        note(args, f"warning: {unmatched} prompts are in only one of the two files and are not compared")
    return compare_scores([scores[row] for row, _ in matched], [other_scores[row] for _, row in matched])
