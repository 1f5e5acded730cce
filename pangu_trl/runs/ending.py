"""What a recipe says at its end: figures before and after, where the model is, what may come next."""

import os
from pathlib import Path

from .counts import counted
from .report.figures import changes
from .report.page import PAGE_FILE, number, write_page
from .report.reading import read_run
from .report.words import words

# What follows on a stage; the model's folder is put in.
NEXT = {
    "sft": ("pangu-trl init DIR --stage reward --model {model} --data RANKINGS", "pangu-trl chat {model}"),
    "reward": (
        "pangu-trl init DIR --stage ppo --model SFT_MODEL --reward-model {model} --data PROMPTS",
        "pangu-trl evaluate-reward {model} --data HELD_OUT --output FOLDER",
    ),
    "ppo": ("pangu-trl chat {model}", "pangu-trl sample --model {model} --prompts PROMPTS --output answers.jsonl"),
    "dpo": ("pangu-trl chat {model}", "pangu-trl sample --model {model} --prompts PROMPTS --output answers.jsonl"),
    "grpo": ("pangu-trl chat {model}", "pangu-trl sample --model {model} --prompts PROMPTS --output answers.jsonl"),
}


def tell_end(folder: Path) -> str:
    """Writes the page on a run that has ended, and returns what to print."""
    run = read_run(folder)
    language = "zh" if os.environ.get("LC_ALL", os.environ.get("LANG", "")).startswith("zh") else "en"
    write_page(folder / PAGE_FILE, [run], language)
    say = words("en")
    lines = [f"{run.stage or 'training'}: {counted(run.step, 'step')}"]
    for change in changes(run):
        kind = "held out" if change.held_out else "training"
        verdict = {1: "  better", -1: "  worse", 0: ""}[change.verdict]
        name = f"{say[change.name]} ({kind})"
        lines.append(f"  {name:48} {number(change.first):>9} -> {number(change.last):>9}{verdict}")
    lines.append(f"model   {folder}")
    lines.append(f"report  {folder / PAGE_FILE}")
    lines += [f"next    {words_of.format(model=folder)}" for words_of in NEXT.get(run.stage, ())]
    return "\n".join(lines)
