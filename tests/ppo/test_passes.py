"""Where a run stands in its passes over a rollout, and what it divides its losses by."""

import pytest
import torch

from pangu_trl import PPOConfig
from pangu_trl.ppo.passes import PassesOverRollout
from pangu_trl.ppo.rollout import Rollout


class OneOfTwoRanks:
    """An accelerator beside which another rank adds a number of its own to every sum."""

    device = torch.device("cpu")
    num_processes = 2

    def __init__(self, others: int) -> None:
        self.others = others

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return tensor + self.others


@pytest.fixture
def passes(tmp_path) -> PassesOverRollout:
    """Of a rank that holds 3 + 1 + 2 + 4 answer tokens, in four batches of which two make a step; the other has 7."""
    args = PPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=1,
        num_rollout_batches=4,
        num_ppo_epochs=1,
        gradient_accumulation_steps=2,
    )
    passes = PassesOverRollout(args, OneOfTwoRanks(7))
    answers = [[30, 31, 32], [30], [30, 31], [30, 31, 32, 33]]
    passes.start(Rollout.from_answers([[20]] * 4, answers, [9], pad_token_id=6, device="cpu"))
    return passes


def test_losses_are_divided_by_the_answer_tokens_of_all_mini_batches_and_ranks_of_the_step(passes):
    counts = []
    for _ in range(4):
        counts.append(int(passes.num_tokens()))
        passes.advance()
    # Not twice those of this rank, which would be 8 and 12.
    assert counts == [3 + 1 + 7, 3 + 1 + 7, 2 + 4 + 7, 2 + 4 + 7]
