"""Stopping a run from outside: it finishes its step, saves a checkpoint and ends."""

import functools
import logging
import signal
import threading
from typing import Any

import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class SaveOnSigterm(TrainerCallback):
    """On SIGTERM finishes the optimiser step, saves a checkpoint and ends training as if it had been the last step.

    All ranks agree on the step, since the signal reaches them at different times. Runs that save no checkpoints keep
    the usual effect of the signal.

    Args:
        accelerator: Asks the other ranks.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._received = False
        self._previous_handler: Any = None

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Takes over the signal; only a main thread can."""
        self._received = False
        if args.save_strategy != "no" and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self._received = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Saves and stops if any rank has received the signal."""
        if args.save_strategy == "no":
            return
        received = torch.tensor(float(self._received), device=self.accelerator.device)
        if self.accelerator.reduce(received, reduction="sum").item() > 0:
            logger.warning("SIGTERM: saving a checkpoint at step %d and stopping.", state.global_step)
            control.should_save = control.should_training_stop = True

    def give_back(self) -> None:
        """Gives the signal back; not an event of the Trainer, which tells nothing of training that fails."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None


def save_on_sigterm(trainer: Trainer) -> None:
    """Has a trainer save a checkpoint and stop on SIGTERM; a second call changes nothing.

    With `enable_jit_checkpoint` transformers has taken the signal already.
    """
    if trainer.args.enable_jit_checkpoint or "train" in vars(trainer):
        return
    callback = SaveOnSigterm(trainer.accelerator)
    trainer.add_callback(callback)
    train = trainer.train

    @functools.wraps(train)
    def train_and_give_back(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        finally:
            callback.give_back()

    trainer.train = train_and_give_back
