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
                `scores` (list of float, higher is better); where the data has them `margin`, `weight` (float) and
                `annotator_scores` (of each annotator one score for each response), `attribute_scores` (likewise of
                each attribute, None where there is none).

        Returns:
            `scores` (B, K); `answer_mask` (B, K), True for real answers; `prompt_lengths` (B,) and `answer_lengths`
            (B, K) in tokens, 0 where there is no answer; `input_ids` and `attention_mask` (B, K, T); if given, `margin`
            and `weight` (B,), `annotator_scores` and `attribute_scores` (B, A, K), NaN where there is none.
        """
        batch = _stack_annotations(examples)
        longest = int((batch["prompt_lengths"] + batch["answer_lengths"].amax(dim=1)).max())
        shape = (*batch["scores"].shape, _round_up(longest, self.pad_to_multiple_of))
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            for answer, response in enumerate(example["response_input_ids"]):
                tokens = example["prompt_input_ids"] + response
                input_ids[row, answer, : len(tokens)] = torch.tensor(tokens)
                attention_mask[row, answer, : len(tokens)] = 1
        return batch | {"input_ids": input_ids, "attention_mask": attention_mask}


@dataclass
class PackedRankingCollator:
    """Puts each prompt once, followed by its answers, and several of these one behind another into rows of R x T.

    A ranking goes into the first row that has room for it.

    Args:
        pad_token_id: Fills the unused token places.
        max_row_tokens: Most tokens of a row. A single ranking that is longer gets a row of its own.
        pad_to_multiple_of: Rounds T up, for hardware that likes it.
    """

    pad_token_id: int
    max_row_tokens: int
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Builds one batch.

        Args:
            examples: As for `RankingCollator`.

        Returns:
            `scores`, `answer_mask`, `prompt_lengths` and `answer_lengths` as `RankingCollator`; `row` (B,), the row of
            each ranking, those of one row in the order given; `input_ids`, `attention_mask` and `position_ids` (R, T).
            The positions of every answer go on from its prompt.
        """
        batch = _stack_annotations(examples)
        rows, used = self._assign_rows((batch["prompt_lengths"] + batch["answer_lengths"].sum(dim=1)).tolist())
        shape = (len(used), _round_up(max(used), self.pad_to_multiple_of))
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        attention_mask, position_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        filled = [0] * len(used)
        for row, example in zip(rows, examples, strict=True):
            prompt = example["prompt_input_ids"]
            for tokens, first_position in [(prompt, 0)] + [(a, len(prompt)) for a in example["response_input_ids"]]:
                place = slice(filled[row], filled[row] + len(tokens))
                input_ids[row, place] = torch.tensor(tokens)
                attention_mask[row, place] = 1
                position_ids[row, place] = torch.arange(first_position, first_position + len(tokens))
                filled[row] = place.stop
        return batch | {
            "row": torch.tensor(rows),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }

    def _assign_rows(self, lengths: list[int]) -> tuple[list[int], list[int]]:
        """The row of each ranking, and the tokens used of each row."""
        rows: list[int] = []
        used: list[int] = []
        for length in lengths:
            row = next((row for row, tokens in enumerate(used) if tokens + length <= self.max_row_tokens), len(used))
            if row == len(used):
                used.append(0)
            used[row] += length
            rows.append(row)
        return rows, used


def _stack_annotations(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """What a batch of rankings holds beside its tokens, padded up to the largest K."""
    shape = (len(examples), max(len(example["response_input_ids"]) for example in examples))
    scores, answer_lengths = torch.zeros(shape, dtype=torch.float32), torch.zeros(shape, dtype=torch.long)
    for row, example in enumerate(examples):
        lengths = [len(response) for response in example["response_input_ids"]]
        if len(lengths) != len(example["scores"]):
            raise ValueError(f"a ranking needs one score for each answer; got {len(example['scores'])}, {len(lengths)}")
        if not all(lengths):
            raise ValueError(f"a ranking needs a token in each answer, its end of sequence at least; got {lengths}")
        scores[row, : len(lengths)] = torch.tensor(example["scores"], dtype=torch.float32)
        answer_lengths[row, : len(lengths)] = torch.tensor(lengths)
    batch = {
        "scores": scores,
        "answer_mask": answer_lengths > 0,
        "prompt_lengths": torch.tensor([len(example["prompt_input_ids"]) for example in examples]),
        "answer_lengths": answer_lengths,
    }
    for name in ("margin", "weight"):
        if name in examples[0]:
            batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
    for name in ("annotator_scores", "attribute_scores"):
        if name in examples[0]:
            judged = torch.full((shape[0], max(len(example[name]) for example in examples), shape[1]), torch.nan)
            for row, example in enumerate(examples):
                known = [[torch.nan if score is None else score for score in scores] for scores in example[name]]
                scores = torch.tensor(known, dtype=torch.float32)
                judged[row, : scores.shape[0], : scores.shape[1]] = scores
            batch[name] = judged
    return batch


def _round_up(length: int, multiple: int | None) -> int:
    return length if multiple is None else -(-length // multiple) * multiple


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
