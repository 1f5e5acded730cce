"""Padding of tokenised records into batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class RankingCollator:
    """Stacks tokenised rankings into (B, K, T) tensors, padded on the right up to the largest K and T of the batch.

    Args:
        pad_token_id: Fills the unused token places.
        pad_to_multiple_of: Rounds T up, for hardware that likes it.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Builds one batch.

        Args:
            examples: Records with `prompt_input_ids` (list of int), `response_input_ids` (list of lists of int) and
                `scores` (list of float, higher is better).

        Returns:
            `input_ids` and `attention_mask` (B, K, T), `scores` (B, K) and `answer_mask` (B, K), True for real answers.
        """
        num_answers = max(len(example["response_input_ids"]) for example in examples)
        length = max(
            len(example["prompt_input_ids"]) + len(response)
            for example in examples
            for response in example["response_input_ids"]
        )
        if self.pad_to_multiple_of is not None:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of

        shape = (len(examples), num_answers, length)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        scores = torch.zeros(shape[:2], dtype=torch.float32)
        answer_mask = torch.zeros(shape[:2], dtype=torch.bool)
        for row, example in enumerate(examples):
            for answer, (response, score) in enumerate(
                zip(example["response_input_ids"], example["scores"], strict=True)
            ):
                tokens = example["prompt_input_ids"] + response
                input_ids[row, answer, : len(tokens)] = torch.tensor(tokens)
                attention_mask[row, answer, : len(tokens)] = 1
                scores[row, answer] = score
                answer_mask[row, answer] = True
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "scores": scores,
            "answer_mask": answer_mask,
        }


def pad_sequences(sequences: list[list[int]], pad_token_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Pads token lists on one side.

    Args:
        sequences: N token lists, none empty.
        pad_token_id: Fills the unused places.
        side: "left" (prompts, which generation continues) or "right".

    Returns:
        `input_ids` (N, T) and `attention_mask` (N, T), both int64.
    """
    length = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(sequences), length), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        place = slice(length - len(sequence), length) if side == "left" else slice(0, len(sequence))
        input_ids[row, place] = torch.tensor(sequence)
        attention_mask[row, place] = 1
    return input_ids, attention_mask
