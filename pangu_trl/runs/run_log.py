"""What a run logs, kept beside its model while it goes on, for the page on it."""

import json
import logging
import math
import os
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .record import read_options

# The Hub's push leaves out what begins with an underscore: settings and warnings stay here.
LOG_FILE = "_run_log.json"
# A warning at every step must not fill the disk.
MOST_WARNINGS = 50


class _WarningsMet(logging.Handler):
    """Collects what is warned of, each text once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self.texts and len(self.texts) < MOST_WARNINGS:
            self.texts.append(text)


_collecting: _WarningsMet | None = None


def collect_warnings() -> _WarningsMet:
    """Begins to collect what is warned of, before there is a trainer, or goes on with it."""
    global _collecting
    if _collecting is None:
        _collecting = _WarningsMet()
        root = logging.getLogger()
        if not root.handlers and logging.lastResort is not None:
            # What Python prints where nobody handles warnings; with a handler that only collects it would be silent.
            root.addHandler(logging.lastResort)
        # The logger of transformers hands nothing on to the root.
        for name in (None, "transformers"):
            logging.getLogger(name).addHandler(_collecting)
    return _collecting


class RunLog(TrainerCallback):
    """Writes `_run_log.json` into the run's folder at every log, whole or not at all.

    Args:
        stage: Which stage the run is of.
        arguments: The dataclasses of its options, those of the trainer included.
    """

    def __init__(self, stage: str, arguments: tuple[Any, ...]) -> None:
        self.stage = stage
        changed = _changed_options(arguments)
        self.settings = {name: value for name, value in read_options(arguments).items() if name in changed}
        global _collecting
        self.warnings = collect_warnings()
        # A further run of this process has warnings of its own.
        _collecting = None
        self.started, self.finished = time.monotonic(), False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.finished = False
        self._write(args, state)

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self._write(args, state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.finished = True
        self._write(args, state)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        content = {
            "stage": self.stage,
            "settings": self.settings,
            "step": state.global_step,
            "max_steps": state.max_steps,
            "finished": self.finished,
            "seconds": round(time.monotonic() - self.started, 1),
            "warnings": self.warnings.texts,
            "log_history": _without_nan(state.log_history),
        }
        path = Path(args.output_dir) / LOG_FILE
        unfinished = path.with_name(f"{path.name}.unfinished")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False), "utf-8")
        os.replace(unfinished, path)


def _changed_options(arguments: tuple[Any, ...]) -> set[str]:
    changed = set()
    for part in arguments:
        for option in fields(part):
            default = option.default
            if default is MISSING and option.default_factory is not MISSING:
                default = option.default_factory()
            if getattr(part, option.name, default) != default:
                changed.add(option.name)
    return changed


def _without_nan(value: Any) -> Any:
    """As JSON can hold it: a number that is none becomes null."""
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
