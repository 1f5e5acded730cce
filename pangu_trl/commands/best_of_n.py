"""`pangu-trl best-of-n`: of N sampled answers to each prompt the one with the highest score."""

import argparse
from typing import TYPE_CHECKING, Any

from pangu_trl.runs.counts import counted

from .options import (
    add_answers_and_batch_size,
    add_json,
    add_judge_option,
    add_output,
    check_writable,
    judge_journal,
    note,
    print_json,
    refuse_existing,
)

if TYPE_CHECKING:
    from pangu_trl.answers.records import Answers

SUMMARY = "keep the best of N sampled answers to every prompt, as demonstrations"
EXAMPLE = "pangu-trl best-of-n answers.jsonl --judge runs/reward --output best.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_answers_and_batch_size(parser)
    add_judge_option(parser, required=False)
    parser.add_argument(
        "--score-column",
        default="scores",
        metavar="NAME",
        help="column of the file that holds the scores, if there is no --judge (default: %(default)s)",
    )
    add_output(
        parser,
        "FILE.jsonl",
        "demonstrations: the best answer to each prompt as 'completion', with its 'score'; of equally good ones the "
        "first",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    refuse_existing(args)
    from pangu_trl.answers.records import Answers
    from pangu_trl.data.jsonl import write_jsonl

    answers = Answers.load(args.answers, args.special_tokens_in_text)
    check_writable(answers.records, answers.places)
    with judge_journal(args, answers) as journal:
        if args.judge is not None:
            from pangu_trl.answers.judge import load_judge, score_answers

            scores = score_answers(load_judge(args.judge, args.batch_size, args.judge_form), answers, journal)
        else:
            scores = answers.scores(args.score_column)
        selected = _select(args, answers, scores)
        write_jsonl(args.output, selected, overwrite=args.overwrite)
        if journal is not None:
            journal.remove()
    all_scores = [score for row in scores for score in row]
    mean_best, mean = sum(record["score"] for record in selected) / len(selected), sum(all_scores) / len(all_scores)
    if args.json:
        print_json({"prompts": len(selected), "score/mean_of_best": mean_best, "score/mean_of_all": mean})
        return
    print(f"{args.output}: {counted(len(selected), 'prompt')}, mean score {mean_best:.4g}; of all answers {mean:.4g}")


def _select(args: argparse.Namespace, answers: "Answers", scores: list[list[float]] | None) -> list[dict[str, Any]]:
    """A demonstration for each prompt that has an answer."""
    if scores is None:
        raise ValueError(
            f"{args.answers}: no column '{args.score_column}' to select by; give a --judge, or score the file"
        )
    replaced = [name for name in ("completion", "score") if any(name in record for record in answers.records)]
    if replaced:
        note(
            args, f"warning: columns of {args.answers} give way to the best answer and its score: {', '.join(replaced)}"
        )
    best = [
        _best_answer(record, row, place, args.score_column)
        for record, row, place in zip(answers.records, scores, answers.places, strict=True)
    ]
    selected = [demonstration for demonstration in best if demonstration is not None]
    if not selected:
        raise ValueError(f"{args.answers}: every answer is empty, so there is none to select")
    if len(selected) < len(best):
        note(args, f"warning: left out {len(best) - len(selected)} prompts all of whose answers are empty")
    return selected


def _best_answer(record: dict[str, Any], scores: list[float], place: str, score_column: str) -> dict[str, Any] | None:
    """A demonstration with the best answer that is not empty; None if all are."""
    from pangu_trl.answers.records import is_empty, per_answer_columns
    from pangu_trl.data.records import validate_record

    responses = record["responses"]
    candidates = [index for index, response in enumerate(responses) if not is_empty(response)]
    if not candidates:
        return None
    best = max(candidates, key=scores.__getitem__)
    # Columns that describe the answers one by one would no longer fit.
    dropped = per_answer_columns(record) | {"responses", "scores", "ranked", score_column}
    kept = {name: value for name, value in record.items() if name not in dropped}
    return validate_record(kept | {"completion": responses[best], "score": scores[best]}, "demonstration", place)
