"""The average of several reward models' weights (WARM, arXiv:2401.12187): one model, steadier than its members."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pangu_trl.models.loading import load_merged
from pangu_trl.models.reward_model import load_reward_model

from .card import RewardCard, check_reward_card, read_reward_card


def average_reward_models(names: Sequence[str], output: str | Path) -> PreTrainedModel:
    """Averages the weights of trained reward models and saves model, tokenizer and card; adapters are merged first.

    The average is taken in float32. Models that were trained from one start can be averaged so; from different ones
    the average is worth nothing, which no check here can see: evaluate it.

    Args:
        names: Folders or Hub ids, two or more.
        output: A folder.

    Returns:
        The average, in the dtype of the first.

    Raises:
        ValueError: There are fewer than two, one cannot be loaded, or they differ in architecture, names or sizes of
            their weights, or tokenizer; the message names the difference.
    """
    if len(names) < 2:
        raise ValueError(f"an average needs two reward models or more; got {', '.join(names) or 'none'}")
    first, tokenizer = load_reward_model(names[0], load_merged)
    card = _card_of(names[0], tokenizer)
    weights = first.state_dict()
    totals = {name: tensor.float().clone() for name, tensor in weights.items() if tensor.is_floating_point()}
    for name in names[1:]:
        model, its_tokenizer = load_reward_model(name, load_merged)
        check_reward_card(card, its_tokenizer, name)
        _check_same_shape(names[0], weights, name, model.state_dict())
        for key, tensor in model.state_dict().items():
            if key in totals:
                totals[key] += tensor.float()
        card = replace(card, max_answers=max(card.max_answers, _card_of(name, its_tokenizer).max_answers))
    with torch.no_grad():
        for key, total in totals.items():
            weights[key].copy_(total / len(names))
    first.save_pretrained(output)
    tokenizer.save_pretrained(output)
    card.save(output)
    return first


def _card_of(name: str, tokenizer: object) -> RewardCard:
    """The card of a reward model without its scores, which the average does not share."""
    card = read_reward_card(name) or RewardCard.describe(tokenizer, loss_type="unknown", max_answers=0)
    # Attributes were summed up when their model was loaded.
    return replace(card, score_mean=None, score_std=None, scored_set=None, attributes=None)


def _check_same_shape(first: str, expected: dict[str, Tensor], name: str, found: dict[str, Tensor]) -> None:
    different = sorted(expected.keys() ^ found.keys())
    different += [key for key in expected if key in found and expected[key].shape != found[key].shape]
    if different:
        raise ValueError(
            f"{name}: its weights are not those of {first}: {len(different)} differ in name or size, the first is "
            f"{different[0]}. Average models of one architecture that were trained from one start."
        )
