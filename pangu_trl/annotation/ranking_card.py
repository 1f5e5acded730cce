"""The data card beside exported rankings: how to read them, who made them, by which rules, how far they agree."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from .agreement.figures import Agreement
from .decisions import Decision
from .rankings import Rankings

PLACES = {
    "last": "Answers that an annotator called invalid stand behind all others, tied.",
    "drop": "Answers that at least half of their annotators called invalid are left out.",
}


def ranking_card(
    rankings: Path,
    answers: Path,
    found: Rankings,
    decisions: Sequence[Decision],
    agreement: Agreement,
    invalid: str,
    soft_labels: bool,
) -> str:
    """The text of a card that `load_records` reads the rankings by.

    Args:
        rankings: The exported file, in the folder of the card.
        answers: The file that was ranked.
        found: What was exported and what was not.
        decisions: All of them.
        agreement: What they say together.
        invalid: What became of invalid answers, one of `rankings.INVALID`.
        soft_labels: Whether the records hold every annotator's scores.
    """
    block = {"kind": "ranking", "path": "json", "data_files": {"train": rankings.name}}
    header = {"pretty_name": f"Rankings of {answers.name} by people", "task_categories": ["text-ranking"]}
    times = sorted(decision.decided_at for decision in decisions)
    lines = [
        "---",
        yaml.safe_dump(header | {"pangu_trl": block}, allow_unicode=True, sort_keys=False).rstrip(),
        "---",
        "",
        f"# Rankings of {answers.name} by people",
        "",
        f"{len(found.records)} prompts with ranked answers, from {len(decisions)} decisions of "
        f"{len(agreement.annotators)} annotators between {times[0]} and {times[-1]}.",
        "",
        "## Scores",
        "",
        "The score of an answer is the number of answers minus its place; tied answers share the mean of their places, "
        f"and those of several annotators are averaged. {PLACES[invalid]}",
    ]
    if soft_labels:
        lines[-1] += (
            " `annotator_scores` holds the same of each annotator, of which the reward stage makes vote shares."
        )
    lines += [
        "",
        "## Annotators",
        "",
        "| annotator | ranked | skipped | median seconds | alpha without |",
        "|---|---|---|---|---|",
    ]
    for name, figures in agreement.annotators.items():
        seconds = "" if figures.median_seconds is None else f"{figures.median_seconds:.0f}"
        alpha = "" if figures.alpha_without is None else f"{figures.alpha_without:.2f}"
        lines.append(f"| {_in_table(name)} | {figures.ranked} | {figures.skipped} | {seconds} | {alpha} |")
    lines += ["", "## Agreement", "", _agreement(agreement), "", "## Left out", "", *left_out(found), ""]
    return "\n".join(lines)


def left_out(found: Rankings) -> list[str]:
    """What did not become part of a record, a line each."""
    counts = {
        "prompts that nobody ranked": found.unranked,
        "decisions that skipped a prompt": found.skipped,
        "hidden repeats, which serve for agreement": found.repeats,
        "decisions of which the annotator took a later one": found.replaced,
        "decisions on prompts that are not in the answers file": found.unknown.total(),
        "prompts left with fewer than two answers": len(found.too_few),
        "invalid answers": found.dropped_answers,
        "empty answers": found.empty_answers,
    }
    return [f"- {count} {what}" for what, count in counts.items() if count] or ["Nothing."]


def _agreement(agreement: Agreement) -> str:
    if not agreement.shared_prompts:
        return "No prompt was ranked by two annotators, so that nothing is known of their agreement."
    together = agreement.together
    figures = [
        f"Krippendorff's alpha (ordinal) {_number(together.alpha)}",
        f"weighted Kendall tau {_number(together.tau)}",
        f"{_number(together.pair_agreement)} of {together.pairs} pairs of answers ordered alike",
    ]
    return f"On {agreement.shared_prompts} prompts of two annotators or more: {', '.join(figures)}."


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def _in_table(text: str) -> str:
    """A name that stays in its cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
