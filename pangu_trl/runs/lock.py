"""One process at a time: in the folder of a run, or at a file."""

import atexit
import errno
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

# The Trainer uploads nothing whose name starts with an underscore.
LOCK_FILE = "_run.lock"
_held: dict[Path, int] = {}


def lock_folder(folder: str | Path) -> None:
    """Takes a folder for the run of this process, as `hold` does; makes the folder if it is missing.

    Raises:
        BlockingIOError: Another run has the folder; the message names its host and process id.
        OSError: The folder cannot be written.
    """
    folder = Path(folder).absolute()
    hold(folder / LOCK_FILE, f"output_dir {folder}", "run", "give another output_dir")


def unlock_folder(folder: str | Path) -> None:
    """Gives a folder back, and takes the file of the lock away."""
    release(Path(folder) / LOCK_FILE)


def hold(lock_file: str | Path, what: str, holder: str, otherwise: str) -> None:
    """Takes what a lock file stands for, until this process ends or calls `release`; makes missing folders.

    The system itself holds the lock (`flock`) and drops it when the process ends, killed or not. It reaches over
    machines on NFS and other shared file systems; where the file system knows no locks, a warning says so. A file that
    is left over locks nothing. A second call in the same process changes nothing.

    Args:
        lock_file: The file, which need not exist.
        what: What it stands for, for messages.
        holder: What another process that has it is, such as `run`.
        otherwise: What to do instead of waiting for it.

    Raises:
        BlockingIOError: Another process has it; the message names its host and process id.
        OSError: The lock file cannot be written.
    """
    path = Path(lock_file).absolute()
    if fcntl is None or path in _held:
        return
    folder, descriptor = path.parent, None
    while descriptor is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            reason = f"{folder} is not a folder" if folder.exists() and not folder.is_dir() else error.strerror
            raise OSError(error.errno, f"{what} cannot be written: {reason}") from None
        descriptor = _locked(descriptor, path, what, holder, otherwise)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}).encode())
    _held[path] = descriptor


def release(lock_file: str | Path) -> None:
    """Gives back what `hold` took, and takes the lock file away."""
    path = Path(lock_file).absolute()
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        # While the lock is held, so that nobody else has locked the file that goes.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _locked(descriptor: int, path: Path, what: str, holder: str, otherwise: str) -> int | None:
    """The locked descriptor; None if the file went away meanwhile, as the process before gave it back."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        its_name = _holder(descriptor)
        os.close(descriptor)
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            f"{what} is in use by another {holder}{its_name}. Wait for it, stop it, or {otherwise}",
        ) from None
    except OSError as error:
        logger.warning(
            "%s is on a file system without locks (%s): take care that no second %s writes there.",
            what,
            error.strerror,
            holder,
        )
        return descriptor
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    os.close(descriptor)
    return None


def _holder(descriptor: int) -> str:
    for _ in range(5):
        try:
            told = json.loads(os.pread(descriptor, 1000, 0))
            return f": process {int(told['pid'])} on host {told['host']}, since {told['since']}"
        except (ValueError, KeyError, TypeError):
            # It has the lock, and has not said yet who it is.
            time.sleep(0.1)
    return ""


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def _forget_in_child() -> None:
    """A forked worker that outlives the run must not keep its lock."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


def _unlock_all() -> None:
    for path in list(_held):
        release(path)


atexit.register(_unlock_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
