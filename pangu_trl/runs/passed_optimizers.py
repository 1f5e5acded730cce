"""Optimisers that a user made and handed to a trainer: whether they are of the weights that the trainer learns."""

from transformers import Trainer


def check_passed_optimizers(trainer: Trainer) -> None:
    """Refuses an optimiser that leaves out weights that learn, and a schedule of another optimiser.

    An adapter, a critic and heads are often made within a trainer, after the optimiser; they would stay as they are
    without a word. Call it when the trainer is built.

    Raises:
        ValueError: The message names the first weight that is left out.
    """
    optimizer, scheduler, name = trainer.optimizer, trainer.lr_scheduler, type(trainer).__name__
    instead = "Leave `optimizers` out; optim, optimizer_cls_and_kwargs and the options of the learning rate choose one."
    if optimizer is not None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        learning = [(key, p) for key, p in trainer.model.named_parameters() if p.requires_grad]
        left_out = [key for key, parameter in learning if id(parameter) not in held]
        if left_out:
            raise ValueError(
                f"{name}: the optimiser in `optimizers` does not hold {len(left_out)} of the {len(learning)} tensors "
                f"that are to learn, the first is {left_out[0]}; they would stay as they are. {instead}"
            )
    if scheduler is not None and getattr(scheduler, "optimizer", None) is not optimizer:
        raise ValueError(
            f"{name}: the schedule in `optimizers` belongs to another optimiser than the one that learns, and would "
            f"change nothing. {instead}"
        )
