"""`pangu-trl evaluate-reward`: a saved reward model against annotated rankings, with probes and a page."""

import argparse
import json
import os
from collections.abc import Iterable, Sequence

from pangu_trl.runs.counts import counted

from .options import (
    add_format,
    add_json,
    add_output,
    add_special_tokens,
    open_journal,
    positive_int,
    print_json,
    refuse_existing,
    score_gap,
)

SUMMARY = "measure a saved reward model against rankings: figures, probes, a page"
EXAMPLE = "pangu-trl evaluate-reward runs/reward --data held-out.jsonl --output reward-report"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or hub id of a reward model, or of a PEFT adapter for one")
    parser.add_argument(
        "--data",
        required=True,
        help="rankings: a .jsonl file, a .md data card, a folder or a hub dataset",
    )
    parser.add_argument("--split", default="train", help="split of the data (default: %(default)s)")
    parser.add_argument(
        "--benchmark",
        choices=("rewardbench2", "cheemsbench"),
        help="--data is a .jsonl file of this benchmark's records, which get its own figures",
    )
    add_format(parser)
    add_special_tokens(parser)
    parser.add_argument(
        "--min-score-gap",
        type=score_gap,
        default=0.0,
        metavar="GAP",
        help="smallest difference of annotated scores at which a pair of answers counts (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=32,
        metavar="N",
        help="answers scored together (default: %(default)s)",
    )
    parser.add_argument(
        "--lang", choices=("en", "zh"), default="en", help="language of the page (default: %(default)s)"
    )
    add_output(parser, "FOLDER", "gets metrics.json and report.html, a page with charts")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    refuse_existing(args, is_folder=True)
    if args.benchmark is not None:
        _run_benchmark(args)
        return
    from pangu_trl.data.loading import load_records, place_of
    from pangu_trl.models.reward_model import ScoringError, load_reward_model
    from pangu_trl.reward.probes import probe_verdicts
    from pangu_trl.reward.report import evaluate_rankings, write_report

    dataset = load_records(args.data, "ranking", args.split, args.format, args.special_tokens_in_text)
    _refuse_without_pair(dataset["scores"], args)
    rankings = list(dataset)
    with open_journal(args, ("model", "batch_size"), rankings) as journal:
        model, tokenizer = load_reward_model(args.model)
        try:
            evaluation = evaluate_rankings(model, tokenizer, rankings, args.batch_size, args.min_score_gap, journal)
        except ScoringError as error:
            places = [(row, index) for row, item in enumerate(rankings) for index in range(len(item["responses"]))]
            row, index = places[error.index]
            raise ValueError(f"{place_of(dataset, row)}: 'responses[{index}]': {error}") from error
        source = {"model": args.model, "data": f"{args.data}[{args.split}]"}
        # Words of the command line may hold bytes that are no text.
        readable = {name: os.fsencode(value).decode("utf-8", "replace") for name, value in source.items()}
        write_report(args.output, evaluation, readable | {"min_score_gap": args.min_score_gap}, args.lang)
        journal.remove()
    if args.json:
        verdicts = probe_verdicts(evaluation.probes)
        found = {"intervals": evaluation.intervals, "probes": evaluation.probes, "verdicts": verdicts}
        print_json(evaluation.metrics | found)
        return
    for name, value in evaluation.metrics.items():
        interval = evaluation.intervals.get(name)
        ends = "" if interval is None else "  ({:.4g} to {:.4g})".format(*interval)
        print(f"{name:42}  {value:.4g}{ends}")
    for name, probe in evaluation.probes.items():
        prompts = counted(probe["prompts"], "prompt")
        print(f"{f'best answer beats {name}':42}  {probe['best_answer_wins']:.4g}  ({prompts})")
    for verdict in probe_verdicts(evaluation.probes):
        print(verdict)


def _run_benchmark(args: argparse.Namespace) -> None:
    if args.format is not None or args.split != "train" or args.min_score_gap or args.special_tokens_in_text:
        raise ValueError(
            "--benchmark reads a file in its published form; leave --format, --split, --min-score-gap and "
            "--special-tokens-in-text out"
        )
    from pangu_trl.answers.judge import journal_arguments, judge_of_model
    from pangu_trl.data.jsonl import read_numbered_jsonl
    from pangu_trl.models.reward_model import ScoringError, load_reward_model
    from pangu_trl.reward import cheems, rewardbench

    benchmark = {"rewardbench2": rewardbench, "cheemsbench": cheems}[args.benchmark]
    records, places = [], []
    for line, record in read_numbered_jsonl(args.data):
        benchmark.check_record(record, f"{args.data}:{line}")
        records.append(record)
        places.append(f"{args.data}:{line}")
    answers = [(row, text) for row, record in enumerate(records) for text in benchmark.texts_of(record)]
    with open_journal(args, ("model", "batch_size", "benchmark"), records) as journal:
        model, tokenizer = load_reward_model(args.model)
        judge = judge_of_model("the reward model", model, tokenizer, args.batch_size)
        # Published as texts; a model of conversations is to read turns.
        has_turns = bool(tokenizer.chat_template)
        prompts = [_as_turn(records[row][benchmark.PROMPT], "user", has_turns) for row, _ in answers]
        responses = [_as_turn(text, "assistant", has_turns) for _, text in answers]
        try:
            found = judge(prompts, responses, **journal_arguments(journal, "scores"))
        except ScoringError as error:
            raise ValueError(f"{places[answers[error.index][0]]}: {error}") from error
        scores: list[list[float]] = [[] for _ in records]
        for (row, _), score in zip(answers, found, strict=True):
            scores[row].append(score)
        metrics = benchmark.metrics(records, scores)
        args.output.mkdir(parents=True, exist_ok=True)
        content = {"model": args.model, "data": args.data, "benchmark": args.benchmark, "metrics": metrics}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (args.output / "metrics.json").write_text(text + "\n", encoding="utf-8")
        journal.remove()
    if args.json:
        print_json(metrics)
        return
    for name, value in metrics.items():
        print(f"{name:42}  {value:.4g}")


def _as_turn(text: str, role: str, has_turns: bool) -> str | list[dict[str, str]]:
    return [{"role": role, "content": text}] if has_turns else text


def _refuse_without_pair(scores: Iterable[Sequence[float]], args: argparse.Namespace) -> None:
    """Before the model is loaded and gives its scores."""
    import torch

    from pangu_trl.reward.evaluation import counted_pairs

    extremes = torch.tensor([[max(group), min(group)] for group in scores], dtype=torch.float64)
    if not counted_pairs(extremes, torch.ones_like(extremes, dtype=torch.bool), args.min_score_gap).any():
        gap = (
            f"scores that differ by --min-score-gap {args.min_score_gap:g}"
            if args.min_score_gap
            else "different scores"
        )
        raise ValueError(
            f"{args.data}[{args.split}]: no two answers to a prompt have {gap}, so there is nothing to measure"
        )
