"""What PPO reads besides answers: prompts in the forms that users have them, and texts for the ptx loss.

The ptx loss is the language-model loss that InstructGPT mixes into PPO (arXiv:2203.02155, eq. 2), so that the policy
does not forget what it could.
"""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pangu_trl.data.collators import pad_sequences
from pangu_trl.data.tokenized_datasets import tokenize_demonstrations, tokenize_prompts, tokenize_texts

from .config import PPOConfig
from .sampler import text_rows

PromptSets = Dataset | dict[str, Dataset] | None


def prepare_prompts(dataset: PromptSets, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int) -> PromptSets:
    """Adds `prompt_input_ids` to prompts: texts, conversations, or token ids as TRL 1.12's PPOTrainer took them.

    Args:
        dataset: Rows with `prompt` (text or messages) or with `input_ids` (padding, told by `attention_mask` or the
            pad token at either end, is taken off); a dict of such datasets; or None, which stays.
        tokenizer: The policy's tokenizer.
        max_prompt_length: Longest prompt in tokens.

    Raises:
        ValueError: A prompt is empty or too long, or the rows have neither column.
    """
    if dataset is None:
        return None
    if isinstance(dataset, dict):
        return {name: prepare_prompts(part, tokenizer, max_prompt_length) for name, part in dataset.items()}
    if "prompt_input_ids" in dataset.column_names:
        return dataset
    if "prompt" in dataset.column_names:
        return tokenize_prompts(dataset, tokenizer, max_prompt_length)
    if "input_ids" not in dataset.column_names:
        raise ValueError(
            "PPOTrainer: prompts need a column `prompt` (text or messages) or `input_ids` (token ids); found "
            f"{dataset.column_names}."
        )

    def take_ids(row: dict[str, Any], index: int) -> dict[str, Any]:
        ids, mask = row["input_ids"], row.get("attention_mask")
        if mask is None and ids and tokenizer.pad_token_id == tokenizer.eos_token_id in (ids[0], ids[-1]):
            raise ValueError(
                f"row {index}: the prompt begins or ends with {tokenizer.eos_token!r}, which pads and ends texts, and "
                "without attention_mask nobody can tell which. Add that column, or take the padding off."
            )
        ids = _without_padding(ids, mask, tokenizer.pad_token_id)
        if not 1 <= len(ids) <= max_prompt_length:
            raise ValueError(
                f"row {index}: a prompt must have at least one and at most max_prompt_length = {max_prompt_length} "
                f"tokens; got {len(ids)}."
            )
        return {"prompt_input_ids": ids, "prompt": tokenizer.decode(ids, skip_special_tokens=True)}

    # `input_ids` stays: it says that nobody knows whether a prompt is a text or messages.
    padding = [name for name in ("attention_mask",) if name in dataset.column_names]
    return dataset.map(take_ids, with_indices=True, remove_columns=padding)


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
            which the completion is.
        tokenizer: The policy's tokenizer.
        args: Options; longer texts than prompt and answer may be are left out and counted in a warning.
    """

    def __init__(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> None:
        self.texts = _tokenize(dataset, tokenizer, args.max_prompt_length + args.max_completion_length)
        self.pad_token_id = tokenizer.pad_token_id
        self.batch_size, self.seed = args.per_device_train_batch_size, args.seed
        self.rank, self.world_size = args.process_index, args.world_size

    def batch(self, micro_step: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and labelled places (bool) of this rank's texts, (B, T) each."""
        rows = [self.texts[row] for row in self._rows(micro_step, self.rank)]
        ids, attention_mask = pad_sequences([row["input_ids"] for row in rows], self.pad_token_id, side="right")
        labels, _ = pad_sequences([row["completion_mask"] for row in rows], 0, side="right")
        return ids.to(device), attention_mask.to(device), labels.bool().to(device)

    def num_labels(self, micro_steps: range) -> int:
        """Labelled tokens of the given mini-batches over all ranks; needs no communication."""
        return sum(
            sum(self.texts[row]["completion_mask"][1:])
            for micro_step in micro_steps
            for rank in range(self.world_size)
            for row in self._rows(micro_step, rank)
        )

    def _rows(self, micro_step: int, rank: int) -> list[int]:
        return text_rows(micro_step, self.batch_size, len(self.texts), rank, self.world_size, self.seed)


def _tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    if "completion" in dataset.column_names:
        return tokenize_demonstrations(dataset, tokenizer, max_length)
    if "text" not in dataset.column_names:
        raise ValueError(
            "PPOTrainer: ptx_dataset needs a column `text`, or `prompt` and `completion`; found "
            f"{dataset.column_names}."
        )

    return tokenize_texts(dataset, tokenizer, max_length)
