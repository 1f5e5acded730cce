"""Special tokens that somebody typed into a text: `<eot>` in a question must not end the prompt.

A special token is one that the tokenizer marks as special, such as an end of sequence or of a turn. Where the texts of
a record spell one there are three ways:

    split   its characters are encoded like any others, and the special id does not occur. The default, everywhere.
    keep    it becomes the special id, as the tokenizer does when nothing is said.
    refuse  the record is an error.

Only what stands in the record is meant, never what the tokenizer or the chat template adds. To a template every string
of a record is typed: contents, tool calls and their results, tools, and its further arguments. Outside of the
assistant's own turns that goes also for tokens that are not marked as special but that the template writes itself, such
as `<tool_response>`: a user could open a turn with them.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODES = ("split", "refuse", "keep")
MODE_COLUMN = "special_tokens_in_text"

# Around a typed token while a template writes it. Unicode reserves both for use inside a program.
_START, _END = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{_START}([^{_START}{_END}]*){_END}|[{_START}{_END}]")


def check_mode(mode: str, where: str) -> str:
    """Returns a way to treat typed tokens.

    Raises:
        ValueError: There is no such way; the message begins with `where`.
    """
    if mode not in MODES:
        raise ValueError(f"{where} must be one of {', '.join(MODES)}; got {mode!r}.")
    return mode


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The tokens that the tokenizer marks as special. Blanks are none: every text holds them."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(token for token in dict.fromkeys([*added, *tokenizer.all_special_tokens]) if token.strip())


def template_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Special tokens, and the other added ones that the chat template writes."""
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    added = [token for token in tokenizer.added_tokens_encoder if token.strip() and token in template]
    return tuple(dict.fromkeys([*special_tokens(tokenizer), *added]))


def find_tokens(value: Any, tokens: tuple[str, ...]) -> list[str]:
    """The tokens that occur in the strings of a value, which may be nested."""
    pattern = _pattern(tokens)
    return [token for text in _strings(value) for token in pattern.findall(text)]


def mark_tokens(value: Any, tokens: tuple[str, ...]) -> Any:
    """The same value with marks around the tokens in its strings, for `encode_marked` to see what was typed.

    Raises:
        ValueError: A string holds the characters that serve as marks, which Unicode keeps out of texts.
    """
    if isinstance(value, str):
        if _START in value or _END in value:
            raise ValueError("a text must not hold U+FDD0 or U+FDD1, which are no characters; remove them.")
        return _pattern(tokens).sub(f"{_START}\\g<0>{_END}", value)
    if isinstance(value, Mapping):
        return {mark_tokens(key, tokens): mark_tokens(item, tokens) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mark_tokens(item, tokens) for item in value]
    return value


def encode_marked(tokenizer: "PreTrainedTokenizerBase", text: str, before: str) -> list[int]:
    """Encodes a text with marks as the continuation of another; what is marked is encoded as ordinary text, apart.

    Raises:
        ValueError: The template escaped a mark, or the tokenizer makes a special token even of its characters.
    """
    if "\\ufdd0" in text:
        raise ValueError(
            "special tokens in the texts cannot be split, because the chat template escapes what it writes; remove "
            f"them from the record, or set {MODE_COLUMN}: keep."
        )
    ids: list[int] = []
    pieces = _MARKED.split(text)
    for index, piece in enumerate(pieces):
        if not piece:
            continue
        if index % 2:
            ids += _encode_as_text(tokenizer, piece)
        elif index:
            ids += _encode_inside(tokenizer, piece)
        else:
            ids += encode_after(tokenizer, piece, before)
    return ids


def encode_split(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Encodes a text whose special tokens are ordinary text, without those that the tokenizer would add."""
    ids = _encode(tokenizer, text, split_special_tokens=True)
    tokens = special_tokens(tokenizer)
    if not _ids_of(tokenizer, tokens) & set(ids):
        return ids
    return encode_marked(tokenizer, mark_tokens(text, tokens), before="")


def encode_after(tokenizer: "PreTrainedTokenizerBase", text: str, before: str) -> list[int]:
    """Encodes a text as the tokenizer does where `before` precedes it: apart, but not as the start of a text.

    SentencePiece puts a blank before the start of a text, which none of a conversation's later parts is.
    """
    if not text or not before:
        return _encode(tokenizer, text)
    added = [token for token in tokenizer.added_tokens_encoder if before.endswith(token)]
    if added:
        # The tokenizer itself cuts here, and knows what follows its own tokens.
        anchor = max(added, key=len)
        ids = _encode(tokenizer, anchor + text)
        if ids[:1] == [tokenizer.convert_tokens_to_ids(anchor)]:
            return ids[1:]
    return _encode_inside(tokenizer, text)


def _encode_inside(tokenizer: "PreTrainedTokenizerBase", text: str, **options: Any) -> list[int]:
    """Encodes a text that does not stand at the start; a line break before it takes the start's place."""
    line_break = _encode(tokenizer, "\n")
    if not line_break or _encode(tokenizer, "\na") == line_break + _encode(tokenizer, "a"):
        return _encode(tokenizer, text, **options)
    ids = _encode(tokenizer, "\n" + text, **options)
    if ids[: len(line_break)] == line_break:
        return ids[len(line_break) :]
    return _encode(tokenizer, text, **options)


def _encode_as_text(tokenizer: "PreTrainedTokenizerBase", token: str) -> list[int]:
    forbidden = _ids_of(tokenizer, template_tokens(tokenizer))
    ids = _encode_inside(tokenizer, token, split_special_tokens=True)
    if forbidden & set(ids):
        # Added tokens that are not marked as special are matched all the same, but not one half of them.
        ids = _encode_inside(tokenizer, token[:1]) + _encode_inside(tokenizer, token[1:])
    if forbidden & set(ids):
        raise ValueError(
            f"the special token {token!r} in a text cannot be split, because the tokenizer makes it of its characters "
            f"too; remove it from the record, or set {MODE_COLUMN}: keep."
        )
    return ids


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str, **options: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])


def _ids_of(tokenizer: "PreTrainedTokenizerBase", tokens: tuple[str, ...]) -> set[int]:
    # Unknown characters become the unknown token, and that is right.
    return {tokenizer.convert_tokens_to_ids(token) for token in tokens} - {tokenizer.unk_token_id}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


@lru_cache(maxsize=64)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
