"""`pangu-trl evaluate-reward`: a saved reward model against annotated rankings, with probes and pictures."""

import argparse
import os
from collections.abc import Iterable, Sequence

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

SUMMARY = "measure a saved reward model against rankings: figures, probes, pictures"
EXAMPLE = "pangu-trl evaluate-reward runs/reward --data held-out.jsonl --output reward-report"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or hub id of a reward model, or of a PEFT adapter for one")
    parser.add_argument(
        "--data",
        required=True,
        help="rankings: a .jsonl file, a .md data card, a folder or a hub dataset",
    )
    parser.add_argument("--split", default="train", help="split of the data (default: %(default)s)")
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
    add_output(parser, "FOLDER", "gets metrics.json, report.md and its pictures")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    refuse_existing(args, is_folder=True)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("evaluate-reward draws pictures with matplotlib: pip install matplotlib") from error
    from pangu_trl.data.loading import load_records, place_of
    from pangu_trl.models.reward_model import ScoringError, load_reward_model
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
        write_report(args.output, evaluation, readable | {"min_score_gap": args.min_score_gap})
        journal.remove()
    if args.json:
        print_json(evaluation.metrics | {"probes": evaluation.probes})
        return
    for name, value in evaluation.metrics.items():
        print(f"{name:42}  {value:.4g}")
    for name, probe in evaluation.probes.items():
        print(f"{f'best answer beats {name}':42}  {probe['best_answer_wins']:.4g}  ({probe['prompts']} prompts)")


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
