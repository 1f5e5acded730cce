"""Batches of rankings: each answer with its prompt, or each prompt once and packed."""

import pytest
import torch

from pangu_trl.data.collators import PackedRankingCollator, RankingCollator, pad_sequences

EXAMPLES = [
    {"prompt_input_ids": [1, 2], "response_input_ids": [[3], [4, 5, 6]], "scores": [0.5, 2.0]},
    {"prompt_input_ids": [7], "response_input_ids": [[8, 9], [10], [11]], "scores": [3.0, 1.0, 1.0]},
]
ANNOTATIONS = {
    "scores": [[0.5, 2.0, 0.0], [3.0, 1.0, 1.0]],
    "answer_mask": [[True, True, False], [True, True, True]],
    "prompt_lengths": [2, 1],
    "answer_lengths": [[1, 3, 0], [2, 1, 1]],
}


def test_rankings_are_stacked_and_padded_on_the_right_up_to_the_largest_k_and_length():
    batch = {name: tensor.tolist() for name, tensor in RankingCollator(pad_token_id=0)(EXAMPLES).items()}
    assert batch.items() >= ANNOTATIONS.items()
    assert batch["input_ids"] == [
        [[1, 2, 3, 0, 0], [1, 2, 4, 5, 6], [0, 0, 0, 0, 0]],
        [[7, 8, 9, 0, 0], [7, 10, 0, 0, 0], [7, 11, 0, 0, 0]],
    ]
    assert batch["attention_mask"] == [
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]],
        [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]],
    ]


def test_packed_rankings_hold_each_prompt_once_and_positions_go_on_from_it():
    batch = {name: tensor.tolist() for name, tensor in PackedRankingCollator(0, 100)(EXAMPLES).items()}
    assert batch.items() >= ANNOTATIONS.items()
    assert batch["row"] == [0, 0]
    assert batch["input_ids"] == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert batch["position_ids"] == [[0, 1, 2, 2, 3, 4, 0, 1, 2, 1, 1]]
    assert batch["attention_mask"] == [[1] * 11]


def test_a_row_that_is_full_makes_room_in_another_and_a_long_ranking_gets_its_own():
    long = {"prompt_input_ids": [1] * 9, "response_input_ids": [[2], [3]], "scores": [1.0, 0.0]}
    # 6, 5 and 11 tokens into rows of 10: the third ranking is longer than a row; the fourth fits behind the second.
    batch = PackedRankingCollator(0, 10)([*EXAMPLES, long, EXAMPLES[1]])
    assert batch["row"].tolist() == [0, 1, 2, 1]
    assert batch["input_ids"].shape == (3, 11)
    assert batch["attention_mask"].sum(dim=1).tolist() == [6, 10, 11]


@pytest.mark.parametrize("collator", [RankingCollator(0, 8), PackedRankingCollator(0, 100, 8)])
def test_the_width_is_rounded_up_to_a_multiple(collator):
    assert collator(EXAMPLES)["input_ids"].shape[-1] % 8 == 0


def test_a_ranking_needs_a_score_for_each_answer():
    with pytest.raises(ValueError, match="one score for each answer; got 1, 2"):
        RankingCollator(0)([EXAMPLES[0] | {"scores": [1.0]}])


@pytest.mark.parametrize("collator", [RankingCollator(0), PackedRankingCollator(0, 100)])
def test_an_answer_without_a_token_is_not_taken_for_padding(collator):
    with pytest.raises(ValueError, match=r"a token in each answer.* got \[1, 0\]"):
        collator([EXAMPLES[0] | {"response_input_ids": [[3], []]}])


def test_sequences_are_padded_on_the_side_asked_for():
    ids, mask = pad_sequences([[1, 2], [3]], pad_token_id=9, side="left")
    assert ids.tolist() == [[1, 2], [9, 3]] and mask.tolist() == [[1, 1], [0, 1]]
    ids, mask = pad_sequences([[1, 2], [3]], pad_token_id=9, side="right")
    assert ids.tolist() == [[1, 2], [3, 9]] and mask.tolist() == [[1, 1], [1, 0]]
    assert ids.dtype == mask.dtype == torch.long
