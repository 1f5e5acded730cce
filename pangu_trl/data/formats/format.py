"""What a format is, and what all of them need."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..records import OnFault, RecordError, raise_fault

Row = tuple[str, Mapping[str, Any]]
Message = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A public format.

    Attributes:
        fields: The columns that it reads; all others of a row stay.
        kinds: The kinds of record that its rows can become.
        convert: Makes the fields of one record of a kind out of a row; the last argument is the row's place.
        gather: Puts rows together that make one record, or takes several out of one, before `convert`; None where each
            row is one record.
    """

    fields: tuple[str, ...]
    kinds: tuple[str, ...]
    convert: Callable[[Mapping[str, Any], str, str], dict[str, Any]]
    gather: Callable[[Iterable[Row], str, OnFault], Iterator[Row]] | None = None


def convert_rows(
    rows: Iterable[Row], name: str, data_format: Format, kind: str, on_fault: OnFault = raise_fault
) -> Iterator[Row]:
    """Yields the records of a kind that rows of a format stand for, with the places of the rows.

    Raises:
        RecordError: If a row is not of the format; the message names the row.
    """
    for where, row in data_format.gather(rows, kind, on_fault) if data_format.gather else rows:
        try:
            record = _convert(row, f"{where}: as {name}", data_format, kind)
        except RecordError as error:
            on_fault(error)
            continue
        yield where, record


def _convert(row: Mapping[str, Any], place: str, data_format: Format, kind: str) -> dict[str, Any]:
    if not any(row.get(field) is not None for field in data_format.fields):
        raise RecordError(
            f"{place} the row must have some of {', '.join(data_format.fields)}; it has {', '.join(row)}. Is it "
            "another format?"
        )
    record = data_format.convert(row, kind, place)
    kept = {column: value for column, value in row.items() if column not in data_format.fields}
    return record | {column: value for column, value in kept.items() if column not in record}


def text_of(row: Mapping[str, Any], name: str, where: str, may_be_empty: bool = False) -> str:
    """The text in a field; raises RecordError if it is no text. A field that may be empty may also be absent."""
    value = row.get(name)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise refusal(where, name, "text" if may_be_empty else "text that is not empty", value)
    return value


def list_of(row: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """The list in a field, which must not be empty."""
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise refusal(where, name, "a list that is not empty", value)
    return value


def object_of(value: Any, name: str, where: str) -> Mapping[str, Any]:
    """The object that a value must be."""
    if not isinstance(value, Mapping):
        raise refusal(where, name, "an object", value)
    return value


def number_of(row: Mapping[str, Any], name: str, where: str) -> float:
    """The number in a field."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal(where, name, "a number", value)
    return float(value)


def refusal(where: str, name: str, needed: str, found: Any) -> RecordError:
    """The error for a field that is not what the format says."""
    return RecordError(f"{where} '{name}' must be {needed}; got {repr(found)[:80]} ({type(found).__name__}).")


def of_conversation(messages: list[Message], kind: str, where: str) -> dict[str, Any]:
    """The record that a conversation stands for.

    A demonstration: all that the assistant says is to be learnt, so the prompt ends before its first message. A prompt:
    all up to the last message that somebody else than the assistant wrote.
    """
    is_assistant = [message["role"] == "assistant" for message in messages]
    if kind == "prompt":
        last = max((index for index, said in enumerate(is_assistant) if not said), default=-1)
        return {"prompt": messages[: last + 1]}
    if not any(is_assistant) or is_assistant[0]:
        raise RecordError(
            f"{where} the conversation must have a message of the assistant behind one of the user; its roles are "
            f"{', '.join(message['role'] for message in messages)}."
        )
    first = is_assistant.index(True)
    if not is_assistant[-1]:
        raise RecordError(
            f"{where} the conversation must end with the assistant; it ends with {messages[-1]['role']}. Remove what "
            "follows the last answer, or read it as prompts."
        )
    return {"prompt": messages[:first], "completion": messages[first:]}


def ranking(prompt: list[Message], answers: list[str], scores: list[float]) -> dict[str, Any]:
    """A ranking whose answers are texts to a conversation."""
    responses = [[{"role": "assistant", "content": answer}] for answer in answers]
    return {"prompt": prompt, "responses": responses, "scores": scores}
