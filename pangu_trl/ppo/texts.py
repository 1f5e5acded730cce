"""What PPO reads besides answers: prompts in the forms that users have them, and texts for the ptx loss.

The ptx loss is the language-model loss that InstructGPT mixes into PPO (arXiv:2203.02155, eq. 2), so that the policy
does not forget what it could.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pangu_trl.data.collators import pad_sequences
from pangu_trl.data.streams import EncodedStream, OverlongPrompt, column_names, read_whole
from pangu_trl.data.tokenized_datasets import tokenize_demonstrations, tokenize_prompts, tokenize_texts

from .config import PPOConfig
from .sampler import repeat_rollouts, text_places, text_rows

PromptSets = Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None


def stream_prompts(dataset: IterableDataset, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> IterableDataset:
    """Encodes prompts as they pass, in the order in which rollouts use them, without end.

    Args:
        dataset: Rows as for `prepare_prompts`; those whose prompt is too long are left out and counted.
        tokenizer: The policy's tokenizer.
        args: Options.

    Raises:
        ValueError: The rows have neither prompts nor token ids.
    """
    columns = column_names(dataset)
    if "prompt_input_ids" in columns:
        stream = EncodedStream(dataset, dict, None, "prompts")
    elif "prompt" in columns:
        stream = tokenize_prompts(dataset, tokenizer, args.max_prompt_length).encoded_stream
    else:
        _check_columns(columns)
        take_ids = partial(_take_ids, tokenizer=tokenizer, max_prompt_length=args.max_prompt_length)
        stream = EncodedStream(dataset.remove_columns(_padding(columns)), take_ids, None, "prompts", keeps_columns=True)
    chunk_size = args.prompts_per_rollout * args.world_size
    stream.repeats = partial(repeat_rollouts, chunk_size=chunk_size, repeats=args.mini_batches_per_rollout)
    return stream.dataset()


def prepare_prompts(
    dataset: PromptSets, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int
) -> Dataset | dict[str, Dataset] | None:
    """Adds `prompt_input_ids` to prompts: texts, conversations, or token ids as TRL 1.12's PPOTrainer took them.

    Args:
        dataset: Rows with `prompt` (text or messages) or with `input_ids` (padding, told by `attention_mask` or the
            pad token at either end, is taken off); a dict of such datasets; or None, which stays. A stream is read to
            its end.
        tokenizer: The policy's tokenizer.
        max_prompt_length: Longest prompt in tokens.

    Raises:
        ValueError: A prompt is empty or too long, or the rows have neither column.
    """
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: prepare_prompts(part, tokenizer, max_prompt_length) for name, part in dataset.items()}
    if isinstance(dataset, IterableDataset):
        dataset = read_whole(dataset, "prompt" if "prompt" in column_names(dataset) else None, "eval")
    if "prompt_input_ids" in dataset.column_names:
        return dataset
    if "prompt" in dataset.column_names:
        return tokenize_prompts(dataset, tokenizer, max_prompt_length)
    _check_columns(dataset.column_names)

    def take_ids(row: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            return _take_ids(row, tokenizer, max_prompt_length)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error

    return dataset.map(take_ids, with_indices=True, remove_columns=_padding(dataset.column_names))


def _check_columns(columns: list[str]) -> None:
    if "input_ids" not in columns:
        raise ValueError(
            "PPOTrainer: prompts need a column `prompt` (text or messages) or `input_ids` (token ids); found "
            f"{columns}."
        )


def _padding(columns: list[str]) -> list[str]:
    """What goes; `input_ids` stays: it says that nobody knows whether a prompt is a text or messages."""
    return [name for name in ("attention_mask",) if name in columns]


def _take_ids(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_prompt_length: int) -> dict[str, Any]:
    ids, mask = row["input_ids"], row.get("attention_mask")
    if mask is None and ids and tokenizer.pad_token_id == tokenizer.eos_token_id in (ids[0], ids[-1]):
        raise ValueError(
            f"the prompt begins or ends with {tokenizer.eos_token!r}, which pads and ends texts, and without "
            "attention_mask nobody can tell which. Add that column, or take the padding off."
        )
    ids = _without_padding(ids, mask, tokenizer.pad_token_id)
    if not 1 <= len(ids) <= max_prompt_length:
        error = OverlongPrompt if ids else ValueError
        raise error(
            f"a prompt must have at least one and at most max_prompt_length = {max_prompt_length} tokens; got "
            f"{len(ids)}."
        )
    return {"prompt_input_ids": ids, "prompt": tokenizer.decode(ids, skip_special_tokens=True)}


def _without_padding(ids: list[int], mask: list[int] | None, pad_token_id: int) -> list[int]:
    if mask is not None:
        return [token for token, real in zip(ids, mask, strict=True) if real]
    start, end = 0, len(ids)
    while start < end and ids[start] == pad_token_id:
        start += 1
    while end > start and ids[end - 1] == pad_token_id:
        end -= 1
    return ids[start:end]


class TextBatches:
    """Batches of texts for the ptx loss: the same for a step whenever it is taken.

    Args:
        dataset: Rows with `text`, all of whose tokens are learnt, or demonstrations (`prompt`, `completion`), of
            which the completion is. A stream is taken in its order, other texts are shuffled.
        tokenizer: The policy's tokenizer.
        args: Options; longer texts than prompt and answer may be are left out and counted in a warning.
    """

    def __init__(self, dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> None:
        self.texts = _tokenize(dataset, tokenizer, args.max_prompt_length + args.max_completion_length)
        self.pad_token_id = tokenizer.pad_token_id
        self.batch_size, self.seed = args.per_device_train_batch_size, args.seed
        self.rank, self.world_size, self.accumulation = (
            args.process_index,
            args.world_size,
            args.gradient_accumulation_steps,
        )
        self._window = StreamWindow(self.texts) if isinstance(self.texts, IterableDataset) else None

    def batch(self, micro_step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and labelled places (bool) of this rank's texts, (B, T) each."""
        if self._window is not None:
            # The mini-batches of one update are counted together, and need nothing from before.
            update = micro_step // self.accumulation * self.accumulation
            self._window.forget_before(text_places(update, self.batch_size, 0, self.world_size).start)
        rows = self._rows(micro_step, self.rank)
        ids, attention_mask = pad_sequences([row["input_ids"] for row in rows], self.pad_token_id, side="right")
        labels, _ = pad_sequences([row["completion_mask"] for row in rows], 0, side="right")
        return ids.to(device), attention_mask.to(device), labels.bool().to(device)

    def num_labels(self, micro_steps: range) -> int:
        """Labelled tokens of the given mini-batches over all ranks; needs no communication."""
        return sum(
            sum(row["completion_mask"][1:])
            for micro_step in micro_steps
            for rank in range(self.world_size)
            for row in self._rows(micro_step, rank)
        )

    def _rows(self, micro_step: int, rank: int) -> list[dict[str, Any]]:
        places = text_places(micro_step, self.batch_size, rank, self.world_size)
        if self._window is not None:
            return [self._window[place] for place in places]
        return [self.texts[row] for row in text_rows(places, len(self.texts), self.seed)]


class StreamWindow:
    """The stretch of an endless stream that is in use, by the places of its rows from the start.

    Args:
        stream: Read on as later places are asked for, from its start; what a resumed run has learnt from is read again.
    """

    def __init__(self, stream: IterableDataset) -> None:
        # Nothing is read before it is needed: the last reading is the one whose records are counted.
        self._iterator: Iterator[dict[str, Any]] = (row for row in stream)
        self._rows: deque[dict[str, Any]] = deque()
        self._first = 0

    def __getitem__(self, place: int) -> dict[str, Any]:
        missing = place - self._first - len(self._rows) + 1
        if missing > 0:
            self._rows.extend(islice(self._iterator, missing))
        return self._rows[place - self._first]

    def forget_before(self, place: int) -> None:
        """Lets go of the rows before a place."""
        for _ in range(min(place - self._first, len(self._rows))):
            self._rows.popleft()
            self._first += 1
        for _ in islice(self._iterator, max(place - self._first, 0)):
            self._first += 1


def _tokenize(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset | IterableDataset:
    columns = column_names(dataset)
    if "completion" in columns:
        return tokenize_demonstrations(dataset, tokenizer, max_length)
    if "text" not in columns:
        raise ValueError(
            f"PPOTrainer: ptx_dataset needs a column `text`, or `prompt` and `completion`; found {columns}."
        )
    return tokenize_texts(dataset, tokenizer, max_length)
