"""Answers of an evaluation, side by side with the reference's: as a file, and where a run's trackers have tables."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

COLUMNS = ("prompt", "completion", "score", "reference_completion", "reference_score")
# Trackers keep what they get for good, at every evaluation.
MOST_ROWS = 100
NAME = "completions"

Row = Mapping[str, Any]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Writes all rows, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def show_in_trackers(
    report_to: Sequence[str], callbacks: Sequence[TrainerCallback], rows: Sequence[Row], step: int
) -> None:
    """Shows the first `MOST_ROWS` rows in TensorBoard, wandb, trackio and SwanLab; no other tracker gets them.

    Args:
        report_to: Names of the trackers, as in the options of the run.
        callbacks: Those of the trainer, of which TensorBoard's holds the writer.
        rows: Prompts and answers, by `COLUMNS`.
        step: Optimiser steps so far.
    """
    cells = [[_text(row[name]) if isinstance(row[name], list) else row[name] for name in COLUMNS] for row in rows]
    cells = cells[:MOST_ROWS]
    for callback in callbacks:
        writer = callback.tb_writer if isinstance(callback, TensorBoardCallback) else None
        if writer is not None:
            writer.add_text(NAME, _markdown(cells), step)
    if "wandb" in report_to:
        import wandb

        if wandb.run is not None:
            wandb.log({NAME: wandb.Table(columns=list(COLUMNS), data=cells), "train/global_step": step})
    if "trackio" in report_to:
        import pandas
        import trackio

        table = trackio.Table(dataframe=pandas.DataFrame(cells, columns=COLUMNS))
        trackio.log({NAME: table, "train/global_step": step})
    if "swanlab" in report_to:
        import swanlab

        if swanlab.get_run() is not None:
            swanlab.log({NAME: swanlab.echarts.Table().add(list(COLUMNS), cells)}, step=step)


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(messages, ensure_ascii=False)


def _markdown(cells: Sequence[Sequence[Any]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *cells]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """What a line of a table in Markdown can hold, as text that is shown as it stands."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    for sign, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", "<br>")):
        text = text.replace(sign, shown)
    return text
