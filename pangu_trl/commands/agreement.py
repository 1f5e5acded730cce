"""`pangu-trl agreement`: how far annotators agree, with one another and with themselves."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_trl.runs.counts import counted

from .options import add_json, print_json

if TYPE_CHECKING:
    from pangu_trl.annotation.agreement.figures import Agreement, Concordance, PositionBias

SUMMARY = "tell how far annotators agree, with one another and with themselves: figures and a page"
EXAMPLE = "pangu-trl agreement answers.annotations.sqlite --page agreement.html --answers answers.jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", nargs="+", metavar="STORE", help="file of decisions that `pangu-trl annotate` made")
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="also write a page, replaced if it exists")
    parser.add_argument(
        "--lang", choices=("en", "zh"), default="en", help="language of the page (default: %(default)s)"
    )
    parser.add_argument("--answers", metavar="ANSWERS.jsonl", help="show the prompts of this file on the page")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    if args.page is not None and args.page.suffix not in (".html", ".htm"):
        raise ValueError(f"{args.page}: the page must end in .html")
    if args.answers is not None and args.page is None:
        raise ValueError("--answers shows prompts on the page: name one with --page FILE.html, or leave --answers out")
    from pangu_trl.annotation.agreement.figures import measure_agreement
    from pangu_trl.annotation.store import read_decisions

    agreement = measure_agreement([decision for store in args.stores for decision in read_decisions(store)])
    if args.page is not None:
        from pangu_trl.annotation.agreement.page import write_page

        args.page.parent.mkdir(parents=True, exist_ok=True)
        write_page(args.page, agreement, args.lang, _prompts(args.answers))
    if args.json:
        print_json(asdict(agreement))
        return
    _print(agreement)
    if args.page is not None:
        print(f"{args.page}: written; open it in a browser")


def _prompts(answers: str | None) -> dict[str, str]:
    if answers is None:
        return {}
    from pangu_trl.annotation.decisions import prompt_digest
    from pangu_trl.answers.records import Answers
    from pangu_trl.data.records import messages_text

    records = Answers.load(answers).records
    return {prompt_digest(record): messages_text(record["prompt"]) for record in records}


def _print(agreement: "Agreement") -> None:
    names = len(agreement.annotators)
    ranked = f"{counted(agreement.prompts, 'prompt')} ranked by {counted(names, 'annotator')}"
    print(f"{ranked}, {agreement.shared_prompts} by two or more")
    if agreement.replaced:
        print(f"{agreement.replaced} decisions left out, as the same annotator decided on the same prompt again later")
    if agreement.shared_prompts:
        _print_concordance("together", agreement.together)
        for pair in agreement.pairs:
            _print_concordance(f"{pair.first} and {pair.second}", pair.concordance)
    else:
        print("no prompt was ranked by two annotators, so that there is no agreement to measure")
    for name, figures in agreement.annotators.items():
        seconds = "" if figures.median_seconds is None else f", {figures.median_seconds:.0f} s a prompt"
        print(
            f"{name}: {figures.ranked} ranked, {figures.skipped} skipped, {figures.invalid_answers:.0%} of the answers "
            f"invalid, {figures.tied_pairs:.0%} of the pairs tied{seconds}"
        )
        if figures.with_self is not None:
            _print_concordance(f"{name} on hidden repeats", figures.with_self)
        if figures.alpha_without is not None:
            print(f"  alpha without {name}: {figures.alpha_without:.2f}")
        if figures.position_bias is not None:
            _print_bias(figures.position_bias)
    if names > 1 and agreement.position_bias is not None:
        print("everybody:")
        _print_bias(agreement.position_bias)
    cyclic = [dispute.line for dispute in agreement.disputes if dispute.cycles]
    print(f"{counted(len(agreement.disputes), 'prompt')} with contradictions, {len(cyclic)} whose majority goes round")
    if cyclic:
        print(f"  lines {', '.join(map(str, cyclic))}")


def _print_concordance(name: str, found: "Concordance") -> None:
    figures = [
        f"alpha {_number(found.alpha)}",
        f"weighted tau {_number(found.tau)}",
        "no pair to compare"
        if found.pair_agreement is None
        else f"{found.pair_agreement:.0%} of {counted(found.pairs, 'pair')} alike",
    ]
    print(f"{name}: {', '.join(figures)} ({counted(found.prompts, 'prompt')} compared)")


def _print_bias(bias: "PositionBias") -> None:
    low, high = bias.interval
    verdict = ": the place on the page moved the ranking" if bias.beyond_chance else ""
    print(
        f"  the answer shown first was ranked first in {bias.share:.0%} ({low:.0%} to {high:.0%}), by chance "
        f"{bias.by_chance:.0%}{verdict}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
