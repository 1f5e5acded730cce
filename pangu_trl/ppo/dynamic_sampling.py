"""Groups of answers that teach nothing, since their scores are all equal, are drawn anew (DAPO, arXiv:2503.14476).

DAPO fills the batch with other prompts. Here the same prompt is answered again, so that the order of the prompts, and
with it resuming, stays what it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .rollout import Rollout


def dull_groups(scores: Tensor, num_generations: int) -> Tensor:
    """Marks the groups (G,) of a rollout whose scores (N,) are all equal, so that a group mean gives no advantage."""
    grouped = scores.view(-1, num_generations)
    return grouped.amax(dim=1) == grouped.amin(dim=1)


def draw_dull_groups_anew(
    rollout: Rollout,
    examples: list[dict[str, Any]],
    draw: Callable[[list[dict[str, Any]]], Rollout],
    num_generations: int,
    max_rounds: int,
    max_over_ranks: Callable[[Tensor], int],
    pad_token_id: int,
) -> tuple[Rollout, int]:
    """Replaces dull groups by others to the same prompts, until there is none on any rank or the rounds are used up.

    Every rank draws as many groups as the one with most dull ones, for their forward passes must be as many; what a
    rank draws beyond its own is thrown away.

    Args:
        rollout: N answers with their scores.
        examples: The prompt records that were answered, one per answer.
        draw: Answers records, one answer each, and scores the answers.
        num_generations: Answers to each prompt.
        max_rounds: Most times that a group is drawn anew.
        max_over_ranks: The largest of a number over the ranks.
        pad_token_id: Fills rows.

    Returns:
        The rollout, and how many groups were drawn anew on this rank, each time counted.
    """
    num_redrawn = 0
    for _ in range(max_rounds):
        is_dull = dull_groups(rollout.scores, num_generations)
        num_drawn = max_over_ranks(is_dull.sum())
        if num_drawn == 0:
            break
        # The dull ones first, then as many others as there are places.
        groups = is_dull.float().argsort(descending=True, stable=True)[:num_drawn]
        rows = _rows_of(groups, num_generations)
        drawn = draw([examples[row] for row in rows.tolist()])
        is_better = is_dull[groups] & ~dull_groups(drawn.scores, num_generations)
        num_redrawn += int(is_dull.sum())
        places = _rows_of(is_better.nonzero().flatten(), num_generations)
        rollout = rollout.with_answers_of(drawn, rows[places], places, pad_token_id)
    return rollout, num_redrawn


def _rows_of(groups: Tensor, num_generations: int) -> Tensor:
    offsets = torch.arange(num_generations, device=groups.device)
    return (groups.unsqueeze(1) * num_generations + offsets).flatten()
