"""Where a score is read."""

import torch

from pangu_trl.models.score_head import at_last_token


def test_the_last_token_is_the_last_that_the_mask_keeps_on_either_side_of_the_padding():
    states = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert at_last_token(states, torch.tensor([[0, 1, 1], [1, 1, 0]])).tolist() == [3.0, 5.0]
