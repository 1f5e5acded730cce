"""The four kinds of record that the stages exchange, and the checks that every record passes before it is used."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

KINDS = ("demonstration", "ranking", "prompt", "text")

ROLES = ("system", "developer", "user", "assistant", "tool")
LONGEST_QUOTE = 60

# Fields by which a public format is told that somebody did not name; of several that fit, the one of most fields.
SIGNS_OF_FORMATS = {
    ("conversations",): "sharegpt",
    ("messages",): "messages",
    ("instruction",): "alpaca",
    ("message_tree_id",): "oasst",
    ("messages", "functions"): "openai",
    ("input", "preferred_output", "non_preferred_output"): "openai",
    ("instruction", "completions"): "ultrafeedback",
    ("prompt", "response", "helpfulness"): "helpsteer",
    ("prompt", "answers"): "nectar",
    ("input", "responses", "rank"): "cheems",
}


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Demonstration(TypedDict):
    """A prompt and the completion to imitate, both text or both messages."""

    prompt: str | list[Message]
    completion: str | list[Message]


class Ranking(TypedDict):
    """A prompt and its K >= 2 scored answers; a higher score is better, ties are allowed."""

    prompt: str | list[Message]
    responses: list[str] | list[list[Message]]
    scores: list[float]


class Prompt(TypedDict):
    """A prompt to answer."""

    prompt: str | list[Message]


class Text(TypedDict):
    """A plain text for language modelling."""

    text: str


class RecordError(ValueError):
    """A record, or a file of records, that cannot be used; the message says where, which field and what is needed."""


OnFault = Callable[[RecordError], None]


def raise_fault(error: RecordError) -> None:
    """What readers do with a record or line that is wrong, unless they are given something else to do with it.

    Given another function they hand the error to it, leave out the record, and go on.
    """
    raise error


def validate_record(record: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """Checks a record and returns it in canonical form.

    Columns that the kind does not know are kept. A ranking always comes back with `prompt`, `responses` and `scores`:
    without scores the answers count as best first and get K-1, ..., 0; `chosen` and `rejected` become two responses
    with the scores 1 and 0.

    Args:
        record: The record as read; a field that is None counts as absent, but scores of responses may not be None.
        kind: One of `KINDS`.
        where: The record's place, such as `answers.jsonl:3`; error messages start with it.

    Raises:
        RecordError: If the record does not fit the kind.
    """
    if kind not in KINDS:
        raise RecordError(f"{where}: the kind of a record must be one of {', '.join(KINDS)}; got {kind!r}.")
    if kind == "text":
        _check_text(_field(record, "text", where), where, "text")
        return dict(record)
    prompt = _field(record, "prompt", where)
    _check_conversation(prompt, where, "prompt")
    if isinstance(prompt, list) and prompt[-1]["role"] not in ("user", "tool"):
        raise _refusal(where, f"prompt[{len(prompt) - 1}].role", "user or tool in the last message", prompt[-1]["role"])
    if kind == "demonstration":
        _check_completion(_field(record, "completion", where), prompt, where, "completion")
    if kind == "ranking":
        return _canonical_ranking(record, prompt, where)
    return dict(record)


def answer_text(answer: str | list[Message]) -> str:
    """The text of an answer, which may be messages."""
    return answer if isinstance(answer, str) else "".join(message.get("content") or "" for message in answer)


def messages_text(value: str | list[Message]) -> str:
    """A text, or the contents of messages, a line each; one that only calls a tool has none."""
    return value if isinstance(value, str) else "\n".join(message.get("content") or "" for message in value)


def answer_as(prompt: str | list[Message], text: str) -> str | list[Message]:
    """An answer in the form of its prompt: text, or one message of the assistant."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def is_finite_number(value: Any) -> bool:
    """Whether a value can serve as a score; None, texts, NaN, infinity and what no float can hold cannot."""
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def public_format_of(record: Mapping[str, Any]) -> str | None:
    """The public format that the fields of a record are those of; None if they are of none, or of several."""
    found = {signs: name for signs, name in SIGNS_OF_FORMATS.items() if all(_has(record, sign) for sign in signs)}
    most = max(map(len, found), default=0)
    names = {name for signs, name in found.items() if len(signs) == most}
    if not names and not _has(record, "prompt") and _has(record, "chosen") and _has(record, "rejected"):
        # The same two fields, so their values have to tell.
        chosen = record["chosen"]
        names = {"messages"} if isinstance(chosen, list) else {"hh"} if "\n\nHuman:" in str(chosen) else set()
    return names.pop() if len(names) == 1 else None


def _canonical_ranking(record: Mapping[str, Any], prompt: str | list[Message], where: str) -> dict[str, Any]:
    canonical = dict(record)
    if _has(record, "chosen") or _has(record, "rejected"):
        for field in ("responses", "scores"):
            if _has(record, field):
                raise _refusal(where, field, "absent when there is 'chosen' or 'rejected'", record[field])
        names = ["chosen", "rejected"]
        responses = [_field(record, name, where) for name in names]
        scores = [1.0, 0.0]
    else:
        responses = _field(record, "responses", where)
        if not isinstance(responses, list) or len(responses) < 2:
            raise _refusal(where, "responses", "a list of at least 2 answers", responses)
        names = [f"responses[{index}]" for index in range(len(responses))]
        scores = _canonical_scores(record, len(responses), where)
    for name, response in zip(names, responses, strict=True):
        _check_completion(response, prompt, where, name)
    _check_duplicates(names, responses, scores, where)
    for name in ("chosen", "rejected"):
        canonical.pop(name, None)
    return canonical | {"responses": responses, "scores": scores}


def _canonical_scores(record: Mapping[str, Any], num_responses: int, where: str) -> list[float]:
    if not _has(record, "scores"):
        if record.get("ranked") is False:
            raise RecordError(
                f"{where}: 'scores' must be present, because 'ranked' is false: these answers are samples that nobody "
                "has ranked yet. Run `pangu-trl score` on the file, or order the answers best first and drop 'ranked'."
            )
        if "scores" in record:
            raise RecordError(
                f"{where}: 'scores' is null: nobody scored these answers, or they stand best first and their scores "
                "are of no use. Give the scores, or if they stand best first leave the field out (in a table with "
                "scores in other rows: write them down, highest first)."
            )
        return [float(score) for score in reversed(range(num_responses))]
    scores = record["scores"]
    if not isinstance(scores, list):
        raise _refusal(where, "scores", "a list of numbers", scores)
    if len(scores) != num_responses:
        raise RecordError(
            f"{where}: 'scores' must hold one number for each of the {num_responses} responses; got {len(scores)}."
        )
    for index, score in enumerate(scores):
        # bool is an int in Python, but a JSON true among scores is a mistake.
        if isinstance(score, bool) or not isinstance(score, int | float) or not is_finite_number(score):
            raise _refusal(where, f"scores[{index}]", "a finite number", score)
    return [float(score) for score in scores]


def _check_duplicates(names: list[str], responses: list[Any], scores: list[float], where: str) -> None:
    for later in range(len(responses)):
        for earlier in range(later):
            if responses[earlier] == responses[later] and scores[earlier] != scores[later]:
                raise RecordError(
                    f"{where}: '{names[later]}' must differ from '{names[earlier]}' or have the same score; got the "
                    f"same answer with the scores {scores[earlier]} and {scores[later]}. Remove one of the two."
                )


def _check_completion(completion: Any, prompt: str | list[Message], where: str, field: str) -> None:
    _check_conversation(completion, where, field)
    if isinstance(completion, list) != isinstance(prompt, list):
        needed = "messages, as the prompt is" if isinstance(prompt, list) else "text, as the prompt is"
        raise _refusal(where, field, needed, completion)
    if isinstance(completion, list):
        # The generation prompt of a chat template opens an assistant turn, so an answer has to start with one.
        for index in (0, len(completion) - 1):
            if completion[index]["role"] != "assistant":
                raise _refusal(
                    where,
                    f"{field}[{index}].role",
                    "assistant in the first and the last message of an answer",
                    completion[index]["role"],
                )


def _check_conversation(value: Any, where: str, field: str) -> None:
    if not isinstance(value, list):
        _check_text(value, where, field)
        return
    if not value:
        raise _refusal(where, field, "text or at least one message", value)
    for index, message in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(message, Mapping) or "role" not in message or not _has_content(message):
            raise _refusal(where, place, "a message with 'role' and 'content'", message)
        if message["role"] not in ROLES:
            raise _refusal(where, f"{place}.role", f"one of {', '.join(ROLES)}", message["role"])
        content = message.get("content")
        if not (_may_be_empty(message) and content in ("", None)):
            _check_text(content, where, f"{place}.content")


def _has_content(message: Mapping[str, Any]) -> bool:
    """Columns of tables cannot tell the null content of a message that only calls a tool from none at all."""
    return "content" in message or bool(message.get("tool_calls"))


def _may_be_empty(message: Mapping[str, Any]) -> bool:
    """A tool may return nothing, and an assistant that calls one may say nothing; OpenAI's files have null there."""
    return message["role"] in ("system", "developer", "tool") or bool(message.get("tool_calls"))


def _check_text(value: Any, where: str, field: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _refusal(where, field, "text that is not empty", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _refusal(where, field, "valid Unicode", f"a lone surrogate at character {error.start}") from error


def _field(record: Mapping[str, Any], field: str, where: str) -> Any:
    if not _has(record, field):
        raise RecordError(
            f"{where}: '{field}' must be present; the record has {fields_of(record)}. Rename the field in the file, or "
            f"map it with 'columns' in a data card.{hint_of_format(record)}"
        )
    return record[field]


def fields_of(record: Mapping[str, Any]) -> str:
    """The fields that a record has, for messages."""
    return ", ".join(name for name in record if _has(record, name)) or "no field at all"


def hint_of_format(record: Mapping[str, Any]) -> str:
    """How to read a record of a public format that lacks our fields."""
    found = public_format_of(record)
    if found is None:
        return ""
    return (
        f" If it is of the public format {found}, say so: `--format {found}`, in a recipe `train_format` or "
        f"`eval_format`, in a data card `format: {found}`."
    )


def _has(record: Mapping[str, Any], field: str) -> bool:
    return record.get(field) is not None


def _refusal(where: str, field: str, needed: str, found: Any) -> RecordError:
    quote = repr(found)
    if len(quote) > LONGEST_QUOTE:
        quote = quote[:LONGEST_QUOTE] + "..."
    return RecordError(f"{where}: '{field}' must be {needed}; got {quote} ({type(found).__name__}).")
