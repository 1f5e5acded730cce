"""`pangu-trl sample`: K answers to every prompt of a file, in the ranking format without scores."""

import argparse
from typing import TYPE_CHECKING, Any

from pangu_trl.runs.counts import counted

from .options import (
    ANSWER_COLUMNS,
    add_format,
    add_output,
    add_sampling,
    add_special_tokens,
    check_writable,
    count_answers,
    note,
    open_journal,
    positive_int,
    refuse_existing,
)

# What the answers depend on, besides the prompts and the model's files.
OPTIONS = (
    "model",
    "adapter",
    "num_answers",
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "special_tokens_in_text",
)

if TYPE_CHECKING:
    from pangu_trl.answers.journal import Journal
    from pangu_trl.answers.sampling import SampledAnswer, SamplingConfig

SUMMARY = "sample K answers to every prompt of a file"
EXAMPLE = "pangu-trl sample --model runs/sft --prompts prompts.jsonl --num-answers 4 --output answers.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
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
    add_format(parser)
    parser.add_argument("--limit", type=positive_int, metavar="N", help="take the first N prompts only (default: all)")
    add_output(
        parser,
        "FILE.jsonl",
        "one record a prompt: its columns, 'responses', 'finished' (false where the answer was cut off by "
        "--max-new-tokens) and 'ranked': false, as the order of the answers means nothing yet",
    )
    parser.add_argument(
        "--num-answers",
        type=positive_int,
        default=4,
        metavar="K",
        help="answers to each prompt (default: %(default)s)",
    )
    add_sampling(parser)
    parser.add_argument(
        "--batch-size", type=positive_int, default=32, help="answers generated together (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="answer k to the i-th prompt depends on the seed, i and k, not on the batch size (default: %(default)s)",
    )
    add_special_tokens(parser)


def run(args: argparse.Namespace) -> None:
    refuse_existing(args)
    from pangu_trl.answers.records import Answers
    from pangu_trl.answers.sampling import SamplingConfig
    from pangu_trl.data.jsonl import write_jsonl

    config = SamplingConfig(args.max_new_tokens, args.temperature, args.top_p, args.top_k)
    prompts, places = _read_prompts(args)
    check_writable(prompts, places)
    with open_journal(args, OPTIONS, prompts) as journal:
        sampled = _sample(args, config, prompts, places, journal)
        records = [_answer_record(record, answers) for record, answers in zip(prompts, sampled, strict=True)]
        write_jsonl(args.output, records, overwrite=args.overwrite)
        journal.remove()
    num_unfinished = sum(not answer.finished for answers in sampled for answer in answers)
    cut_off = f", {num_unfinished} cut off after {counted(args.max_new_tokens, 'token')}"
    print(f"{args.output}: {count_answers(Answers(records, places))}{cut_off}")


def _sample(
    args: argparse.Namespace,
    config: "SamplingConfig",
    prompts: list[dict[str, Any]],
    places: list[str],
    journal: "Journal",
) -> list[list["SampledAnswer"]]:
    from pangu_trl.answers.sampling import SampledAnswer, load_language_model, sample_answers
    from pangu_trl.data.conversations import EncodingColumns

    model, tokenizer = load_language_model(args.model, args.adapter)
    known = {}
    for key, (text, finished) in journal.known.items():
        row, number = map(int, key.split("/"))
        known[row, number] = SampledAnswer(text, finished)
    return sample_answers(
        model,
        tokenizer,
        [record["prompt"] for record in prompts],
        args.num_answers,
        config,
        args.batch_size,
        args.seed,
        where=places,
        show_progress=True,
        columns=[EncodingColumns.of(record) for record in prompts],
        known=known,
        keep=lambda drawn: journal.add(
            {f"{row}/{number}": [answer.text, answer.finished] for (row, number), answer in drawn.items()}
        ),
    )


def _answer_record(record: dict[str, Any], answers: list["SampledAnswer"]) -> dict[str, Any]:
    is_chat = isinstance(record["prompt"], list)
    texts = [answer.text for answer in answers]
    responses = [[{"role": "assistant", "content": text}] for text in texts] if is_chat else texts
    finished = [answer.finished for answer in answers]
    return {"prompt": record["prompt"], "responses": responses, "finished": finished, "ranked": False} | record


def _read_prompts(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the prompts and their places, without the columns that describe answers which a file may hold already."""
    from pangu_trl.answers.records import per_answer_columns
    from pangu_trl.data.jsonl import read_numbered_jsonl
    from pangu_trl.data.loading import load_records
    from pangu_trl.data.records import validate_record

    # Without `datasets` between, lines keep their numbers and columns need not have one type.
    if args.prompts.endswith(".jsonl") and args.split == "train" and args.format is None:
        rows = [(f"{args.prompts}:{line}", record) for line, record in read_numbered_jsonl(args.prompts)]
    else:
        dataset = load_records(args.prompts, "prompt", args.split, args.format, args.special_tokens_in_text)
        rows = [(f"{args.prompts}[{args.split}] row {number}", record) for number, record in enumerate(dataset)]
    prompts = []
    left_out: set[str] = set()
    for place, record in rows[: args.limit]:
        stale = {name for name in ANSWER_COLUMNS if name in record} | per_answer_columns(record)
        left_out |= stale
        kept = {name: value for name, value in record.items() if name not in stale}
        if args.special_tokens_in_text is not None:
            kept["special_tokens_in_text"] = args.special_tokens_in_text
        prompts.append(validate_record(kept, "prompt", place))
    if left_out:
        names = ", ".join(sorted(left_out))
        note(args, f"left out columns of {args.prompts} that describe the answers in it, not the new ones: {names}")
    return prompts, [place for place, _ in rows[: args.limit]]
