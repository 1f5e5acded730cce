"""Orders: of the prompts over rollouts, of a rollout's answers over mini-batches, of the texts mixed in."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from pangu_trl.data.order import epoch_generator

from .config import PPOConfig

T = TypeVar("T")


class RolloutSampler(Sampler[int]):
    """Prompts in the order in which rollouts use them: shuffled by (seed, epoch), each chunk repeated.

    Args:
        num_prompts: Size of the dataset.
        chunk_size: Prompts of one rollout over all ranks. What remains at the end of an epoch waits for another one.
        repeats: Mini-batches that are learnt from one rollout; the loop asks the loader for a batch at each.
        seed: Seed of the order.
        current_epoch: Tells the epoch when a pass over the data starts. Asked rather than set, since `set_epoch` does
            not reach a sampler below the samplers that accelerate puts around it on several ranks and on resume.
    """

    def __init__(
        self, num_prompts: int, chunk_size: int, repeats: int, seed: int, current_epoch: Callable[[], int]
    ) -> None:
        self.num_prompts, self.chunk_size, self.repeats, self.seed = num_prompts, chunk_size, repeats, seed
        self.current_epoch = current_epoch

    @classmethod
    def of_run(cls, args: PPOConfig, num_prompts: int, current_step: Callable[[], int]) -> "RolloutSampler":
        """The order of a run, which tells the epoch by its optimiser steps so far."""
        chunk_size, repeats = args.prompts_per_rollout * args.world_size, args.mini_batches_per_rollout
        steps_per_epoch = num_prompts // chunk_size * repeats // args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        return cls(num_prompts, chunk_size, repeats, seed, lambda: current_step() // steps_per_epoch)

    def __iter__(self) -> Iterator[int]:
        generator = epoch_generator(self.seed, self.current_epoch())
        order = torch.randperm(self.num_prompts, generator=generator).tolist()
        for start in range(0, self.num_prompts - self.chunk_size + 1, self.chunk_size):
            for _ in range(self.repeats):
                yield from order[start : start + self.chunk_size]

    def __len__(self) -> int:
        return self.num_prompts // self.chunk_size * self.chunk_size * self.repeats


def repeat_rollouts(rows: Iterator[T], chunk_size: int, repeats: int) -> Iterator[T]:
    """The prompts of a stream in the order in which rollouts use them: each chunk repeated, as by `RolloutSampler`.

    Args:
        rows: Prompts without end.
        chunk_size: Prompts of one rollout over all ranks.
        repeats: Mini-batches that are learnt from one rollout.
    """
    while chunk := list(islice(rows, chunk_size)):
        for _ in range(repeats):
            yield from chunk


def batches_by_length(rows: Tensor, lengths: Tensor, batch_size: int, num_batches: int) -> list[Tensor]:
    """Deals rows to batches so that rows of like length share one.

    Only within each `num_batches` batches: those of one optimiser step, whose gradient is the same however they are
    dealt, since it is a mean over the tokens of all.

    Args:
        rows: Row numbers in their order, (N,).
        lengths: Length of every row, on the CPU.
        batch_size: Rows of a batch.
        num_batches: Batches that exchange rows.
    """
    batches = []
    for group in rows.split(batch_size * num_batches):
        longest_first = lengths[group].argsort(descending=True, stable=True)
        batches += group[longest_first].split(batch_size)
    return batches


def mini_batch_rows(micro_step: int, lengths: Tensor, args: PPOConfig) -> Tensor:
    """Rows of a rollout that make a mini-batch: in order in the first pass, shuffled anew in each later one.

    Args:
        micro_step: Mini-batches learnt since the start of the run.
        lengths: Length of every row of the rollout, on the CPU.
        args: Options.

    Returns:
        Row numbers, (per_device_train_batch_size,).
    """
    num_batches = args.num_rollout_batches
    current_pass, index = divmod(micro_step % args.mini_batches_per_rollout, num_batches)
    rows = torch.arange(len(lengths))
    if current_pass > 0:
        generator = epoch_generator(args.seed, micro_step - index)
        rows = rows[torch.randperm(len(rows), generator=generator)]
    return batches_by_length(rows, lengths, args.per_device_train_batch_size, args.gradient_accumulation_steps)[index]


def text_places(micro_step: int, batch_size: int, rank: int, world_size: int) -> range:
    """Which of the texts that a run mixes in, counted from its start, a rank learns from in a mini-batch.

    Depends on the step alone, so that a resumed run goes on with the texts it would have met.

    Args:
        micro_step: Mini-batches learnt since the start of the run.
        batch_size: Texts of a mini-batch on each rank.
        rank: Number of this process.
        world_size: Number of processes.
    """
    first = (micro_step * world_size + rank) * batch_size
    return range(first, first + batch_size)


def text_rows(places: range, num_texts: int, seed: int) -> list[int]:
    """Rows of a dataset that stand at these places: every text once, in a shuffled order, before any again.

    Args:
        places: Of `text_places`.
        num_texts: Size of the dataset.
        seed: Seed of the orders.
    """
    orders: dict[int, list[int]] = {}
    rows = []
    for place in places:
        epoch, index = divmod(place, num_texts)
        if epoch not in orders:
            generator = epoch_generator(seed, epoch)
            orders[epoch] = torch.randperm(num_texts, generator=generator).tolist()
        rows.append(orders[epoch][index])
    return rows
