"""The process of a recipe from its first line to its last: what it hangs on, what it prints, how it ends."""

import atexit
import ctypes
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from safetensors import SafetensorError

from .folders import STAGES
from .hang_guard import close_start, watch_start

logger = logging.getLogger(__name__)

# Of an option, a file, a model or a package that the user can mend; all else is shown with its traceback.
MENDABLE = (ValueError, OSError, ImportError, DatasetsError, TemplateError, SafetensorError)
DEBUG = "PANGU_TRL_DEBUG"
# All that `accelerate launch` sets for one process, and what torchrun sets for each.
LAUNCHED = (("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"), ("TORCHELASTIC_RUN_ID",))
LAUNCHERS = ("accelerate", "pangu-trl", "torchrun", "torch.distributed", "torch/distributed", "deepspeed")
# How Python is told to run the command line; an option of its own may stand before.
MODULE = ["-m", "pangu_trl"]
SECONDS_TO_STOP = "PANGU_TRL_SECONDS_TO_STOP"

# Loaded before a fork, in whose child nothing may be imported.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1

_command = ""


def run_recipe(main: Callable[[], None]) -> NoReturn:
    """Runs the `main` of a recipe as the whole of a process, and ends that.

    - When the launcher ends, so does the process: it is told to stop as by SIGTERM, and killed if that takes longer
      than the environment's PANGU_TRL_SECONDS_TO_STOP (30).
    - An error that the user can mend is one line, and exit status 2; PANGU_TRL_DEBUG=1 shows its traceback.
    - Of several ranks each ends without the teardown of the interpreter, in which threads of the communication may
      abort it after all is saved.
    """
    global _command
    _command = launch_command()
    end_with_launcher()
    watch_start()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and os.environ.get("RANK", "0") == "0":
        name_stale_locks()
    has_other_ranks = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        code = _run(main)
    except Exception:
        # Communication that failed, as when another rank has died.
        if not has_other_ranks:
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    close_start()
    sys.stdout.flush()
    sys.stderr.flush()
    if has_other_ranks:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except KeyboardInterrupt:
        print(f"{_program()}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except MENDABLE as error:
        if os.environ.get(DEBUG):
            raise
        print(f"{_program()}: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def one_line(error: BaseException) -> str:
    """What an error says, in one line; some libraries explain themselves over several."""
    text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
    return " ".join(text.split())


def _program() -> str:
    rank = int(os.environ.get("RANK", "0"))
    return Path(sys.argv[0]).name + (f", rank {rank}" if rank else "")


def stage_of_process() -> str:
    """The stage whose recipe this process runs; empty for any other program."""
    stage = Path(sys.argv[0]).stem
    return stage if stage in STAGES else ""


def recipe_command() -> str:
    """What started this run, as `run_recipe` found it."""
    return _command or launch_command()


def launch_command() -> str:
    """The command line of the launcher, where there is one and it can be read, else of this process."""
    words = _words_of(os.getppid()) if is_launched() else []
    is_module = MODULE in (words[1:3], words[2:4])
    if not is_module and not any(name in word for word in words[:4] for name in LAUNCHERS):
        words = [Path(sys.executable).name, *sys.argv]
    if len(words) > 1 and Path(words[1]).name == "pangu-trl":
        # As it was typed, without the interpreter.
        words = ["pangu-trl", *words[2:]]
    elif is_module:
        words = [Path(words[0]).name, *words[1:]]
    kept = []
    skips = False
    for word in words:
        # What is said anew.
        if skips or word.split("=")[0] == "--resume_from_checkpoint":
            skips = not skips and "=" not in word
            continue
        kept.append(word)
    return shlex.join(kept)


def _words_of(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text("utf-8", "replace").rstrip("\0").split("\0")
    except OSError:
        return []


def is_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this process."""
    return any(all(name in os.environ for name in names) for names in LAUNCHED)


def end_with_launcher(poll: float = 0.5) -> None:
    """Has a launched process end when its launcher does, however that ends.

    `accelerate launch` of one process passes no signal on, and a killed torchrun cannot.
    """
    if not is_launched():
        return
    launcher = os.getppid()
    if launcher == 1 and not any(name in word for word in _words_of(1) for name in LAUNCHERS):
        raise SystemExit("The launcher has ended before its process began.")
    threading.Thread(target=_watch_launcher, args=(launcher, poll), name="launcher watch", daemon=True).start()


def end_with_parent() -> None:
    """Has a new process get SIGTERM when its parent ends, where the system can (Linux); for `preexec_fn`.

    For programs of others, which do not watch their parent as a recipe does.
    """
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch_launcher(launcher: int, poll: float) -> None:
    while os.getppid() == launcher:
        time.sleep(poll)
    seconds = float(os.environ.get(SECONDS_TO_STOP, "30"))
    print(f"{_program()}: the launcher has ended; saving and stopping within {seconds:g} s.", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def name_stale_locks() -> None:
    """Warns of locks in PyTorch's cache of built extensions, on which DeepSpeed waits for ever if nobody builds."""
    # Imports setuptools, which other runs have no use for.
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in sorted(root.glob("**/lock")):
        with suppress(OSError):
            age = time.time() - max(path.stat().st_mtime for path in lock.parent.iterdir())
            logger.warning(
                "%s: another process builds an extension of DeepSpeed, or was killed while it did (last change %d s "
                "ago). This run waits as long as the file is there: if nothing is being built, delete it.",
                lock,
                age,
            )
