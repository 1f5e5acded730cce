"""A reward head with an output for each attribute of an answer, and the one reward that it makes of them.

The configuration of such a model names the attributes and their weights. Its reward is the weighted sum of the outputs
of a linear head, so that a linear head with one output, the weighted sum of the rows, gives the same reward: whoever
scores answers gets that, and never meets the attributes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pangu_trl.data.records import is_finite_number

from .sharding import is_sharded

NAMES, WEIGHTS = "reward_attributes", "reward_attribute_weights"


def attribute_weights(config: PretrainedConfig, name: str) -> dict[str, float] | None:
    """The attributes that a model's configuration names, with their weights; None of an ordinary one.

    Args:
        config: The model's.
        name: What to call the model in an error.

    Raises:
        ValueError: Names, weights and outputs do not fit together, so that its reward cannot be read.
    """
    names, weights = getattr(config, NAMES, None), getattr(config, WEIGHTS, None)
    if names is None and weights is None:
        return None
    are_lists = isinstance(names, list) and isinstance(weights, list)
    if not are_lists or not len(names) == len(weights) == config.num_labels or not all(map(is_finite_number, weights)):
        raise ValueError(
            f"{name}: its config.json must name an attribute and a weight for each of the {config.num_labels} outputs "
            f"of its head; got {NAMES} {names!r} and {WEIGHTS} {weights!r}. Give the folder that reward training wrote."
        )
    return dict(zip(names, map(float, weights), strict=True))


def check_attribute_head(name: str, model: Any, num_attributes: int, peft_config: Any = None) -> None:
    """Refuses a model whose head cannot learn so many attributes, or whose attributes could not be read again.

    Raises:
        ValueError: The message says what to do.
    """
    if not isinstance(model, PreTrainedModel) or peft_config is not None:
        raise ValueError(
            f"{name} must be a loaded transformers model without an adapter, whose folder has no place for weights of "
            f"attributes; got {type(model).__name__}{'' if peft_config is None else ' and a peft_config'}."
        )
    if model.config.num_labels != num_attributes:
        raise ValueError(
            f"{name} has num_labels {model.config.num_labels}, and there are {num_attributes} attributes. Load it with "
            f"num_labels={num_attributes}."
        )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ValueError(
            f"{name} is a {type(model).__name__}, whose head is no linear layer called score, so that its attributes "
            "cannot be summed up to a reward. Take another model, or learn without attributes."
        )


@contextmanager
def shown_as_one_output(model: PreTrainedModel) -> Iterator[None]:
    """Has a model's configuration speak of one output within the block; the head stays as it is."""
    names = dict(model.config.id2label)
    model.config.num_labels = 1
    try:
        yield
    finally:
        model.config.id2label = names


def describe_attributes(config: PretrainedConfig, names: Sequence[str], weights: Sequence[float]) -> None:
    """Writes attributes and weights into a model's configuration, where `attribute_weights` reads them."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    setattr(config, NAMES, list(names))
    setattr(config, WEIGHTS, [float(weight) for weight in weights])


def sum_up_attributes(model: PreTrainedModel, name: str) -> None:
    """Gives a model with attributes one output in their place, the reward; leaves any other model alone.

    Raises:
        ValueError: Its reward cannot be read.
    """
    weights = attribute_weights(model.config, name)
    if weights is None:
        return
    check_attribute_head(name, model, len(weights))
    if is_sharded(model):
        raise ValueError(
            f"{name}: its {len(weights)} attributes cannot be summed up while its weights are sharded (ZeRO-3). "
            "Load it without by pangu_trl.models.reward_model.load_reward_model, save it, and give that folder."
        )
    head = model.score
    factors = torch.tensor(list(weights.values()), dtype=torch.float32, device=head.weight.device)
    # Not copied from the head: an adapter or quantisation may have made it something else than it looks.
    summed = nn.Linear(head.in_features, 1, bias=head.bias is not None, device=factors.device, dtype=head.weight.dtype)
    with torch.no_grad():
        summed.weight.copy_((factors @ head.weight.float()).unsqueeze(0))
        if head.bias is not None:
            summed.bias.copy_((factors @ head.bias.float()).unsqueeze(0))
    model.score, model.num_labels = summed.train(head.training), 1
    model.config.num_labels = 1
    delattr(model.config, NAMES)
    delattr(model.config, WEIGHTS)
