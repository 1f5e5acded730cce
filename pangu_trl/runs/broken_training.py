"""Stopping a run whose numbers have broken: transformers goes on, logs 0 for a loss that is NaN, and saves."""

import functools
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# float16 finds its loss scale by steps that overflow and are left out; no run needs as many in a row.
MOST_OVERFLOWS = 30


class StopOnBrokenTraining(TrainerCallback):
    """Stops before the update when the norm of the gradients is no finite number, as it is where the loss is none.

    All ranks see the same norm, so all stop. DeepSpeed has made the update by then; nothing is saved of it. With a loss
    scaler (float16) single steps may overflow, and many in a row may not.

    Args:
        trainer: Its accelerator computes the norm at every optimiser step.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._overflows = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Watches the accelerator of this training; with auto_find_batch_size each attempt has its own."""
        self._overflows = 0
        accelerator = self.trainer.accelerator
        if "clip_grad_norm_" in vars(accelerator):
            return
        clip = accelerator.clip_grad_norm_

        @functools.wraps(clip)
        def clip_and_check(*arguments: Any, **options: Any) -> Any:
            norm = clip(*arguments, **options)
            self._check(norm)
            return norm

        accelerator.clip_grad_norm_ = clip_and_check

    def _check(self, norm: Any) -> None:
        # DeepSpeed knows none before its first step.
        if norm is None or torch.isfinite(torch.as_tensor(norm)).item():
            self._overflows = 0
            return
        self._overflows += 1
        if self.trainer.accelerator.mixed_precision == "fp16" and self._overflows < MOST_OVERFLOWS:
            return
        raise ValueError(
            f"{type(self.trainer).__name__}: the norm of the gradients is {float(norm)} at step "
            f"{self.trainer.state.global_step + 1}, so training is broken and has stopped; nothing was saved of this "
            "step. Check the weights that it started from, lower the learning rate, and use bf16 or float32 in the "
            "place of fp16."
        )


def stop_on_broken_training(trainer: Trainer) -> None:
    """Has a trainer stop when its gradients are no finite numbers; a second call changes nothing."""
    if not any(isinstance(callback, StopOnBrokenTraining) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(StopOnBrokenTraining(trainer))
