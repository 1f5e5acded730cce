"""The `pangu-trl` command: sampling, judging and evaluating answers from the command line.

Each command has one function that adds its options and one that runs it. What takes seconds to import is imported by
the latter, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pangu_trl.sampling import Answers

# Columns that describe the answers a file holds; new answers must not inherit them.
ANSWER_COLUMNS = ("responses", "scores", "finished", "ranked", "chosen", "rejected")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after `pangu-trl`; those of the process if None.

    Returns:
        0, or 2 after an error that the user can mend, which is printed in one line.
    """
    args = _build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        # Some libraries explain themselves over several lines.
        _note(args, f"error: {' '.join(str(error).split())}")
        return 2
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pangu-trl", description="RLHF for causal language models, step by step.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, add_options, summary in (
        ("sample", _run_sample, _add_sample_options, "sample K answers to every prompt of a file"),
        ("score", _run_score, _add_score_options, "have sampled answers scored by a judge"),
        ("evaluate", _run_evaluate, _add_evaluate_options, "sum up sampled answers, their scores and their judge"),
    ):
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        add_options(command)
        command.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run)
    return parser


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="folder or hub id of a causal language model, or of a PEFT adapter for one"
    )
    parser.add_argument("--adapter", help="folder or hub id of a PEFT adapter to put on the model (default: none)")
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="prompts as JSON lines with a 'prompt' (.jsonl), or a data card (.md)",
    )
    parser.add_argument(
        "--split", default="train", help="split to take of a data card; a .jsonl file has only train (default: train)"
    )
    parser.add_argument("--limit", type=_positive_int, metavar="N", help="take the first N prompts only (default: all)")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help="one record a prompt: its columns, 'responses', 'finished' (false where the answer was cut off by "
        "--max-new-tokens) and 'ranked': false, as the order of the answers means nothing yet",
    )
    parser.add_argument(
        "--num-answers",
        type=_positive_int,
        default=4,
        metavar="K",
        help="answers to each prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="longest answer, in tokens (default: %(default)s)"
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
    parser.add_argument(
        "--batch-size", type=_positive_int, default=32, help="answers generated together (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="answer k to the i-th prompt depends on the seed, i and k, not on the batch size (default: %(default)s)",
    )


def _add_score_options(parser: argparse.ArgumentParser) -> None:
    _add_answers_and_batch_size(parser)
    _add_judge_option(parser, required=True)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE.jsonl", help="the records with their scores"
    )
    parser.add_argument(
        "--score-column",
        default="scores",
        metavar="NAME",
        help="column for the scores. 'scores' makes rankings, which need two or more answers a prompt, none of them "
        "empty; any other name only adds a column (default: %(default)s)",
    )


def _add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    _add_answers_and_batch_size(parser)
    _add_judge_option(parser, required=False)
    parser.add_argument(
        "--score-column",
        default="scores",
        metavar="NAME",
        help="column of the files that holds scores. They are summed up if there is no --judge; if there is, the judge "
        "is compared with them (default: %(default)s)",
    )
    parser.add_argument(
        "--min-score-gap",
        type=float,
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
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="write the figures as JSON (default: only print them)"
    )


def _add_answers_and_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("answers", metavar="ANSWERS.jsonl", help="file that `pangu-trl sample` or `score` wrote")
    parser.add_argument(
        "--batch-size", type=_positive_int, default=32, help="answers the judge gets at a time (default: %(default)s)"
    )


def _add_judge_option(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--judge",
        required=required,
        help="path/to/file.py:function or package.module:function, a Python function f(prompts, completions, "
        "**columns) -> list[float]; or folder or hub id of a reward model" + ("" if required else " (default: none)"),
    )


def _run_sample(args: argparse.Namespace) -> None:
    _refuse_existing(args)
    from transformers import AutoModelForCausalLM

    from pangu_trl.adapters import load_with_adapter
    from pangu_trl.data.jsonl import write_jsonl
    from pangu_trl.sampling import Answers, SamplingConfig, sample_answers

    config = SamplingConfig(args.max_new_tokens, args.temperature, args.top_p, args.top_k)
    prompts, places = _read_prompts(args)
    model, tokenizer, missing = load_with_adapter(AutoModelForCausalLM, args.model, args.adapter)
    if missing:
        raise ValueError(f"{args.model}: no language model, its files hold no weights for {', '.join(missing)}")
    sampled = sample_answers(
        model,
        tokenizer,
        [record["prompt"] for record in prompts],
        args.num_answers,
        config,
        args.batch_size,
        args.seed,
        where=places,
        show_progress=True,
    )
    records = []
    for record, answers in zip(prompts, sampled, strict=True):
        is_chat = isinstance(record["prompt"], list)
        texts = [answer.text for answer in answers]
        responses = [[{"role": "assistant", "content": text}] for text in texts] if is_chat else texts
        finished = [answer.finished for answer in answers]
        records.append(
            {"prompt": record["prompt"], "responses": responses, "finished": finished, "ranked": False} | record
        )
    write_jsonl(args.output, records, overwrite=args.overwrite)
    num_unfinished = sum(not answer.finished for answers in sampled for answer in answers)
    cut_off = f", {num_unfinished} cut off after {args.max_new_tokens} tokens"
    print(f"{args.output}: {_counts(Answers(records, places))}{cut_off}")


def _read_prompts(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the prompts and their places, without the columns that describe answers which a file may hold already."""
    from pangu_trl.data.jsonl import read_numbered_jsonl
    from pangu_trl.data.loading import load_records
    from pangu_trl.data.records import validate_record
    from pangu_trl.sampling import per_answer_columns

    # Without `datasets` between, lines keep their numbers and columns need not have one type.
    if args.prompts.endswith(".jsonl") and args.split == "train":
        rows = [(f"{args.prompts}:{line}", record) for line, record in read_numbered_jsonl(args.prompts)]
    else:
        dataset = load_records(args.prompts, "prompt", args.split)
        rows = [(f"{args.prompts}[{args.split}] row {number}", record) for number, record in enumerate(dataset)]
    prompts = []
    left_out: set[str] = set()
    for place, record in rows[: args.limit]:
        stale = {name for name in ANSWER_COLUMNS if name in record} | per_answer_columns(record)
        left_out |= stale
        kept = {name: value for name, value in record.items() if name not in stale}
        prompts.append(validate_record(kept, "prompt", place))
    if left_out:
        names = ", ".join(sorted(left_out))
        _note(args, f"left out columns of {args.prompts} that describe the answers in it, not the new ones: {names}")
    return prompts, [place for place, _ in rows[: args.limit]]


def _run_score(args: argparse.Namespace) -> None:
    _refuse_existing(args)
    from pangu_trl.data.jsonl import write_jsonl
    from pangu_trl.data.records import validate_record
    from pangu_trl.judging import load_judge, score_answers
    from pangu_trl.sampling import Answers, without_empty_answers

    answers = Answers.load(args.answers)
    _refuse_taken_column(args, answers)
    makes_ranking = args.score_column == "scores"
    if makes_ranking:
        _refuse_single_answers(answers)
        before = answers
        answers = without_empty_answers(answers)
        num_empty = before.num_empty
        if num_empty:
            num_records = len(before.records) - len(answers.records)
            _note(
                args,
                f"warning: left out {num_empty} empty answers, as a ranking holds none, and {num_records} records "
                "that have fewer than two others",
            )
        if not answers.records:
            raise ValueError(f"{args.answers}: no record has two answers that are not empty, so there is no ranking")
    scores = score_answers(load_judge(args.judge, args.batch_size), answers)
    records = [record | {args.score_column: row} for record, row in zip(answers.records, scores, strict=True)]
    if makes_ranking:
        for record, place in zip(records, answers.places, strict=True):
            # The scores rank the answers from now on.
            record.pop("ranked", None)
            validate_record(record, "ranking", place)
    write_jsonl(args.output, records, overwrite=args.overwrite)
    print(f"{args.output}: {_counts(Answers(records, answers.places))}")


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


def _run_evaluate(args: argparse.Namespace) -> None:
    if args.output is not None:
        _refuse_existing(args)
    from pangu_trl.data.jsonl import write_jsonl
    from pangu_trl.judging import judge_agreement, load_judge, score_answers, summarise_answers
    from pangu_trl.sampling import Answers

    answers = Answers.load(args.answers)
    others = None if args.against is None else Answers.load(args.against)
    written_scores = answers.scores(args.score_column)
    judge = None if args.judge is None else load_judge(args.judge, args.batch_size)
    scores = written_scores if judge is None else score_answers(judge, answers)
    metrics: dict[str, float | None] = dict(summarise_answers(answers, scores))
    if judge is not None and written_scores is not None:
        metrics |= judge_agreement(scores, written_scores, args.min_score_gap)
    if others is not None:
        other_scores = others.scores(args.score_column) if judge is None else score_answers(judge, others)
        if scores is None or other_scores is None:
            path = args.answers if scores is None else args.against
            raise ValueError(
                f"{path}: no column '{args.score_column}' to compare by; give a --judge, or score the file"
            )
        metrics |= _compare(args, answers, scores, others, other_scores)
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:{width}}  {'-' if value is None else format(value, '.4g')}")
    if args.output is not None:
        # One record of JSON lines is a JSON file, and this way it appears in one step.
        write_jsonl(args.output, [metrics], overwrite=args.overwrite)


def _compare(
    args: argparse.Namespace,
    answers: "Answers",
    scores: list[list[float]],
    others: "Answers",
    other_scores: list[list[float]],
) -> dict[str, float]:
    from pangu_trl.judging import compare_scores, match_prompts

    matched = match_prompts(answers.records, others.records)
    if not matched:
        raise ValueError(f"{args.against}: has no prompt of {args.answers}; compare answers to the same prompts")
    unmatched = len(answers.records) + len(others.records) - 2 * len(matched)
    if unmatched:
        _note(args, f"warning: {unmatched} prompts are in only one of the two files and are not compared")
    return compare_scores([scores[row] for row, _ in matched], [other_scores[row] for _, row in matched])


def _counts(answers: "Answers") -> str:
    num_answers = sum(len(record["responses"]) for record in answers.records)
    return (
        f"{len(answers.records)} prompts, {num_answers} answers, {answers.num_empty} empty, "
        f"{answers.num_duplicates} repeating another answer to their prompt"
    )


def _refuse_existing(args: argparse.Namespace) -> None:
    """Refuses an output file that exists, before hours of work rather than after."""
    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"{args.output}: exists already; choose another name, or replace it with --overwrite")


def _note(args: argparse.Namespace, message: str) -> None:
    print(f"pangu-trl {args.command}: {message}", file=sys.stderr)


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or greater; got {text}")
    return number
