"""Runs that end before their learning rate has risen: with few records a recipe's warm-up is longer than the run."""

import logging
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .counts import counted

logger = logging.getLogger(__name__)


class CheckLearningRates(TrainerCallback):
    """Looks, before the first step, at which share of the learning rate the schedule has in the steps of the run.

    Schedules that depend on more than the step, such as `reduce_lr_on_plateau`, are left alone.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """Raises where nothing would learn, and warns where the warm-up does not end.

        Raises:
            ValueError: The schedule is 0 in every step.
        """
        schedules, steps = getattr(lr_scheduler, "lr_lambdas", None), range(state.global_step, state.max_steps)
        if not schedules or not steps:
            return
        warmup = args.get_warmup_steps(state.max_steps)
        cures = "set warmup_steps to 0, or train for longer: more records, a larger num_train_epochs, smaller batches"
        said = f"This run has {counted(state.max_steps, 'optimiser step')}, and warmup_steps is {warmup}"
        if not any(schedule(step) for schedule in schedules for step in steps):
            raise ValueError(f"{said}: its learning rate is 0 all the time, so that it would learn nothing; {cures}.")
        if warmup >= state.max_steps and state.is_world_process_zero:
            most = max(schedule(step) for schedule in schedules for step in steps)
            # The schedule `constant` has no warm-up, whatever warmup_steps says.
            if most >= 1:
                return
            logger.warning("%s: its learning rate gets to %.0f %% of what was asked; %s.", said, 100 * most, cures)


def check_learning_rates(trainer: Trainer) -> None:
    """Has a trainer look at its learning rates; a second call changes nothing."""
    if not any(isinstance(callback, CheckLearningRates) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(CheckLearningRates())
