"""Checkpoints that a run can trust after it was killed, the disk was full, or a file was damaged."""

import errno
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

MARK = "complete.json"
# Stands in a checkpoint of `enable_jit_checkpoint` while that is written, and is taken away afterwards.
JIT_SENTINEL = "checkpoint-is-incomplete.txt"
READ_AT_A_TIME = 1 << 22
READERS = 8


def keep_whole_checkpoints(trainer: Trainer, write_more: Callable[[Path], None] = lambda folder: None) -> None:
    """Has a trainer mark a checkpoint when all ranks have written it, and only then push it and let older ones go.

    The Trainer itself pushes and deletes when its first rank has written, whatever becomes of the others. With
    `save_only_model` there is no mark, since there is nothing to resume from. A second call changes nothing.

    Wraps the method that saves: `on_save` would be too late for what is pushed, and `enable_jit_checkpoint` saves
    without it.

    Args:
        trainer: Any trainer.
        write_more: Called on every rank with the folder of a checkpoint, to add files of its own.
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
            with saving_to(folder):
                save_parts(model, trial)
        finally:
            args.push_to_hub, args.save_total_limit = pushes, limit
        if not args.save_only_model:
            with saving_to(folder):
                write_more(folder)
        trainer.accelerator.wait_for_everyone()
        if pushes and args.should_save:
            # It would not be pushed, and a mark that counts it would call what comes back from the Hub incomplete.
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if args.should_save and not args.save_only_model:
            with saving_to(folder):
                mark_whole(folder)
        if pushes:
            trainer._push_from_checkpoint(str(folder))
        if args.should_save:
            best = trainer.state.best_model_checkpoint
            drop_old_checkpoints(run_dir, limit, [folder, *([Path(best)] if best else [])])

    trainer._save_checkpoint = save_whole


def drop_old_checkpoints(output_dir: str | Path, limit: int | None, kept: Sequence[Path]) -> None:
    """Removes the oldest checkpoints of a run down to a number, first those that are not whole.

    transformers goes by when a folder changed last. What a kill left of a removal has just changed, and whole
    checkpoints would go in its place. Here the time is that of the mark, which goes first. Without any marks, as with
    `save_only_model`, it is that of the folder.

    Args:
        output_dir: Folder of the run.
        limit: Most checkpoints to keep; None or 0 keeps all.
        kept: Checkpoints that stay in any case: the one just saved, and the best.
    """
    if not limit or limit < 0:
        return
    found = _checkpoints(output_dir)
    has_marks = any((path / MARK).exists() for _, path in found)

    def age(numbered: tuple[int, Path]) -> tuple[int, int]:
        number, path = numbered
        stamp = path / MARK if has_marks else path
        return (stamp.stat().st_mtime_ns if stamp.exists() else 0, number)

    stays = {path.resolve() for path in kept}
    surplus = len(found) - max(limit, len(stays))
    for _, path in [item for item in sorted(found, key=age) if item[1].resolve() not in stays][: max(surplus, 0)]:
        (path / MARK).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run, whole or not, with their steps."""
    found = []
    for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if path.is_dir() and number.isdigit():
            found.append((int(number), path))
    return found


def checkpoint_dir(output_dir: str | Path, step: int) -> Path:
    """Where a run saves at an optimiser step."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


@contextmanager
def saving_to(folder: Path) -> Iterator[None]:
    """Says of what goes wrong while a folder is written which one it was, how full its disk is, and what to do.

    Raises:
        OSError: The body raised one, or what torch and safetensors raise in its place.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise OSError(
            code,
            f"{folder} could not be written: {' '.join(str(error).split())}. {_room(folder)} Checkpoints that were "
            "whole before are untouched; once there is room, go on with --resume_from_checkpoint true",
        ) from error


def _room(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return "How full its disk is could not be found out."
    if free < 1 << 26:
        return f"The disk is full: {free:,} bytes are free."
    return f"{free / 1e9:.1f} GB are free on its disk."


def mark_whole(folder: Path) -> None:
    """Writes the mark of a checkpoint, with the size and a checksum of every file, when all else is on the disk."""
    paths = [path for path in sorted(folder.rglob("*")) if path.name not in (MARK, JIT_SENTINEL)]
    files = [path for path in paths if path.is_file()]
    with ThreadPoolExecutor(READERS) as readers:
        checksums = dict(zip(files, readers.map(_checksum, files), strict=True))
    for path in [path for path in paths if path.is_dir()] + [folder]:
        _sync(path)
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": checksums[path]} for path in files
    }
    unfinished = folder / f"{MARK}.unfinished"
    unfinished.write_text(json.dumps({"files": entries}, indent=2), "utf-8")
    _sync(unfinished)
    unfinished.rename(folder / MARK)
    _sync(folder)
    # The entry of the checkpoint itself.
    _sync(folder.parent)


def _checksum(path: Path, sync: bool = True) -> str:
    """CRC-32 of a file, read in pieces: it finds damage, at the speed of a disk, and is no guard against forgery."""
    checksum = 0
    with path.open("rb") as stream:
        while piece := stream.read(READ_AT_A_TIME):
            checksum = zlib.crc32(piece, checksum)
        if sync:
            os.fsync(stream.fileno())
    return f"{checksum:08x}"


def _sync(path: Path) -> None:
    """Has the system write a file or the entries of a folder to the disk, where it can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not know this of folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def last_whole_checkpoint(output_dir: str | Path) -> str:
    """The newest checkpoint with a mark whose files are all there and unchanged.

    Those that are passed over are named in the log. Every file is read once.

    Raises:
        FileNotFoundError: There is none.
    """
    for _, path in sorted(_checkpoints(output_dir), reverse=True):
        flaw = flaw_of(path)
        if flaw is None:
            return str(path)
        logger.warning("%s is left out: %s.", path, flaw)
    raise FileNotFoundError(
        f"output_dir {output_dir} has no whole checkpoint to resume from. Start a new run (without "
        "resume_from_checkpoint) in another output_dir."
    )


def check_whole(folder: str | Path) -> None:
    """Checks a checkpoint that was named.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is not whole; the message says which file is missing or damaged.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"resume_from_checkpoint {folder} is not a folder.")
    flaw = flaw_of(Path(folder))
    if flaw is not None:
        raise ValueError(
            f"resume_from_checkpoint {folder} cannot be resumed from: {flaw}. --resume_from_checkpoint true takes the "
            "last whole checkpoint of output_dir."
        )


def flaw_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is."""
    mark = folder / MARK
    if not mark.is_file():
        return f"it has no {MARK}, so its saving was interrupted, or it holds the model alone"
    try:
        files = json.loads(mark.read_text("utf-8"))["files"]
        expected = {name: (int(entry["bytes"]), str(entry["crc32"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MARK} is damaged (it must list bytes and crc32 of every file)"
    if not expected:
        return f"its {MARK} lists no file"
    for name, (size, _) in expected.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            return f"{name} must have {size} bytes; it is {found}"
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(lambda name: _checksum(folder / name, sync=False), expected)
        changed = [name for name, checksum in zip(expected, found, strict=True) if checksum != expected[name][1]]
    return f"{', '.join(changed)} changed after it was saved (another checksum)" if changed else None
