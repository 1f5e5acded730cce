"""Datasets of token ids, as the trainers take them, from datasets of canonical records.

Of an `IterableDataset` the functions here make one without an end, see `streams.EncodedStream`: records that are too
long are left out and counted as they pass, also where the prompt alone is; `num_proc` has no effect on it.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
from transformers import PreTrainedTokenizerBase

from . import answer_end, conversations, tables, tokenizing, typed_tokens
from .conversations import Conversation, EncodingColumns
from .loading import place_of
from .records import is_finite_number
from .streams import LENGTH_COLUMN, TYPED_COLUMN, UNKNOWN, UNKNOWN_COLUMN, EncodedStream, OverlongPrompt
from .tables import padded_columns, without_nulls
from .tokenizing import (
    NOTHING_SAID,
    encode_parts,
    encode_prompt,
    encode_text,
    encode_turns,
    typed_special_tokens,
)
from .typed_tokens import MODE_COLUMN

logger = logging.getLogger(__name__)

Records = TypeVar("Records", datasets.Dataset, datasets.IterableDataset)

# `datasets` hashes importable code by its name, so without this a cache would outlive a change of these files.
CODE_DIGEST = hashlib.sha256(
    b"".join(
        Path(file).read_bytes()
        for file in (
            __file__,
            *(module.__file__ for module in (answer_end, tokenizing, conversations, tables, typed_tokens)),
        )
    )
).hexdigest()

# Of a ranking, beside its scores: by how much the better answer has to win, how much the ranking counts, what each
# annotator said, and the value of each attribute.
RANKING_ANNOTATIONS = ("margin", "weight", "annotator_scores", "attribute_scores")


def tokenize_demonstrations(
    dataset: Records,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None = None,
    learns_prompt_turns: bool = False,
) -> Records:
    """Encodes demonstrations as TRL's SFTTrainer takes pre-tokenised data.

    SFTTrainer applies the mask only with `SFTConfig(completion_only_loss=True)`.

    Args:
        dataset: Canonical demonstrations.
        tokenizer: The policy's tokenizer.
        max_length: Most tokens of prompt and completion, its end of sequence included. Longer demonstrations are left
            out and counted in a warning.
        num_proc: Processes to use.
        learns_prompt_turns: Whether the assistant's turns in the prompts are learnt as well.

    Returns:
        `input_ids`, the prompt's and then the completion's, and `completion_mask`, 1 where the assistant speaks in the
        completion and 0 elsewhere.

    Raises:
        ValueError: If a prompt alone leaves no room, a record cannot be encoded, or none is short enough.
    """
    encode = _encode_whole_conversation if learns_prompt_turns else _encode_demonstration
    return _encoded(
        dataset, _Encoder(encode, tokenizer, max_length, padded_columns(dataset)), "demonstrations", num_proc
    )


def tokenize_rankings(
    dataset: Records,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None = None,
    marks_turns: bool = False,
) -> Records:
    """Encodes rankings, each prompt once.

    Args:
        dataset: Canonical rankings.
        tokenizer: The reward model's tokenizer.
        max_length: Most tokens of the prompt and its longest response. A ranking with a longer one is left out as a
            whole, since its other responses would no longer be the ranking that was made, and counted in a warning.
        num_proc: Processes to use.
        marks_turns: Whether to tell what the assistant says in the responses from what others say there.

    Returns:
        `prompt_input_ids`, `response_input_ids` (a list for each response) and `scores`; those of
        `RANKING_ANNOTATIONS` that the data has; `response_masks` with `marks_turns`.

    Raises:
        ValueError: As `tokenize_demonstrations`.
    """
    encode = _encode_ranking_with_turns if marks_turns else _encode_ranking
    return _encoded(dataset, _Encoder(encode, tokenizer, max_length, padded_columns(dataset)), "rankings", num_proc)


def tokenize_prompts(
    dataset: Records, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, num_proc: int | None = None
) -> Records:
    """Adds `prompt_input_ids` to prompts; every other column stays, for reward functions to read.

    Raises:
        ValueError: If a prompt has more than `max_prompt_length` tokens or cannot be encoded.
    """
    encoder = _Encoder(_encode_prompt_row, tokenizer, max_prompt_length, padded_columns(dataset))
    if isinstance(dataset, datasets.IterableDataset):
        return EncodedStream(dataset, encoder.encode_with_count, None, "prompts", keeps_columns=True).dataset()
    # Side by side: a column that goes through `map` comes back with numbers of ten digits.
    return datasets.concatenate_datasets([dataset, _map_rows(dataset, encoder, num_proc)], axis=1)


def tokenize_texts(
    dataset: Records, tokenizer: PreTrainedTokenizerBase, max_length: int, num_proc: int | None = None
) -> Records:
    """Encodes plain texts, all of whose tokens are learnt.

    Returns:
        `input_ids` and `completion_mask`, which is 1 everywhere.

    Raises:
        ValueError: As `tokenize_demonstrations`.
    """
    return _encoded(
        dataset, _Encoder(_encode_text_row, tokenizer, max_length, padded_columns(dataset)), "texts", num_proc
    )


@dataclass(frozen=True)
class _Encoder:
    """A row function that worker processes can receive and whose hash, the key of the cache, covers all it uses."""

    encode: Callable[[Mapping[str, Any], PreTrainedTokenizerBase, int], dict[str, Any]]
    tokenizer: PreTrainedTokenizerBase
    limit: int
    padded_columns: tuple[str, ...] = ()
    code_digest: str = CODE_DIGEST

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        try:
            return self.encode_with_count(row)
        except ValueError as error:
            raise _RowError(index, str(error)) from error

    def encode_with_count(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What `encode` gives, how many special tokens the texts of the row spell, and how many tokens are unknown."""
        row = dict(row) | {name: without_nulls(row[name]) for name in self.padded_columns}
        encoded = self.encode(row, self.tokenizer, self.limit)
        return encoded | {
            TYPED_COLUMN: len(typed_special_tokens(self.tokenizer, row)),
            UNKNOWN_COLUMN: _count_unknown(self.tokenizer, encoded),
        }


def _count_unknown(tokenizer: PreTrainedTokenizerBase, encoded: Mapping[str, Any]) -> int:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        # GPT-2's kind calls its end of sequence so, and knows every byte.
        return 0
    lists = [encoded.get("input_ids", ()), encoded.get("prompt_input_ids", ()), *encoded.get("response_input_ids", ())]
    return sum(ids.count(unknown) for ids in lists)


class _RowError(ValueError):
    """A row that cannot be encoded. Made of its arguments alone, as worker processes hand it over."""

    def __str__(self) -> str:
        row, message = self.args
        return f"row {row}: {message}"


def _encode_demonstration(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    prompt_ids = _encode_prompt_with_room(row, tokenizer, max_length)
    completion_ids, mask = encode_turns(tokenizer, row["prompt"], row["completion"], EncodingColumns.of(row))
    input_ids = prompt_ids + completion_ids
    return {
        "input_ids": input_ids,
        "completion_mask": [0] * len(prompt_ids) + mask,
        LENGTH_COLUMN: len(input_ids),
    }


def _encode_whole_conversation(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    """As `_encode_demonstration`, and learns what the assistant says in the prompt too."""
    encoded = _encode_demonstration(row, tokenizer, max_length)
    if isinstance(row["prompt"], str):
        raise ValueError("the turns of the assistant are known in messages only; the prompt is text.")
    columns = EncodingColumns.of(row)
    parts = Conversation(tokenizer, row["prompt"], [], columns).render_prompt_parts()
    ids, mask = encode_parts(tokenizer, parts, "", columns)
    if ids != encoded["input_ids"][: len(ids)]:
        raise ValueError(
            "the turns of the prompt cannot be told apart in its tokens, which reach over their ends. Use a chat "
            "template that ends every turn with a special token, or move the turns into the completion."
        )
    return encoded | {"completion_mask": mask + encoded["completion_mask"][len(ids) :]}


def _encode_ranking(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    encoded = _encode_ranking_with_turns(row, tokenizer, max_length)
    return {name: value for name, value in encoded.items() if name != "response_masks"}


def _encode_ranking_with_turns(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Any]:
    prompt_ids, columns = _encode_prompt_with_room(row, tokenizer, max_length), EncodingColumns.of(row)
    responses = [encode_turns(tokenizer, row["prompt"], response, columns) for response in row["responses"]]
    return {
        "prompt_input_ids": prompt_ids,
        "response_input_ids": [ids for ids, _ in responses],
        "response_masks": [mask for _, mask in responses],
        "scores": row["scores"],
        LENGTH_COLUMN: len(prompt_ids) + max(len(ids) for ids, _ in responses),
    } | _annotations(row)


def _annotations(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a ranking may say beside its scores; see `RANKING_ANNOTATIONS`."""
    found: dict[str, Any] = {}
    if "margin" in row:
        if not is_finite_number(row["margin"]):
            raise ValueError(f"'margin' must be a finite number in every record, or in none; got {row['margin']!r}")
        found["margin"] = float(row["margin"])
    if "weight" in row:
        if not is_finite_number(row["weight"]) or row["weight"] < 0:
            raise ValueError(f"'weight' must be 0 or more in every record, or be in none; got {row['weight']!r}")
        found["weight"] = float(row["weight"])
    if "annotator_scores" in row:
        found["annotator_scores"] = _annotator_scores(row["annotator_scores"], len(row["responses"]))
    if "attribute_scores" in row:
        # Made, and checked, by the reward trainer.
        found["attribute_scores"] = row["attribute_scores"]
    return found


def _annotator_scores(value: Any, num_responses: int) -> list[list[float]]:
    annotators = value if isinstance(value, list | tuple) and value else [None]
    for scores in annotators:
        is_list = isinstance(scores, list | tuple) and len(scores) == num_responses
        if not is_list or not all(map(is_finite_number, scores)):
            raise ValueError(
                "'annotator_scores' must hold, for each annotator, one finite number for each of the "
                f"{num_responses} responses, in every record or in none; got {value!r}"
            )
    return [[float(score) for score in scores] for scores in annotators]


def _encode_prompt_row(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_prompt_length: int
) -> dict[str, Any]:
    prompt_ids = encode_prompt(tokenizer, row["prompt"], EncodingColumns.of(row))
    if len(prompt_ids) > max_prompt_length:
        raise OverlongPrompt(
            f"the prompt must have at most max_prompt_length = {max_prompt_length} tokens; it has {len(prompt_ids)}. "
            "Raise max_prompt_length, or shorten or remove the prompt."
        )
    return {"prompt_input_ids": prompt_ids}


def _encode_text_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    ids = encode_text(tokenizer, row["text"], EncodingColumns.of(row))
    return {"input_ids": ids, "completion_mask": [1] * len(ids), LENGTH_COLUMN: len(ids)}


def _encode_prompt_with_room(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    ids = encode_prompt(tokenizer, row["prompt"], EncodingColumns.of(row))
    if len(ids) >= max_length:
        raise OverlongPrompt(
            f"the prompt must leave room for an answer within max_length = {max_length} tokens; it has {len(ids)}. "
            "Raise max_length, or shorten or remove the record."
        )
    return ids


def _encoded(dataset: Records, encoder: _Encoder, noun: str, num_proc: int | None) -> Records:
    """Token ids in the place of the records, without those that are too long."""
    if isinstance(dataset, datasets.IterableDataset):
        return EncodedStream(dataset, encoder.encode_with_count, encoder.limit, noun).dataset()
    return drop_overlong(_map_rows(dataset, encoder, num_proc), encoder.limit, noun)


def _map_rows(dataset: datasets.Dataset, encoder: _Encoder, num_proc: int | None) -> datasets.Dataset:
    try:
        encoded = dataset.map(
            encoder, with_indices=True, remove_columns=dataset.column_names, num_proc=num_proc, desc="Encoding records"
        )
    except _RowError as error:
        row, message = error.args
        place = place_of(dataset, row)
        if place is None:
            raise
        raise ValueError(f"row {row} ({place}): {message}") from error
    report_typed_tokens(list(encoded[TYPED_COLUMN]), dataset)
    _report_unknown_tokens(list(encoded[UNKNOWN_COLUMN]), dataset)
    return encoded.remove_columns([TYPED_COLUMN, UNKNOWN_COLUMN])


def _report_unknown_tokens(counts: list[int], dataset: datasets.Dataset) -> None:
    rows = [row for row, count in enumerate(counts) if count]
    if rows:
        place = place_of(dataset, rows[0])
        logger.warning(
            "%d tokens are unknown to the tokenizer, in %d of %d records, the first in row %d%s. %s",
            *(sum(counts), len(rows), len(counts), rows[0], "" if place is None else f" ({place})", UNKNOWN),
        )


def report_typed_tokens(counts: list[int], dataset: datasets.Dataset) -> None:
    """Says in the log how many special tokens the texts of the rows spell and what became of them."""
    rows = [row for row, count in enumerate(counts) if count]
    if not rows:
        return
    modes = set(dataset[MODE_COLUMN]) if MODE_COLUMN in dataset.column_names else {NOTHING_SAID.special_tokens_in_text}
    is_kept = modes == {"keep"}
    place = place_of(dataset, rows[0])
    logger.log(
        logging.INFO if is_kept else logging.WARNING,
        "%d special tokens stand in the texts of %d of %d records, the first in row %d%s. %s",
        sum(counts),
        len(rows),
        len(counts),
        rows[0],
        "" if place is None else f" ({place})",
        f"They are kept, as {MODE_COLUMN} says."
        if is_kept
        else f"They are encoded as ordinary text; where they are meant, set {MODE_COLUMN}: keep.",
    )


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
