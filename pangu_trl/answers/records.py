"""Files of sampled answers: one record a prompt, with its K responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_trl.data.jsonl import read_numbered_jsonl
from pangu_trl.data.records import (
    RecordError,
    answer_text,
    fields_of,
    is_finite_number,
    public_format_of,
    validate_record,
)
from pangu_trl.data.typed_tokens import MODE_COLUMN

Record = dict[str, Any]
Scores = list[list[float]]


@dataclass(frozen=True)
class Answers:
    """The records of an answers file, {"prompt", "responses": [K], ...}, and the places they stand at.

    Attributes:
        records: One record a prompt.
        places: Place of each record for errors, such as `answers.jsonl:3`.
    """

    records: list[Record]
    places: list[str]

    @classmethod
    def load(cls, path: str | Path, special_tokens_in_text: str | None = None) -> "Answers":
        """Reads an answers file and checks prompts and responses; unlike a ranking's, responses may be empty.

        Args:
            path: The file.
            special_tokens_in_text: One of `typed_tokens.MODES`, in the place of what the records say; None leaves that.

        Raises:
            RecordError: Naming file, line and field, if a record is malformed or there is none.
        """
        answers = cls([], [])
        for line, record in read_numbered_jsonl(path):
            place = f"{path}:{line}"
            _refuse_other_records(record, place)
            _check_answers(validate_record(record, "prompt", place), place)
            if special_tokens_in_text is not None:
                record[MODE_COLUMN] = special_tokens_in_text
            answers.records.append(record)
            answers.places.append(place)
        return answers

    def scores(self, column: str) -> Scores | None:
        """Takes the scores of all answers from `column`; None if no record has it.

        Raises:
            RecordError: If only some records have it, or a score is missing or no finite number.
        """
        if not any(column in record for record in self.records):
            return None
        for record, place in zip(self.records, self.places, strict=True):
            if not _holds_numbers(record.get(column), len(record["responses"])):
                raise RecordError(
                    f"{place}: {column!r} must be a list of {len(record['responses'])} finite numbers, one an answer; "
                    f"got {record.get(column)!r}"
                )
        return [record[column] for record in self.records]

    @property
    def num_empty(self) -> int:
        """Number of empty answers."""
        return sum(is_empty(response) for record in self.records for response in record["responses"])

    @property
    def num_duplicates(self) -> int:
        """Number of answers that repeat an earlier answer to the same prompt."""
        responses_of_prompts = [record["responses"] for record in self.records]
        return sum(len(responses) - len(first_occurrences(responses)) for responses in responses_of_prompts)


def without_empty_answers(answers: Answers) -> Answers:
    """Leaves out empty answers with their entries in per-answer columns, and records with fewer than two others."""
    kept_answers = Answers([], [])
    for record, place in zip(answers.records, answers.places, strict=True):
        kept = [index for index, response in enumerate(record["responses"]) if not is_empty(response)]
        if len(kept) >= 2:
            names = {"responses"} | per_answer_columns(record)
            kept_answers.records.append(
                {name: [value[index] for index in kept] if name in names else value for name, value in record.items()}
            )
            kept_answers.places.append(place)
    return kept_answers


def per_answer_columns(record: Record) -> set[str]:
    """Names of the columns that hold one number or boolean for each of the record's answers."""
    responses = record.get("responses") or []
    return {name for name, value in record.items() if responses and _holds_numbers(value, len(responses))}


def first_occurrences(responses: Sequence[Any]) -> list[int]:
    """Places of the answers to one prompt that repeat none before them."""
    return [index for index, response in enumerate(responses) if responses.index(response) == index]


def is_empty(response: Any) -> bool:
    """Whether an answer holds nothing but blanks."""
    return not answer_text(response).strip()


def _refuse_other_records(record: Record, place: str) -> None:
    """Refuses what is no answers file; its readers take no `--format`, which other refusals advise."""
    missing = next((name for name in ("prompt", "responses") if record.get(name) is None), None)
    if missing is None:
        return
    data_format = public_format_of(record)
    source = "" if data_format is None else f"; that reads records like these with `--format {data_format}`"
    raise RecordError(
        f"{place}: '{missing}' must be present; the record has {fields_of(record)}. Answers to prompts are read here, "
        f"as `pangu-trl sample` writes them{source}"
    )


def _check_answers(record: Record, place: str) -> None:
    responses = record.get("responses")
    form = type(record["prompt"])
    if (
        not isinstance(responses, list)
        or not responses
        or not all(isinstance(response, form) for response in responses)
    ):
        raise RecordError(
            f"{place}: 'responses' must be a list of one or more answers, text or messages as the prompt is; "
            f"got {responses!r}. `pangu-trl sample` writes such files"
        )
    for index, response in enumerate(responses):
        if not isinstance(response, str) and not all(_is_message(message) for message in response):
            raise RecordError(f"{place}: 'responses[{index}]' must hold messages with a text; got {response!r}")
    finished = record.get("finished")
    if finished is not None and not _holds_numbers(finished, len(responses)):
        raise RecordError(f"{place}: 'finished' must hold one true or false an answer; got {finished!r}")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _holds_numbers(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(is_finite_number, value))
