"""What happens at every optimiser step beside learning."""

from typing import Any

from transformers import TrainerCallback


class AverageAfterStep(TrainerCallback):
    """Moves the average of the policy's weights after every optimiser step that learnt something.

    Args:
        trainer: The PPOTrainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the average, or goes on with that of the checkpoint."""
        self.trainer.start_average()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Updates before a checkpoint of the same step is saved."""
        if self.trainer.average is not None and not self.trainer.step_was_skipped:
            self.trainer.average.update()
