"""Every fault of a source in one pass, and a picture of its records; texts are not kept, only hashes and numbers."""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from .cards import CardError
from .columns import Columns
from .conversations import EncodingColumns
from .formats import FORMATS
from .loading import (
    READING_ERRORS,
    SERVING_KINDS,
    Origin,
    Row,
    is_card,
    kind_of_card,
    read_rows,
    refuse_wrong_format,
)
from .near_duplicates import NearDuplicates, is_available
from .preferences import Preferences
from .records import RecordError, answer_text, public_format_of, validate_record
from .tokenizing import encode_completion, encode_prompt, encode_text, typed_special_tokens
from .typed_tokens import MODE_COLUMN

# Without a tokenizer: what special tokens look like in the tokenizers of published models.
COMMON_SPECIAL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:eot|eod|sep|pad|unk|mask|bos|eos)>|\[/?INST\]")


@dataclass(frozen=True)
class CheckOptions:
    """What to look for.

    Attributes:
        kind: Kind of record; None takes it from the card, or from the first record.
        split: Split of the source.
        format: The public format of the rows, as of `load_records`, also of those of `against` where that is no card.
        tokenizer: Counts lengths in its tokens and finds its special tokens; None counts characters.
        max_length: Longest record in tokens (of prompts: longest prompt); longer ones are left out by the trainers.
        against: Another source, e.g. the held-out records, in which none of these should occur.
        near_duplicates: Whether to look for them.
        special_tokens_in_text: One of `typed_tokens.MODES`, in the place of what card and records say; None leaves it.
    """

    kind: str | None = None
    split: str = "train"
    format: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    max_length: int | None = None
    against: str | Path | None = None
    near_duplicates: bool = True
    special_tokens_in_text: str | None = None


@dataclass
class _Seen:
    """Hashes of the records and prompts of one source, eight bytes each, in their order."""

    records: array = field(default_factory=lambda: array("Q"))
    prompts: array = field(default_factory=lambda: array("Q"))
    texts: NearDuplicates | None = None

    def add(self, record: Mapping[str, Any], kind: str) -> None:
        record_hash, prompt_hash = _hashes(record, kind)
        self.records.append(record_hash)
        self.prompts.append(prompt_hash)
        if self.texts is not None:
            self.texts.add(_text(record, kind))


@dataclass
class Picture:
    """What the records of a source look like.

    Attributes:
        kind: Kind of record.
        num_faults: Faults that were handed on.
        figures: Everything that was found, by name; see the documentation page.
    """

    kind: str
    num_faults: int
    figures: dict[str, Any]


def check_source(source: str | Path, options: CheckOptions, on_fault: Callable[[str], None]) -> Picture:
    """Reads a source once, hands on every fault, and sums up the records without fault.

    Args:
        source: As for `load_records`.
        options: What to look for.
        on_fault: Gets each fault as one line, which begins with its place.

    Raises:
        ValueError: The kind of record cannot be told, `max_length` is given without a tokenizer, the format does not
            go with the source or the kind, or `against` cannot be read.
    """
    if options.max_length is not None and options.tokenizer is None:
        raise ValueError("a longest length is counted in tokens; name the model whose tokenizer counts them")
    refuse_wrong_format(source, options.format, options.kind)
    kind = options.kind or _kind_of_card(source) or _kind_of_format(source, options.split, options.format)
    others = None
    if options.against is not None:
        others = _read_others(options)
    faults = 0

    def count_fault(error: Exception) -> None:
        nonlocal faults
        faults += 1
        on_fault(" ".join(str(error).split()))

    rows = _read_on(Origin(source, kind or "text", options.split, options.format), count_fault)
    if kind is None:
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{source}: no record can be read, so the kind cannot be told; see the faults")
        kind = _kind_of_record(*first)
        rows = chain([first], rows)
    check = _Check(kind, options)
    for place, row in rows:
        try:
            check.add(row, place)
        except ValueError as error:
            count_fault(error if str(error).startswith(place) else ValueError(f"{place}: {error}"))
    for error in check.columns.faults():
        count_fault(error)
    if not check.num_records and not faults:
        count_fault(ValueError(f"{source}: must hold records; there is none"))
    return Picture(kind, faults, check.figures(others))


class _Check:
    """Checks record by record and keeps count."""

    def __init__(self, kind: str, options: CheckOptions) -> None:
        self.kind, self.options = kind, options
        self.num_records = 0
        self.columns = Columns()
        self.seen = _Seen(texts=NearDuplicates() if options.near_duplicates and is_available() else None)
        self.lengths, self.turns = array("I"), Counter()
        self.typed: Counter[str] = Counter()
        self.num_with_typed = 0
        self.preferences = Preferences() if kind == "ranking" else None
        self.first_form: tuple[str, str] | None = None

    def add(self, row: Mapping[str, Any], place: str) -> None:
        record = validate_record(row, self.kind, place)
        if self.options.special_tokens_in_text is not None:
            record[MODE_COLUMN] = self.options.special_tokens_in_text
        self._check_form(record, place)
        self.columns.add_types(record, place)
        length = self._length(record)
        self.num_records += 1
        self.lengths.append(length)
        if isinstance(record.get("prompt"), list):
            answer = record.get("completion") or (record.get("responses") or [[]])[0]
            self.turns[len(record["prompt"]) + len(answer)] += 1
        self.seen.add(record, self.kind)
        self._count_typed(record)
        if self.preferences is not None:
            responses = record["responses"]
            lengths = [len(answer_text(response)) for response in responses]
            self.preferences.add(
                _hash(record["prompt"]), [_hash(item) for item in responses], record["scores"], lengths
            )

    def _check_form(self, record: Mapping[str, Any], place: str) -> None:
        """All prompts of a source have one form, since a column has one type."""
        form = "messages" if isinstance(record.get("prompt"), list) else "text"
        if self.first_form is None:
            self.first_form = form, place
        elif form != self.first_form[0]:
            raise RecordError(
                f"{place}: 'prompt' must be {self.first_form[0]}, as in {self.first_form[1]}; got {form}. Convert one "
                "of the two forms, or keep them in two sources."
            )

    def _length(self, record: Mapping[str, Any]) -> int:
        """Length of the longest sequence of a record, in tokens, or in characters without a tokenizer."""
        tokenizer, columns, limit = self.options.tokenizer, EncodingColumns.of(record), self.options.max_length
        if self.kind == "text":
            return len(record["text"]) if tokenizer is None else len(encode_text(tokenizer, record["text"], columns))
        answers = [record["completion"]] if self.kind == "demonstration" else record.get("responses", [])
        answers = answers if self.kind != "prompt" else []
        if tokenizer is None:
            return len(answer_text(record["prompt"])) + max((len(answer_text(answer)) for answer in answers), default=0)
        length = len(encode_prompt(tokenizer, record["prompt"], columns))
        if limit is not None and length >= limit + (self.kind == "prompt"):
            needed = "must have at most" if self.kind == "prompt" else "must leave room for an answer within"
            raise ValueError(f"the prompt {needed} {limit} tokens; it has {length}. Shorten or remove the record.")
        return length + max(
            (len(encode_completion(tokenizer, record["prompt"], answer, columns)) for answer in answers), default=0
        )

    def _count_typed(self, record: Mapping[str, Any]) -> None:
        if self.options.tokenizer is not None:
            found = typed_special_tokens(self.options.tokenizer, record)
        else:
            found = COMMON_SPECIAL_TOKEN.findall(_text(record, self.kind))
        self.typed.update(found)
        self.num_with_typed += bool(found)

    def figures(self, others: _Seen | None) -> dict[str, Any]:
        lengths = np.frombuffer(self.lengths, dtype=np.uint32)
        figures: dict[str, Any] = {
            "records": self.num_records,
            "duplicate_records": _count_repeats(self.seen.records),
            "repeated_prompts": _count_repeats(self.seen.prompts) if self.kind != "text" else None,
            "near_duplicate_records": None,
            "length": _spread(lengths) | {"unit": "characters" if self.options.tokenizer is None else "tokens"},
            "left_out_by_max_length": None,
            "messages_per_record": {str(turns): count for turns, count in sorted(self.turns.items())},
            "special_tokens_in_text": dict(self.typed.most_common()),
            "records_with_special_tokens": self.num_with_typed,
        }
        if self.options.max_length is not None:
            figures["left_out_by_max_length"] = int((lengths > self.options.max_length).sum())
        if self.seen.texts is not None:
            # Exact ones are near, too.
            figures["near_duplicate_records"] = int(self.seen.texts.are_near().sum())
        if self.preferences is not None:
            figures["preferences"] = self.preferences.figures()
        if others is not None:
            figures["in_other"] = self._overlap(others)
        return figures

    def _overlap(self, others: _Seen) -> dict[str, Any]:
        near = None
        if self.seen.texts is not None and others.texts is not None:
            near = int(self.seen.texts.are_near(others.texts).sum())
        return {
            "other": str(self.options.against),
            "records": _count_in(self.seen.records, others.records),
            "prompts": _count_in(self.seen.prompts, others.prompts) if self.kind != "text" else None,
            "near_records": near,
        }


def _read_others(options: CheckOptions) -> _Seen:
    """Hashes of the source that is compared with; its own faults are errors."""
    seen = _Seen(texts=NearDuplicates() if options.near_duplicates and is_available() else None)
    data_format = None if is_card(options.against) else options.format
    kind = options.kind or _kind_of_card(options.against) or _kind_of_format(options.against, "train", data_format)
    for place, row in read_rows(Origin(options.against, kind or "text", "train", data_format)):
        kind = kind or _kind_of_record(place, row)
        record = validate_record(row, kind, place)
        seen.add(record, kind)
    return seen


def _read_on(origin: Origin, on_fault: Callable[[Exception], None]) -> Iterator[Row]:
    """The rows of a source; what cannot be read is a fault, and no error."""
    try:
        yield from read_rows(origin, on_fault)
    except READING_ERRORS as error:
        message = str(error.__cause__ or error) if isinstance(error, READING_ERRORS[2]) else str(error)
        message = message if str(origin.source) in message else f"{origin.source}: {message}"
        on_fault(ValueError(f"{message} What stands behind it was not read."))


def _kind_of_card(source: str | Path) -> str | None:
    try:
        return kind_of_card(source)
    except (CardError, OSError):
        # The reading of the rows says what is wrong.
        return "text"


def _kind_of_format(source: str | Path, split: str, data_format: str | None) -> str | None:
    """The first kind of the format that the source's first row can become; None without a format."""
    if data_format is None:
        return None
    kinds = FORMATS[data_format].kinds
    for kind in kinds:
        try:
            if next(read_rows(Origin(source, kind, split, data_format)), None) is not None:
                return kind
        except READING_ERRORS:
            continue
    # The checking of the rows says what is wrong.
    return kinds[0]


def _kind_of_record(place: str, record: Mapping[str, Any]) -> str:
    names = {name for name, value in record.items() if value is not None}
    if names & {"responses", "chosen", "rejected"}:
        return "ranking"
    for field_name, kind in (("completion", "demonstration"), ("prompt", "prompt"), ("text", "text")):
        if field_name in names:
            return kind
    data_format = public_format_of(record)
    if data_format is not None:
        raise ValueError(
            f"{place}: its fields {', '.join(sorted(names))} are those of the public format {data_format}; say so with "
            f"--format {data_format}, or map the fields in a data card"
        )
    raise ValueError(
        f"{place}: the kind of record cannot be told from its fields {', '.join(sorted(names)) or '(none)'}; say it "
        f"with --kind, one of {', '.join(SERVING_KINDS)}, or map the fields in a data card"
    )


def _hashes(record: Mapping[str, Any], kind: str) -> tuple[int, int]:
    """Hashes of what a record says, without its further columns, and of its prompt."""
    fields = {"demonstration": ("prompt", "completion"), "ranking": ("prompt", "responses", "scores")}
    names = fields.get(kind, (kind,))
    return _hash([record[name] for name in names]), _hash(record.get("prompt"))


def _count_repeats(hashes: array) -> int:
    """How many of them stand before already."""
    return len(hashes) - len(np.unique(np.frombuffer(hashes, dtype=np.uint64)))


def _count_in(hashes: array, others: array) -> int:
    return int(np.isin(np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(others, dtype=np.uint64)).sum())


def _hash(value: Any) -> int:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _text(record: Mapping[str, Any], kind: str) -> str:
    if kind == "text":
        return record["text"]
    parts: list[Any] = [record["prompt"]]
    parts += [record["completion"]] if kind == "demonstration" else record["responses"] if kind == "ranking" else []
    return "\n".join(map(answer_text, parts))


def _spread(lengths: Sequence[int] | np.ndarray) -> dict[str, float | None]:
    if not len(lengths):
        return dict.fromkeys(("min", "median", "p95", "max", "mean"))
    return {
        "min": int(np.min(lengths)),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(np.max(lengths)),
        "mean": float(np.mean(lengths)),
    }
