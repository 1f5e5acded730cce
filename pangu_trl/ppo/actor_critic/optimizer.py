"""One optimiser, in which policy and critic have their own learning rates and schedule."""

import logging
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from ..config import PPOConfig
from .policy_value import PolicyAndValue

logger = logging.getLogger(__name__)


def parameter_groups(model: PolicyAndValue, args: PPOConfig, decayed: set[str]) -> list[dict[str, Any]]:
    """Groups of an optimiser that give policy and critic their own learning rates and weight decays.

    Args:
        model: The unwrapped module.
        args: Options.
        decayed: Names of the parameters that weight decay applies to.

    Returns:
        Up to four groups, each with `is_critic`.
    """
    critic_decay = args.weight_decay if args.critic_weight_decay is None else args.critic_weight_decay
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = []
    for is_critic, learning_rate, decay in (
        (False, args.learning_rate, args.weight_decay),
        (True, args.critic_learning_rate, critic_decay),
    ):
        for has_decay in (True, False):
            parameters = [
                parameter
                for name, parameter in trainable.items()
                if model.is_critic(name) == is_critic and (name in decayed) == has_decay
            ]
            if parameters:
                weight_decay = decay if has_decay else 0.0
                groups.append(
                    {"params": parameters, "lr": learning_rate, "weight_decay": weight_decay, "is_critic": is_critic}
                )
    return groups


def delay_policy(scheduler: Any, num_steps: int, num_training_steps: int) -> None:
    """Sets the learning rate of the policy's groups to 0 for the first steps; the schedule itself goes on.

    Args:
        scheduler: Of the optimiser with the groups of `parameter_groups`.
        num_steps: How many steps.
        num_training_steps: Those of the whole run; where they are no more, a warning says so.

    Raises:
        ValueError: The schedule is not a function of the step, or the optimiser does not tell policy from critic.
    """
    if any("is_critic" not in group for group in scheduler.optimizer.param_groups):
        raise ValueError(
            "PPOTrainer: critic_warmup_steps needs the trainer's own optimiser, whose groups tell policy from critic. "
            "Leave `optimizers` or critic_warmup_steps out."
        )
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            "PPOTrainer: critic_warmup_steps needs a schedule that depends on the step alone (constant, linear, "
            f"cosine, ...); got {type(scheduler).__name__}."
        )

    if num_steps >= num_training_steps:
        logger.warning(
            "PPOTrainer: critic_warmup_steps is %d, and this run has %d: only the critic learns, and the policy stays "
            "as it is. For a policy that learns lower critic_warmup_steps, or train for longer: more prompts, a larger "
            "num_train_epochs or max_steps.",
            num_steps,
            num_training_steps,
        )

    def delayed(schedule: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: 0.0 if step < num_steps else schedule(step)

    for index, group in enumerate(scheduler.optimizer.param_groups):
        if not group["is_critic"]:
            scheduler.lr_lambdas[index] = delayed(scheduler.lr_lambdas[index])
            group["lr"] = 0.0
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
