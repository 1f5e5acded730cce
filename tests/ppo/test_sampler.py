"""The order of prompts over rollouts, epochs, ranks and resumes."""

from types import SimpleNamespace

import torch
from accelerate.data_loader import DataLoaderShard, skip_first_batches
from accelerate.data_loader import prepare_data_loader as prepare
from torch.utils.data import DataLoader

from pangu_trl.ppo.sampler import RolloutSampler, batches_by_length, mini_batch_rows


def batches(loader: DataLoaderShard, epoch: int) -> list[list[int]]:
    loader.set_epoch(epoch)
    return [batch.tolist() for batch in loader]


def loader_of_rank(rank: int, epoch: int) -> DataLoaderShard:
    sampler = RolloutSampler(num_prompts=12, chunk_size=4, repeats=2, seed=3, current_epoch=lambda: epoch)
    loader = DataLoader(torch.arange(12), batch_size=2, sampler=sampler)
    return prepare(loader, num_processes=2, process_index=rank, put_on_device=False)


def test_a_loader_that_skips_what_was_learnt_keeps_the_order_of_its_epoch_on_every_rank():
    for rank in (0, 1):
        for epoch in (0, 1, 2):
            whole = batches(loader_of_rank(rank, epoch), epoch)
            resumed = batches(skip_first_batches(loader_of_rank(rank, epoch), 3), epoch)
            assert len(whole) == 6
            assert resumed == whole[3:]
    assert batches(loader_of_rank(0, 0), 0) != batches(loader_of_rank(0, 1), 1)


def test_ranks_answer_different_prompts_and_every_chunk_is_repeated():
    first, second = (batches(loader_of_rank(rank, 0), 0) for rank in (0, 1))
    assert first[0] == first[1] and second[0] == second[1]
    assert sorted(sum(first[::2] + second[::2], [])) == list(range(12))


def rows_of(num_steps: int, **options) -> list[list[int]]:
    args = SimpleNamespace(
        **dict(per_device_train_batch_size=2, num_rollout_batches=3, gradient_accumulation_steps=1, seed=0) | options
    )
    args.mini_batches_per_rollout = args.num_rollout_batches * 2
    lengths = torch.tensor([5, 9, 2, 7, 3, 8])
    return [mini_batch_rows(step, lengths, args).tolist() for step in range(num_steps)]


def test_every_pass_learns_each_answer_once_and_the_first_in_order():
    rows = [sorted(batch) for batch in rows_of(12)]
    assert rows[:3] == [[0, 1], [2, 3], [4, 5]] == rows[6:9]
    for start in range(0, 12, 3):
        assert sorted(sum(rows[start : start + 3], [])) == list(range(6))
    assert rows[3:6] != rows[:3] and rows[3:6] != rows[9:12]


def test_batches_of_one_optimiser_step_exchange_rows_by_length():
    # Lengths 5 9 2 7 3 8: longest first these are rows 1 5 3 0 4 2.
    assert rows_of(3, gradient_accumulation_steps=3) == [[1, 5], [3, 0], [4, 2]]
    lengths = torch.tensor([5, 9, 2, 7, 3, 8])
    # Two batches of one row exchange: the pairs (0, 1), (2, 3), (4, 5) stay apart.
    alone = batches_by_length(torch.arange(6), lengths, batch_size=1, num_batches=2)
    assert [batch.tolist() for batch in alone] == [[1], [0], [3], [2], [5], [4]]
