"""`pangu-trl score-sft`: the demonstrations of an SFT set scored by a reward model."""

import argparse

from .options import (
    add_batch_size,
    add_format,
    add_json,
    add_judge_option,
    add_output,
    add_special_tokens,
    check_writable,
    open_journal,
    print_json,
    refuse_existing,
)

SUMMARY = "have the demonstrations of an SFT set scored by a judge"
EXAMPLE = "pangu-trl score-sft train.jsonl --judge runs/reward --output scored.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "demonstrations",
        metavar="DATA",
        help="demonstrations: a file of records, a .md data card, a folder or a hub dataset",
    )
    add_format(parser)
    add_special_tokens(parser)
    parser.add_argument("--split", default="train", help="split of the data (default: %(default)s)")
    add_judge_option(parser, required=True)
    add_batch_size(parser)
    parser.add_argument(
        "--score-column", default="score", metavar="NAME", help="column for the scores (default: %(default)s)"
    )
    add_output(parser, "FILE.jsonl", "the records with their scores")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    refuse_existing(args)
    from pangu_trl.answers.judge import journal_arguments, load_judge, refuse_taken_names
    from pangu_trl.data.jsonl import write_jsonl
    from pangu_trl.data.loading import load_records, place_of
    from pangu_trl.models.reward_model import ScoringError

    dataset = load_records(args.demonstrations, "demonstration", args.split, args.format, args.special_tokens_in_text)
    if args.score_column in dataset.column_names:
        raise ValueError(
            f"{args.demonstrations}: column '{args.score_column}' is taken; give another name as --score-column"
        )
    columns = dataset[:]
    prompts, completions = columns.pop("prompt"), columns.pop("completion")
    refuse_taken_names(columns)
    records = list(dataset)
    check_writable(records, [f"{args.demonstrations}[{args.split}] row {row}" for row in range(len(records))])
    with open_journal(args, ("judge", "judge_form", "batch_size"), records) as journal:
        try:
            judge = load_judge(args.judge, args.batch_size, args.judge_form)
            scores = judge(prompts, completions, **journal_arguments(journal, "scores"), **columns)
        except ScoringError as error:
            raise ValueError(f"{place_of(dataset, error.index)}: {error}") from error
        records = [record | {args.score_column: score} for record, score in zip(records, scores, strict=True)]
        write_jsonl(args.output, records, overwrite=args.overwrite)
        journal.remove()
    mean = sum(scores) / len(scores)
    if args.json:
        print_json({"demonstrations": len(records), "score/mean": mean})
        return
    print(f"{args.output}: {len(records)} demonstrations, mean score {mean:.4g}")
