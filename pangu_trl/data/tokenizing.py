"""Turning canonical records into token ids, the same ids for supervised fine-tuning, reward model and PPO.

Prompt and completion are encoded apart and then joined. A tokenizer that works on words or merges, as GPTPangu's does,
gives other ids at the seam when it sees both at once, and then the policy would be trained on a prompt that generation
never meets. For the same reason every turn inside a completion is encoded apart. Special tokens that the texts spell
are ordinary text unless a record says otherwise; see `typed_tokens`.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from .answer_end import answer_end, up_to_end
from .conversations import Conversation, EncodingColumns, Part, typed_in_messages, without_ends
from .records import Message
from .typed_tokens import MODE_COLUMN, encode_after, encode_marked, encode_split, find_tokens, special_tokens

NOTHING_SAID = EncodingColumns()


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[Message], columns: EncodingColumns = NOTHING_SAID
) -> list[int]:
    """Encodes a prompt so that a completion can follow.

    Text gets the tokenizer's special tokens, except an end of sequence after it; messages get the chat template with
    the opening of the assistant's turn.

    Args:
        tokenizer: The model's tokenizer.
        prompt: Text or messages.
        columns: What the record says beside them: `EncodingColumns.of(record)`.

    Raises:
        ValueError: If the prompt gives no token, spells special tokens that the columns refuse, or is messages that
            the tokenizer's chat template cannot write.
    """
    if isinstance(prompt, str):
        ids = _encode_with_added(tokenizer, prompt, columns)
    else:
        _refuse_typed(typed_in_messages(tokenizer, prompt), columns)
        text = Conversation(tokenizer, prompt, [], columns).render_prompt()
        ids = _encode_rendered(tokenizer, text, "", columns)
    if not ids:
        raise ValueError(f"the prompt must give at least one token; the tokenizer drops all of {prompt!r}.")
    return ids


def encode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    completion: str | list[Message],
    columns: EncodingColumns = NOTHING_SAID,
) -> list[int]:
    """Encodes a completion as the continuation of `encode_prompt`; it ends with exactly one end, see `answer_end`.

    Text is encoded without special tokens; after messages it counts as one message of the assistant. Of messages it is
    what the chat template writes after the prompt, up to the end of the last turn: what stands behind it is left out,
    because generation stops before it.

    Args:
        tokenizer: The model's tokenizer.
        prompt: Text or messages.
        completion: Text or messages.
        columns: As for `encode_prompt`.

    Raises:
        ValueError: If the completion gives no token, the tokenizer has no end of sequence, or the chat template does
            not write prompt and completion as a continuation of the prompt.
    """
    return encode_turns(tokenizer, prompt, completion, columns)[0]


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[Message],
    completion: str | list[Message],
    columns: EncodingColumns = NOTHING_SAID,
) -> tuple[list[int], list[int]]:
    """Encodes a completion and tells the assistant's turns in it from what others say there.

    Args: as for `encode_completion`.

    Returns:
        The ids of `encode_completion`, and a mask of the same length: 1 where the assistant speaks or ends its turn, 0
        where a user or a tool does. Every turn is encoded apart, as generation meets it.

    Raises:
        ValueError: As `encode_completion`.
    """
    if isinstance(completion, str) and isinstance(prompt, list):
        completion = [{"role": "assistant", "content": completion}]
    end = answer_end(tokenizer, is_chat=not isinstance(completion, str))
    if isinstance(completion, str):
        ids = _encode_text(tokenizer, without_ends(completion, tokenizer.eos_token), columns)
        mask = [1] * len(ids)
        num_kept = len(ids) - _count_trailing(ids, end)
    else:
        _refuse_typed(typed_in_messages(tokenizer, completion), columns)
        before, parts = Conversation(tokenizer, prompt, completion, columns).render_completion()
        ids, mask = encode_parts(tokenizer, parts, before, columns)
        num_kept = len(up_to_end(tokenizer, ids, end))
    if not num_kept:
        raise ValueError(
            f"the completion must give at least one token before the end of sequence; got none from {completion!r}."
        )
    return [*ids[:num_kept], end], [*mask[:num_kept], 1]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, columns: EncodingColumns = NOTHING_SAID) -> list[int]:
    """Encodes a text for language modelling: a prompt and nothing else, and then one end of sequence.

    Raises:
        ValueError: As `encode_prompt`.
    """
    return [*encode_prompt(tokenizer, without_ends(text, tokenizer.eos_token), columns), tokenizer.eos_token_id]


def typed_special_tokens(tokenizer: PreTrainedTokenizerBase, record: Mapping[str, Any]) -> list[str]:
    """The special tokens that the texts of a record spell, except an end of sequence at the end of an answer
    or of a plain text."""
    found = find_tokens([record.get("tools"), record.get("chat_template_kwargs")], special_tokens(tokenizer))
    texts = [(record.get("prompt"), False), (record.get("text"), True), (record.get("completion"), True)]
    for value, is_answer in texts + [(response, True) for response in record.get("responses") or ()]:
        if isinstance(value, list):
            found += typed_in_messages(tokenizer, value)
        elif value is not None:
            value = without_ends(value, tokenizer.eos_token) if is_answer else value
            found += find_tokens(value, special_tokens(tokenizer))
    return found


def encode_parts(
    tokenizer: PreTrainedTokenizerBase, parts: list[Part], before: str, columns: EncodingColumns
) -> tuple[list[int], list[int]]:
    """Ids of the parts, each encoded apart, and 1 for those of learnt ones."""
    ids: list[int] = []
    mask: list[int] = []
    for part in parts:
        part_ids = _encode_rendered(tokenizer, part.text, before, columns)
        ids += part_ids
        mask += [int(part.is_learnt)] * len(part_ids)
        before += part.text
    return ids, mask


def _encode_with_added(tokenizer: PreTrainedTokenizerBase, text: str, columns: EncodingColumns) -> list[int]:
    """Encodes a text with the tokenizer's special tokens before it, and none behind it."""
    if _encodes_as_is(tokenizer, text, columns):
        ids, own_ids = list(tokenizer(text)["input_ids"]), tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        own_ids = encode_split(tokenizer, text)
        ids = [*_ids_before(tokenizer), *own_ids]
    if ids and ids[-1] == tokenizer.eos_token_id:
        # Only what the tokenizer added goes: an end of sequence that the text itself spells stays.
        num_added = _count_trailing(ids, ids[-1]) - _count_trailing(own_ids, ids[-1])
        ids = ids[: len(ids) - num_added]
    return ids


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str, columns: EncodingColumns) -> list[int]:
    if _encodes_as_is(tokenizer, text, columns):
        return encode_after(tokenizer, text, before="")
    return encode_split(tokenizer, text)


def _encodes_as_is(tokenizer: PreTrainedTokenizerBase, text: str, columns: EncodingColumns) -> bool:
    """Whether the tokenizer may take a text as it stands."""
    typed = find_tokens(text, special_tokens(tokenizer))
    _refuse_typed(typed, columns)
    return not typed or columns.special_tokens_in_text == "keep"


def _refuse_typed(typed: list[str], columns: EncodingColumns) -> None:
    if typed and columns.special_tokens_in_text == "refuse":
        names = ", ".join(dict.fromkeys(typed))
        raise ValueError(
            f"the texts must not hold special tokens, as {MODE_COLUMN} is refuse; got {names}. Remove them, or set "
            f"{MODE_COLUMN} to split, which encodes them as ordinary text, or to keep."
        )


def _ids_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text."""
    ids, own_ids = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = range(len(ids) - len(own_ids) + 1)
    return next((ids[:start] for start in starts if ids[start : start + len(own_ids)] == own_ids), [])


def _encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str, before: str, columns: EncodingColumns) -> list[int]:
    # Only where typed tokens are not kept did the text get marks.
    encode = encode_after if columns.special_tokens_in_text == "keep" else encode_marked
    return encode(tokenizer, text, before)


def _count_trailing(ids: list[int], token_id: int) -> int:
    count = 0
    while count < len(ids) and ids[-1 - count] == token_id:
        count += 1
    return count
