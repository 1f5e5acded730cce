"""Turning canonical records into token ids, the same ids for supervised fine-tuning, reward model and PPO.

Prompt and completion are encoded apart and then joined. A tokenizer that works on words or merges, as GPTPangu's does,
gives other ids at the seam when it sees both at once, and then the policy would be trained on a prompt that generation
never meets.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from .answer_end import answer_end, up_to_end
from .loading import place_of
from .records import Message, is_finite_number

logger = logging.getLogger(__name__)

# `datasets` hashes importable code by its name, so without this a cache would outlive a change of these files.
CODE_DIGEST = hashlib.sha256(
    b"".join(Path(__file__).with_name(name).read_bytes() for name in ("tokenizing.py", "answer_end.py"))
).hexdigest()

LENGTH_COLUMN = "num_tokens_of_longest"


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | list[Message]) -> list[int]:
    """Encodes a prompt so that a completion can follow.

    Text gets the tokenizer's special tokens, except an end of sequence after it; messages get the chat template with
    the opening of the assistant's turn.

    Raises:
        ValueError: If the prompt gives no token, or is messages and the tokenizer has no chat template.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if ids and ids[-1] == tokenizer.eos_token_id:
            # Only what the tokenizer added goes: an end of sequence that the text itself spells stays.
            ids_of_text = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            num_added = _count_trailing(ids, ids[-1]) - _count_trailing(ids_of_text, ids[-1])
            ids = ids[: len(ids) - num_added]
    else:
        text = _render(tokenizer, prompt, add_generation_prompt=True)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError(f"the prompt must give at least one token; the tokenizer drops all of {prompt!r}.")
    return ids


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[Message], completion: str | list[Message]
) -> list[int]:
    """Encodes a completion as the continuation of `encode_prompt`; it ends with exactly one end, see `answer_end`.

    Text is encoded without special tokens. Of messages it is what the chat template writes after the prompt, up to the
    end of the last turn: what stands behind it is left out, because generation stops before it.

    Raises:
        ValueError: If the completion gives no token, the tokenizer has no end of sequence, or the chat template does
            not write prompt and completion as a continuation of the prompt.
    """
    is_chat = not isinstance(completion, str)
    end = answer_end(tokenizer, is_chat)
    text = _render_completion(tokenizer, prompt, completion) if is_chat else completion
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = up_to_end(tokenizer, ids, end) if is_chat else ids[: len(ids) - _count_trailing(ids, end)]
    if not ids:
        raise ValueError(
            f"the completion must give at least one token before the end of sequence; got none from {completion!r}."
        )
    return ids + [end]


def tokenize_demonstrations(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, num_proc: int | None = None
) -> datasets.Dataset:
    """Encodes demonstrations as TRL's SFTTrainer takes pre-tokenised data.

    SFTTrainer applies the mask only with `SFTConfig(completion_only_loss=True)`.

    Args:
        dataset: Canonical demonstrations.
        tokenizer: The policy's tokenizer.
        max_length: Most tokens of prompt and completion, its end of sequence included. Longer demonstrations are left
            out and counted in a warning.
        num_proc: Processes to use.

    Returns:
        `input_ids`, the prompt's and then the completion's, and `completion_mask`, 1 at the completion and 0 at the
        prompt.

    Raises:
        ValueError: If a prompt alone leaves no room, a record cannot be encoded, or none is short enough.
    """
    encoded = _map_rows(dataset, _Encoder(_encode_demonstration, tokenizer, max_length), dataset.column_names, num_proc)
    return drop_overlong(encoded, max_length, "demonstrations")


def tokenize_rankings(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, num_proc: int | None = None
) -> datasets.Dataset:
    """Encodes rankings, each prompt once.

    Args:
        dataset: Canonical rankings.
        tokenizer: The reward model's tokenizer.
        max_length: Most tokens of the prompt and its longest response. A ranking with a longer one is left out as a
            whole, since its other responses would no longer be the ranking that was made, and counted in a warning.
        num_proc: Processes to use.

    Returns:
        `prompt_input_ids`, `response_input_ids` (a list for each response) and `scores`; `margin` where the data has
        margins.

    Raises:
        ValueError: As `tokenize_demonstrations`.
    """
    encoded = _map_rows(dataset, _Encoder(_encode_ranking, tokenizer, max_length), dataset.column_names, num_proc)
    return drop_overlong(encoded, max_length, "rankings")


def tokenize_prompts(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, num_proc: int | None = None
) -> datasets.Dataset:
    """Adds `prompt_input_ids` to prompts; every other column stays, for reward functions to read.

    Raises:
        ValueError: If a prompt has more than `max_prompt_length` tokens or cannot be encoded.
    """
    return _map_rows(dataset, _Encoder(_encode_prompt_row, tokenizer, max_prompt_length), [], num_proc)


@dataclass(frozen=True)
class _Encoder:
    """A row function that worker processes can receive and whose hash, the key of the cache, covers all it uses."""

    encode: Callable[[Mapping[str, Any], PreTrainedTokenizerBase, int], dict[str, Any]]
    tokenizer: PreTrainedTokenizerBase
    limit: int
    code_digest: str = CODE_DIGEST

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        try:
            return self.encode(row, self.tokenizer, self.limit)
        except ValueError as error:
            raise _RowError(index, str(error)) from error


class _RowError(ValueError):
    """A row that cannot be encoded. Made of its arguments alone, as worker processes hand it over."""

    def __str__(self) -> str:
        row, message = self.args
        return f"row {row}: {message}"


def _encode_demonstration(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    prompt_ids = _encode_prompt_with_room(row["prompt"], tokenizer, max_length)
    completion_ids = encode_completion(tokenizer, row["prompt"], row["completion"])
    input_ids = prompt_ids + completion_ids
    return {
        "input_ids": input_ids,
        "completion_mask": [0] * len(prompt_ids) + [1] * len(completion_ids),
        LENGTH_COLUMN: len(input_ids),
    }


def _encode_ranking(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    prompt_ids = _encode_prompt_with_room(row["prompt"], tokenizer, max_length)
    response_ids = [encode_completion(tokenizer, row["prompt"], response) for response in row["responses"]]
    return {
        "prompt_input_ids": prompt_ids,
        "response_input_ids": response_ids,
        "scores": row["scores"],
        LENGTH_COLUMN: len(prompt_ids) + max(map(len, response_ids)),
    } | _margin(row)


def _margin(row: Mapping[str, Any]) -> dict[str, float]:
    """The margin by which the better answer of a ranking has to win, where the data has such a column."""
    if "margin" not in row:
        return {}
    if not is_finite_number(row["margin"]):
        raise ValueError(f"'margin' must be a finite number in every record, or in none; got {row['margin']!r}")
    return {"margin": float(row["margin"])}


def _encode_prompt_row(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_prompt_length: int
) -> dict[str, Any]:
    prompt_ids = encode_prompt(tokenizer, row["prompt"])
    if len(prompt_ids) > max_prompt_length:
        raise ValueError(
            f"the prompt must have at most max_prompt_length = {max_prompt_length} tokens; it has {len(prompt_ids)}. "
            "Raise max_prompt_length, or shorten or remove the prompt."
        )
    return {"prompt_input_ids": prompt_ids}


def _encode_prompt_with_room(
    prompt: str | list[Message], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[int]:
    ids = encode_prompt(tokenizer, prompt)
    if len(ids) >= max_length:
        raise ValueError(
            f"the prompt must leave room for an answer within max_length = {max_length} tokens; it has {len(ids)}. "
            "Raise max_length, or shorten or remove the record."
        )
    return ids


def _map_rows(
    dataset: datasets.Dataset, encoder: _Encoder, remove_columns: list[str], num_proc: int | None
) -> datasets.Dataset:
    try:
        return dataset.map(
            encoder, with_indices=True, remove_columns=remove_columns, num_proc=num_proc, desc="Encoding records"
        )
    except _RowError as error:
        row, message = error.args
        place = place_of(dataset, row)
        if place is None:
            raise
        raise ValueError(f"row {row} ({place}): {message}") from error


def drop_overlong(encoded: datasets.Dataset, max_length: int, records: str) -> datasets.Dataset:
    """Leaves out rows whose `LENGTH_COLUMN` is above `max_length`, counts them in a warning, and drops that column."""
    lengths = list(encoded[LENGTH_COLUMN])
    fitting = [index for index, length in enumerate(lengths) if length <= max_length]
    num_overlong = len(lengths) - len(fitting)
    if not fitting:
        raise ValueError(
            f"at least one of the {len(lengths)} {records} must fit in max_length = {max_length} tokens; the shortest "
            f"has {min(lengths, default=0)}. Raise max_length."
        )
    encoded = encoded.remove_columns(LENGTH_COLUMN)
    if not num_overlong:
        return encoded
    logger.warning(
        "%d of %d %s left out: the longest has %d tokens, max_length is %d. Raise max_length or remove them to silence "
        "this.",
        num_overlong,
        len(lengths),
        records,
        max(lengths),
        max_length,
    )
    return encoded.select(fitting)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer must have a chat template to encode messages; it has none. Set tokenizer.chat_template, or "
            "give prompts and completions as text."
        )
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def _render_completion(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], completion: list[Message]) -> str:
    before = _render(tokenizer, prompt, add_generation_prompt=True)
    whole = _render(tokenizer, prompt + completion, add_generation_prompt=False)
    if not whole.startswith(before):
        common = next(
            (index for index, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), len(whole)
        )
        raise ValueError(
            "the chat template must write prompt and completion as a continuation of the prompt; after "
            f"{before[max(0, common - 20) : common]!r} it writes {before[common : common + 20]!r} for the prompt alone "
            f"and {whole[common : common + 20]!r} with the completion. Use another chat template, or text records."
        )
    return whole[len(before) :]


def _count_trailing(ids: list[int], token_id: int) -> int:
    count = 0
    while count < len(ids) and ids[-1 - count] == token_id:
        count += 1
    return count
