"""Evaluation on every example: `dataloader_drop_last` is about training."""

import functools
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer


def evaluate_on_all(trainer: Trainer) -> None:
    """Has a trainer evaluate and predict with the last batch too, however small; a second call changes nothing.

    The Trainer leaves it out with `dataloader_drop_last`, and with it whole sets that are smaller than a batch of all
    ranks.

    Args:
        trainer: Any trainer.
    """
    for name in ("get_eval_dataloader", "get_test_dataloader"):
        if name not in vars(trainer):
            setattr(trainer, name, _with_last_batch(trainer, getattr(trainer, name)))


def _with_last_batch(trainer: Trainer, get_dataloader: Callable[..., DataLoader]) -> Callable[..., DataLoader]:
    @functools.wraps(get_dataloader)
    def get_whole(*args: Any, **kwargs: Any) -> DataLoader:
        drops_last, trainer.args.dataloader_drop_last = trainer.args.dataloader_drop_last, False
        try:
            return get_dataloader(*args, **kwargs)
        finally:
            trainer.args.dataloader_drop_last = drops_last

    return get_whole
