"""What a run left in its folder, as the page on it needs it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG_FILES = ("_run_log.json", "trainer_state.json")
# What PPO writes with `log_completions`, one file a step of evaluation.
COMPLETIONS = "completions"


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: Its folder, as it is called on the page.
        stage: sft, reward, ppo, dpo or grpo; empty where the folder does not say.
        history: What was logged, one dictionary a log, with its step.
        settings: Options that are not the default.
        step: Optimiser steps so far.
        max_steps: Those that it will have had at its end.
        finished: Whether training has ended.
        seconds: How long this process has trained.
        warnings: What it warned of.
        samples: Of the last evaluation, {"prompt", "completion", "score", "reference_completion", "reference_score"}.
    """

    name: str
    stage: str
    history: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    max_steps: int = 0
    finished: bool = True
    seconds: float | None = None
    warnings: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def series(self, metric: str) -> list[tuple[int, float]]:
        """Steps at which a metric was logged, and its values; of several at a step the last."""
        values = {
            entry["step"]: float(entry[metric])
            for entry in self.history
            if isinstance(entry.get(metric), int | float) and "step" in entry
        }
        return sorted(values.items())


def read_run(folder: str | Path) -> Run:
    """Reads a run's folder, also while the run goes on.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no log of a run.
        ValueError: The log is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the output_dir of a run")
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    path = next(
        (place / name for place in (folder, *checkpoints) for name in LOG_FILES if (place / name).is_file()), None
    )
    if path is None:
        raise FileNotFoundError(f"{folder}: holds no {' or '.join(LOG_FILES)}, so it is no run of a recipe")
    try:
        log = json.loads(path.read_text("utf-8"))
        history = [entry for entry in log["log_history"] if isinstance(entry, dict)]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: is damaged ({error!r}); it must hold what a trainer logged as 'log_history'"
        ) from error
    return Run(
        name=folder.name or str(folder.resolve().name),
        stage=log.get("stage", ""),
        history=history,
        settings=log.get("settings", {}),
        step=log.get("step", log.get("global_step", 0)),
        max_steps=log.get("max_steps", 0),
        finished=log.get("finished", True),
        seconds=log.get("seconds"),
        warnings=log.get("warnings", []),
        samples=_read_samples(folder / COMPLETIONS),
    )


def _read_samples(folder: Path) -> list[dict[str, Any]]:
    from pangu_trl.data.jsonl import read_jsonl

    tables = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    return read_jsonl(tables[-1]) if tables else []
