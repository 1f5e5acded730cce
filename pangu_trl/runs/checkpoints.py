"""Checkpoints that a run can trust after it was killed, or the disk was full."""

import json
import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer import rotate_checkpoints
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

MARK = "complete.json"
# Stands in a checkpoint of `enable_jit_checkpoint` while that is written, and is taken away afterwards.
JIT_SENTINEL = "checkpoint-is-incomplete.txt"


def keep_whole_checkpoints(trainer: Trainer) -> None:
    """Has a trainer mark a checkpoint when all ranks have written it, and only then push it and let older ones go.

    The Trainer itself pushes and deletes when its first rank has written, whatever becomes of the others. With
    `save_only_model` there is no mark, since there is nothing to resume from. A second call changes nothing.

    Wraps the method that saves: `on_save` would be too late for what is pushed, and `enable_jit_checkpoint` saves
    without it.
    """
    if "_save_checkpoint" in vars(trainer):
        return
    save_parts = trainer._save_checkpoint

    def save_whole(model: nn.Module, trial: Any) -> None:
        args, run_dir = trainer.args, trainer._get_output_dir(trial=trial)
        folder = checkpoint_dir(run_dir, trainer.state.global_step)
        if args.should_save:
            # Of an earlier run that got further than the checkpoint which this one resumed from.
            (folder / MARK).unlink(missing_ok=True)
        trainer.accelerator.wait_for_everyone()
        pushes, limit = args.push_to_hub, args.save_total_limit
        args.push_to_hub, args.save_total_limit = False, None
        try:
            save_parts(model, trial)
        finally:
            args.push_to_hub, args.save_total_limit = pushes, limit
        trainer.accelerator.wait_for_everyone()
        if args.should_save and not args.save_only_model:
            mark_whole(folder)
        if pushes:
            trainer._push_from_checkpoint(str(folder))
        if args.should_save:
            rotate_checkpoints(run_dir, limit, trainer.state.best_model_checkpoint, use_mtime=True)

    trainer._save_checkpoint = save_whole


def checkpoint_dir(output_dir: str | Path, step: int) -> Path:
    """Where a run saves at an optimiser step."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def mark_whole(folder: Path) -> None:
    """Writes the mark of a checkpoint, with the size of every file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MARK, JIT_SENTINEL))
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in paths}
    unfinished = folder / f"{MARK}.unfinished"
    unfinished.write_text(json.dumps({"files": sizes}, indent=2))
    unfinished.rename(folder / MARK)


def last_whole_checkpoint(output_dir: str | Path) -> str:
    """The newest checkpoint with a mark whose files are all there.

    Those that are passed over are named in the log.

    Raises:
        FileNotFoundError: There is none.
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
    raise FileNotFoundError(
        f"output_dir {output_dir} has no whole checkpoint to resume from. Name one to take it all the same, or start a "
        "new run (without resume_from_checkpoint)."
    )


def _flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint."""
    if not (folder / MARK).is_file():
        return f"it has no {MARK}, so its saving was interrupted, or it holds the model alone"
    for name, size in json.loads((folder / MARK).read_text())["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            return f"{name} must have {size} bytes; it is {found}"
    return None
