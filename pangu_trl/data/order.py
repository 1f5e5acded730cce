"""Shuffled orders that a resumed run meets again."""

import torch

# Seeds of neighbouring runs must not share orders: run 1's second epoch would be run 2's first.
SEED_STRIDE = 1_000_003


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Random numbers of one pass over the data (or of anything else that is counted), from seed and number alone."""
    return torch.Generator().manual_seed(seed * SEED_STRIDE + epoch)
