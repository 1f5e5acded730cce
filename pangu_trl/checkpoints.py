"""Checkpoints that a run can trust after it was killed, or the disk was full."""

import json
import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import rotate_checkpoints
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

MARK = "complete.json"


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint when all ranks have written their parts, and only then lets older ones go.

    The Trainer itself deletes old checkpoints when its first rank has written, whatever becomes of the others.
    """

    def __init__(self) -> None:
        self._save_total_limit: int | None = None

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Takes `save_total_limit` over from the Trainer."""
        if args.save_total_limit is not None:
            self._save_total_limit, args.save_total_limit = args.save_total_limit, None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Writes the mark, with the size of every file, and deletes what `save_total_limit` leaves over."""
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        PartialState().wait_for_everyone()
        if not args.should_save:
            return
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder) if path.name != MARK}
        unfinished = folder / f"{MARK}.unfinished"
        unfinished.write_text(json.dumps({"step": state.global_step, "files": sizes}, indent=2))
        unfinished.rename(folder / MARK)
        rotate_checkpoints(args.output_dir, self._save_total_limit, state.best_model_checkpoint, use_mtime=True)


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint with a mark whose files are all there, None if there is none.

    Those that are passed over are named in the log.
    """
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if path.is_dir() and number.isdigit():
            found.append((int(number), path))
    for _, path in sorted(found, reverse=True):
        flaw = _flaw(path)
        if flaw is None:
            return str(path)
        logger.warning("%s is left out: %s.", path, flaw)
    return None


def _flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint."""
    if not (folder / MARK).is_file():
        return f"it has no {MARK}, so its saving was interrupted"
    for name, size in json.loads((folder / MARK).read_text())["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            return f"{name} must have {size} bytes; it is {found}"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
