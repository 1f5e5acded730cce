"""Says which rank waits, and where, when a run makes no progress."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout, _world
from transformers import PreTrainedModel, Trainer, TrainerCallback

logger = logging.getLogger(__name__)

# What every Trainer does, by the methods that do it; a stage enters phases of its own within.
PHASES = {
    "learning": ("training_step",),
    "saving": ("_save_checkpoint", "save_model"),
    "evaluation": ("evaluate",),
}
# The phases that the main thread has entered, the innermost last, and the optimiser step that it is in.
_entered: list[str] = []
_step = 0
# Half of the default of ddp_timeout.
SECONDS_AT_START = 900.0
_start_guard: "HangGuard | None" = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Tells the guard what the body does; also a decorator. An error in it says in its traceback where it happened."""
    try:
        _entered.append(name)
        yield
    except Exception as error:
        if not any("in phase" in note for note in getattr(error, "__notes__", ())):
            rank, num_ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
            error.add_note(f"rank {rank} of {num_ranks} was in phase {name} of step {_step}")
        raise
    finally:
        _entered.pop()


def current_phase() -> str:
    """The innermost phase that was entered."""
    return _entered[-1] if _entered else "between steps"


class HangGuard(TrainerCallback):
    """Reports when no model has computed anything and no step has ended for a time; the run itself goes on.

    A rank that waits for another one looks from outside like one that works. Every rank reports for itself, so the log
    shows who waits in a collective, and who keeps the others waiting with something else.

    Args:
        model: What trains; the calls of the transformers models in it count as progress. None before there is one.
        seconds: Time without progress after which it reports, and reports again.
        rank: Of this process.
        num_ranks: All processes.
    """

    def __init__(self, model: nn.Module | None, seconds: float, rank: int, num_ranks: int) -> None:
        self.seconds, self.rank, self.num_ranks = seconds, rank, num_ranks
        self._step = 0
        self._is_start = model is None
        self._is_closed = threading.Event()
        self._last_progress = time.monotonic()
        self._main_thread = threading.main_thread().ident
        self._hooks = [
            module.register_forward_pre_hook(lambda *_: self._note_progress())
            for module in (() if model is None else model.modules())
            if isinstance(module, PreTrainedModel)
        ]

    def on_train_begin(self, args: Any = None, *_: Any, **__: Any) -> None:
        """Starts to watch, also beyond the last step: saving the model can hang too."""
        close_start()
        if args is not None and args.use_cpu:
            limit_waiting(args.ddp_timeout)
        self._note_progress()
        threading.Thread(target=self.watch, name="hang guard", daemon=True).start()

    def close(self) -> None:
        """Ends the watch."""
        self._is_closed.set()
        for hook in self._hooks:
            hook.remove()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step begins."""
        global _step
        self._step = _step = state.global_step + 1
        self._note_progress()

    def on_event(self, *_: Any, **__: Any) -> None:
        """Something came to its end."""
        self._note_progress()

    on_substep_end = on_step_end = on_save = on_evaluate = on_prediction_step = on_train_end = on_event

    def _note_progress(self) -> None:
        self._last_progress = time.monotonic()

    def watch(self) -> None:
        """Checks again and again until it is closed."""
        while not self._is_closed.wait(min(self.seconds / 4, 10.0)):
            self.check()

    def check(self) -> None:
        """Reports if the last progress is too long ago, and waits as long again."""
        waited = time.monotonic() - self._last_progress
        if waited > self.seconds:
            logger.warning("%s", self.report(waited))
            self._note_progress()

    def report(self, waited: float) -> str:
        """What this rank has been doing for so many seconds."""
        place = place_of(sys._current_frames().get(self._main_thread))
        where = "the start" if self._is_start else f"phase {current_phase()} of step {self._step}"
        return (
            f"rank {self.rank} of {self.num_ranks}: no progress for {waited:.0f} s in {where}; it is in {place}. If "
            "other ranks report another phase or place, they are what this one waits for; a rank that reports nothing "
            "is dead or busy. (Reported after half of ddp_timeout.)"
        )


def watch_start() -> None:
    """Watches a process from its first line until training begins, for half of the default of `ddp_timeout`."""
    global _start_guard
    close_start()
    rank, num_ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    _start_guard = HangGuard(None, SECONDS_AT_START, rank, num_ranks)
    threading.Thread(target=_start_guard.watch, name="hang guard of the start", daemon=True).start()


def close_start() -> None:
    """Ends that watch."""
    if _start_guard is not None:
        _start_guard.close()


def watch_for_hangs(trainer: Trainer) -> None:
    """Has every rank of a run report after half of `ddp_timeout`, before communication gives up."""
    args = trainer.args
    trainer.add_callback(HangGuard(trainer.model, args.ddp_timeout / 2, args.process_index, args.world_size))
    for name, methods in PHASES.items():
        for method in methods:
            setattr(trainer, method, phase(name)(getattr(trainer, method)))


def limit_waiting(seconds: float) -> None:
    """Has every group of CPU processes give up after so many seconds; transformers hands the limit to GPUs alone."""
    if dist.is_available() and dist.is_initialized():
        for group in list(_world.pg_map):
            if dist.get_rank(group) >= 0:
                _set_pg_timeout(timedelta(seconds=seconds), group)


def place_of(frame: FrameType | None) -> str:
    """The function that a thread runs, with file and line."""
    if frame is None:
        return "no Python code"
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
