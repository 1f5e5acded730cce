"""What goes into the files of other tools, and what comes out of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pangu_trl.annotation.decisions import Decision, prompt_digest
from pangu_trl.answers.records import Answers
from pangu_trl.data.records import RecordError, validate_record

# What our files say of a record besides the prompt and its answers has no place in those of others.
OUR_COLUMNS = ("prompt", "responses", "ranked")


@dataclass
class Exchanged:
    """Records as `pangu-trl sample` writes them, and decisions on them.

    Attributes:
        records: Prompts with their answers.
        decisions: Of annotators; those that do not say of which version of the answers have no `file_digest`.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)


def as_answer_record(prompt: Any, responses: Sequence[Any], where: str) -> dict[str, Any]:
    """A record of the answers file, checked as far as its prompt goes; `Answers.load` checks the rest.

    Raises:
        RecordError: If it is none.
    """
    record = {"prompt": prompt, "responses": list(responses), "ranked": False}
    validate_record(record, "prompt", where)
    if len(responses) < 2:
        raise RecordError(f"{where}: must hold two or more answers to rank; got {len(responses)}")
    return record


def decisions_by_prompt(answers: Answers, decisions: Iterable[Decision]) -> list[tuple[dict[str, Any], list[Decision]]]:
    """The records of an answers file, those that say the same once, each with the decisions on it in their order."""
    found: dict[str, tuple[dict[str, Any], list[Decision]]] = {}
    for record in answers.records:
        found.setdefault(prompt_digest(record), (record, []))
    for decision in decisions:
        if decision.prompt in found:
            found[decision.prompt][1].append(decision)
    return list(found.values())


def count_lost_columns(lost: Counter[str], record: dict[str, Any]) -> None:
    """Counts the columns of a record that the other form has no place for."""
    for name in record.keys() - set(OUR_COLUMNS):
        lost[f"column {name!r}"] += 1


def answer_text_or_messages(answer: Any) -> Any:
    """An answer that is one plain message of the assistant as its text, any other as it is."""
    if isinstance(answer, list) and len(answer) == 1 and answer[0].keys() == {"role", "content"}:
        message = answer[0]
        if message["role"] == "assistant" and isinstance(message["content"], str):
            return message["content"]
    return answer


def as_answer_to(prompt: Any, answer: Any) -> Any:
    """An answer in the form of its prompt: the reverse of `answer_text_or_messages`."""
    if isinstance(prompt, list) and isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    return answer
