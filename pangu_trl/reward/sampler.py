"""Order of the training data: shuffled, with similar lengths in one batch."""

from collections.abc import Callable, Iterator, Sequence

import torch
from datasets import Dataset
from torch.utils.data import Sampler

from pangu_trl.data.order import epoch_generator

# Batches whose examples are sorted among themselves: enough for little padding, few enough for batches to differ.
BATCHES_SORTED_TOGETHER = 50


class LengthBucketSampler(Sampler[int]):
    """Shuffles by (seed, epoch), sorts stretches of the order by length, cuts them into batches and shuffles those.

    transformers' own sampler by length draws from the global random state, so that a resumed run would meet another
    order than the interrupted one.

    Args:
        lengths: Length of every example.
        batch_size: Examples that are processed together, over all ranks.
        seed: Seed of the order.
        current_epoch: Tells the epoch when a pass over the data starts.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, current_epoch: Callable[[], int]) -> None:
        self.lengths, self.batch_size, self.seed = list(lengths), batch_size, seed
        self.current_epoch = current_epoch

    def __iter__(self) -> Iterator[int]:
        generator = epoch_generator(self.seed, self.current_epoch())
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        # The last batch may not be full. It stays the last, or all later ones would be cut differently.
        num_full = len(order) - len(order) % self.batch_size
        stretch = self.batch_size * BATCHES_SORTED_TOGETHER
        for start in range(0, num_full, stretch):
            by_length = sorted(order[start : min(start + stretch, num_full)], key=self.lengths.__getitem__)
            for batch in torch.randperm(len(by_length) // self.batch_size, generator=generator).tolist():
                yield from by_length[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield from order[num_full:]

    def __len__(self) -> int:
        return len(self.lengths)


def ranking_lengths(dataset: Dataset) -> list[int]:
    """Tokens of each prompt with its longest answer, of tokenised rankings."""
    return [
        len(prompt) + max(map(len, responses))
        for prompt, responses in zip(dataset["prompt_input_ids"], dataset["response_input_ids"], strict=True)
    ]
