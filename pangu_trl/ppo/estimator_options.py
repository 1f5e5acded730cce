"""What follows for other options from the advantage estimator, so that one word changes it."""

import logging
import math
from dataclasses import fields
from typing import Any

logger = logging.getLogger(__name__)

# What only a critic looks at.
OF_THE_CRITIC = (
    "critic_learning_rate",
    "critic_weight_decay",
    "critic_warmup_steps",
    "critic_warmup_lam",
    "lam",
    "critic_lam",
    "adaptive_lam_alpha",
    "cliprange_value",
    "vf_coef",
)
ESTIMATORS_OF_GROUPS = ("grpo", "rloo")
LARGEST_OPEN_GROUP = 8


def resolve_estimator(config: Any) -> None:
    """Fills in the size of a group, and puts options of a critic that there is not back to their defaults.

    Recipes set both networks up; who goes over to an estimator without a critic need not look for what to take out.
    """
    if config.num_generations is None:
        has_groups = config.advantage_estimator in ESTIMATORS_OF_GROUPS
        config.num_generations = math.gcd(LARGEST_OPEN_GROUP, config.rollout_batch_size) if has_groups else 1
    if config.has_critic:
        return
    defaults = {option.name: option.default for option in fields(config)}
    unneeded = [name for name in OF_THE_CRITIC if getattr(config, name) != defaults[name]]
    for name in unneeded:
        setattr(config, name, defaults[name])
    if unneeded:
        logger.warning(
            "advantage_estimator=%r has no critic; %s, which only a critic looks at, will not be used. Leaving %s out "
            "silences this.",
            config.advantage_estimator,
            ", ".join(unneeded),
            "it" if len(unneeded) == 1 else "them",
        )
