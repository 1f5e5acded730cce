"""What is logged of a batch, and counted over the ranks: tokens, rewards, pairs, prompts that are learnt from."""

import torch
from torch import Tensor

from pangu_trl.answers.summary import win_share

from .attributes import COLUMN as ATTRIBUTE_COLUMN
from .losses import has_pair, ordered_pairs


def batch_sums(rewards: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Six sums that ranks add up: tokens; rewards, answers; pairs that are in the right order, gaps of pairs, pairs.

    Args:
        rewards: Of every answer, (B, K).
        batch: Of a collator of rankings.
    """
    real = rewards[batch["answer_mask"]]
    pairs = ordered_pairs(batch["scores"], batch["answer_mask"])
    gaps = (rewards.unsqueeze(2) - rewards.unsqueeze(1))[pairs]
    return torch.stack(
        [
            batch["attention_mask"].sum().float(),
            real.sum(),
            torch.tensor(float(real.numel()), device=real.device),
            win_share(gaps).sum(),
            gaps.sum(),
            torch.tensor(float(gaps.numel()), device=real.device),
        ]
    )


def weight_of_batch(batch: dict[str, Tensor]) -> Tensor:
    """The prompts of a batch that are learnt from, counted by their weights where the data has such a column.

    Those with an ordered pair; with attributes, those with a value.
    """
    if ATTRIBUTE_COLUMN in batch:
        known = ~batch[ATTRIBUTE_COLUMN].isnan() & batch["answer_mask"].unsqueeze(1)
        counts = known.flatten(1).any(dim=1)
    else:
        counts = has_pair(batch["scores"], batch["answer_mask"])
    return (batch["weight"] * counts).sum() if "weight" in batch else counts.sum()
