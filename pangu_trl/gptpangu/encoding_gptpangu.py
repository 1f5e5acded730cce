"""The rows of token ids that a tokenizer call returns: what is given, what is cut off, where each token comes from."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy

Span = tuple[int, int]
NO_SPAN: Span = (0, 0)
# A text, or one that the caller has cut into words.
Text = str | Sequence[str]


@dataclass
class EncodingRequest:
    """Options of `PreTrainedTokenizerBase.__call__`, with the same meaning, that GPTPanguTokenizer handles itself."""

    split_special_tokens: bool
    add_special_tokens: bool = True
    is_split_into_words: bool = False
    padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD
    truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    return_tensors: str | None = None
    return_attention_mask: bool | None = None
    return_token_type_ids: bool | None = None
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    verbose: bool = True


class Tokens(NamedTuple):
    """The tokens of one text.

    Attributes:
        ids: Their ids.
        spans: For each the characters (start, end) of the text, or of the word if the caller gave words; empty unless
            requested.
        words: For each the number of the word, None for all if the caller gave no words; empty unless requested.
    """

    ids: list[int]
    spans: list[Span]
    words: list[int | None]

    def cut(self, excess: int, side: str) -> "Tokens":
        """Returns what remains without `excess` tokens on a side."""
        remaining = max(0, len(self.ids) - excess)
        kept = slice(len(self.ids) - remaining, None) if side == "left" else slice(remaining)
        return Tokens(self.ids[kept], self.spans[kept], self.words[kept])


class TokenOrigins:
    """Answers the questions of a BatchEncoding about one row, as the encodings of a fast tokenizer do.

    Args:
        offsets: Characters (start, end) of each token; (0, 0) for those that stand in no text, as padding.
        sequence_ids: 0 or 1 for tokens of the first or second text, None for others.
        word_ids: Number of the word that each token is part of, None for others and unless the caller gave words.
    """

    def __init__(self, offsets: Sequence[Span], sequence_ids: list[int | None], word_ids: list[int | None]) -> None:
        self.offsets = offsets
        self.sequence_ids = sequence_ids
        self.word_ids = word_ids

    def char_to_token(self, char_index: int, sequence_index: int = 0) -> int | None:
        """Returns the token of a character, the next one if the vocabulary drops the character, None past the end."""
        tokens = [index for index, sequence in enumerate(self.sequence_ids) if sequence == sequence_index]
        found = bisect_right(tokens, char_index, key=lambda index: self.offsets[index][1])
        return tokens[found] if found < len(tokens) else None

    def token_to_chars(self, token_index: int) -> Span | None:
        """Returns the characters of a token, None for one that stands in no text."""
        return None if self.sequence_ids[token_index] is None else self.offsets[token_index]


def read_rows(
    text: Any, text_pair: Any, is_split_into_words: bool
) -> tuple[list[tuple[Text, Text | None]], bool] | None:
    """Returns the texts of each row, the second None if it is no pair, and whether the caller gave a batch.

    None if the arguments are something else, as ids or a batch whose pairs are fewer than its texts.
    """

    def is_text(item: Any) -> bool:
        return isinstance(item, str) or (is_split_into_words and _all_strings(item))

    if is_text(text):
        return ([(text, text_pair)], False) if text_pair is None or is_text(text_pair) else None
    if not isinstance(text, (list, tuple)):
        return None
    if text_pair is not None:
        is_batch_of_pairs = isinstance(text_pair, (list, tuple)) and len(text_pair) == len(text)
        rows = list(zip(text, text_pair, strict=True)) if is_batch_of_pairs else None
    else:
        # Of words, as they may be two, only a tuple is a pair.
        pair_types = tuple if is_split_into_words else (list, tuple)
        rows = [item if isinstance(item, pair_types) and len(item) == 2 else (item, None) for item in text]
    if rows is None or not all(is_text(first) and (second is None or is_text(second)) for first, second in rows):
        return None
    return rows, True


def _all_strings(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and all(isinstance(word, str) for word in item)


def truncate(
    first: Tokens, second: Tokens | None, excess: int, strategy: TruncationStrategy, side: str
) -> tuple[Tokens, Tokens | None]:
    """Returns what a truncation strategy leaves of a text or a pair that is `excess` tokens too long."""
    if excess <= 0 or strategy == TruncationStrategy.DO_NOT_TRUNCATE:
        return first, second
    if strategy == TruncationStrategy.ONLY_SECOND:
        return first, None if second is None else second.cut(excess, side)
    if strategy == TruncationStrategy.ONLY_FIRST or second is None:
        return first.cut(excess, side), second
    # The longer text gives until both are equal, then each gives half, the second the odd token if it is not shorter.
    difference = len(first.ids) - len(second.ids)
    from_longer = min(abs(difference), excess)
    half = (excess - from_longer) // 2
    from_first = from_longer + half if difference > 0 else half
    return first.cut(from_first, side), second.cut(excess - from_first, side)


def spread(values: Iterable[Any], is_added: list[int], filler: Any) -> list:
    """Returns values of the texts' tokens with a filler wherever a token was added."""
    values = iter(values)
    return [filler if added else next(values) for added in is_added]


def pad_columns(
    rows: list[dict[str, list]], fillers: dict[str, Any], request: EncodingRequest, side: str
) -> dict[str, list[list]]:
    """Returns the rows as columns, filled up to one length if requested."""
    width = 0
    if request.padding_strategy == PaddingStrategy.LONGEST:
        width = max((len(row["input_ids"]) for row in rows), default=0)
    elif request.padding_strategy == PaddingStrategy.MAX_LENGTH:
        width = request.max_length
    if request.pad_to_multiple_of:
        width = -(-width // request.pad_to_multiple_of) * request.pad_to_multiple_of
    columns = {}
    for name, filler in fillers.items():
        column = [row[name] for row in rows]
        if width:
            paddings = ([filler] * (width - len(values)) for values in column)
            if (request.padding_side or side) == "left":
                column = [padding + values for padding, values in zip(paddings, column, strict=True)]
            else:
                column = [values + padding for padding, values in zip(paddings, column, strict=True)]
        columns[name] = column
    return columns
