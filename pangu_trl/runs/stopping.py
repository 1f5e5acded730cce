"""Stopping a run from outside: it finishes its step, saves a checkpoint, says how to go on, and ends."""

import functools
import logging
import signal
import threading
import time
from typing import Any

import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoints import checkpoint_dir

logger = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
# One Ctrl-C can come twice: from the terminal, and again from the launcher that it reaches too.
SECONDS_OF_ONE_CTRL_C = 2.0


class StopWhenTold(TrainerCallback):
    """On SIGTERM, SIGINT or SIGHUP finishes the optimiser step, saves a checkpoint and ends training.

    All ranks agree on the step, since the signal reaches them at different times. A second Ctrl-C ends the process at
    once. A signal that was ignored when the process started (`nohup`) stays ignored, and runs that save no checkpoints
    keep the usual effect of all three.

    Args:
        accelerator: Asks the other ranks.

    Attributes:
        ended_by: The signal that has ended the last training on any rank, None if it came to its own end.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.ended_by: signal.Signals | None = None
        self._received = 0
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Takes over the signals; only a main thread can."""
        self._received, self.ended_by = 0, None
        if args.save_strategy != "no" and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, *_: Any) -> None:
        now = time.monotonic()
        is_again = number == signal.SIGINT and self._received == signal.SIGINT
        if is_again and now - self._received_at > SECONDS_OF_ONE_CTRL_C:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        if not self._received:
            self._received, self._received_at = number, now

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Saves and stops if any rank has received a signal."""
        if args.save_strategy == "no":
            return
        received = torch.tensor([float(self._received)], device=self.accelerator.device)
        number = int(self.accelerator.gather(received).max().item())
        if number:
            self.ended_by = signal.Signals(number)
            logger.warning("%s: saving a checkpoint at step %d and stopping.", self.ended_by.name, state.global_step)
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def give_back(self) -> None:
        """Gives the signals back; not an event of the Trainer, which tells nothing of training that fails."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def save_when_told_to_stop(trainer: Trainer) -> None:
    """Has a trainer save a checkpoint and stop when it is told to; a second call changes nothing.

    With `enable_jit_checkpoint` transformers has taken SIGTERM already.
    """
    if trainer.args.enable_jit_checkpoint or hasattr(trainer, "stopping"):
        return
    callback = trainer.stopping = StopWhenTold(trainer.accelerator)
    trainer.add_callback(callback)
    train = trainer.train

    @functools.wraps(train)
    def train_and_give_back(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        finally:
            callback.give_back()

    trainer.train = train_and_give_back


def end_if_told_to_stop(trainer: Trainer, command: str) -> None:
    """Ends the process of a run that was told to stop, with a line that says how it goes on.

    Args:
        trainer: After its training.
        command: What started the run.

    Raises:
        SystemExit: With 128 and the number of the signal, as shells count.
    """
    stopping = getattr(trainer, "stopping", None)
    if stopping is None or stopping.ended_by is None:
        return
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        folder = checkpoint_dir(trainer.args.output_dir, trainer.state.global_step)
        print(
            f"Stopped by {stopping.ended_by.name}; {folder} is saved. To go on: "
            f"{command} --resume_from_checkpoint true",
            flush=True,
        )
    raise SystemExit(128 + stopping.ended_by)
