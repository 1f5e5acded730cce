"""Records of Argilla with a RankingQuestion, as `Dataset.records.to_json` writes them (Argilla 2).

What older versions wrote is read too: the records of a FeedbackDataset (Argilla 1), and rankings with a rank for each
value, which hold ties.
"""

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pangu_trl.annotation.decisions import Decision, prompt_digest
from pangu_trl.annotation.ranks import dense_ranks
from pangu_trl.answers.records import Answers
from pangu_trl.data.data_files import DataFile
from pangu_trl.data.readers import ReadOptions, rows_of_file
from pangu_trl.data.records import RecordError

from .exchanged import (
    Exchanged,
    answer_text_or_messages,
    as_answer_record,
    as_answer_to,
    count_lost_columns,
    decisions_by_prompt,
)

PROMPT, ANSWER = "prompt", "response_"
RANKING, INVALID, COMMENT = "ranking", "invalid", "comment"
# Argilla knows annotators by UUIDs. These are made of their names, and the names stand in the metadata.
NAMES = "annotators"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pangu-trl.invalid/annotators")
# States of a response that is no decision, or passes the record on.
UNDECIDED, DISCARDED = ("draft", "pending"), "discarded"


def user_id(annotator: str) -> str:
    """The UUID that stands for an annotator's name; one that is a UUID stands for itself."""
    try:
        return str(uuid.UUID(annotator))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, annotator))


def write_argilla(path: Path, answers: Answers, decisions: Iterable[Decision]) -> Counter[str]:
    """Writes records with the fields `prompt` and `response_1`, ..., for a dataset whose settings have

    - a RankingQuestion `ranking` of the values `response_1`, ...,
    - a MultiLabelQuestion `invalid` of the same values and a TextQuestion `comment`, both not required,
    - a TermsMetadataProperty `annotators`.

    Returns:
        What the file cannot hold, and how often it was there to hold.
    """
    lost: Counter[str] = Counter()
    records = []
    for record, given in decisions_by_prompt(answers, decisions):
        count_lost_columns(lost, record)
        fields = {PROMPT: record["prompt"]}
        for number, answer in enumerate(record["responses"], 1):
            fields[f"{ANSWER}{number}"] = answer_text_or_messages(answer)
        responses: dict[str, list[dict[str, Any]]] = {}
        kept = []
        for decision in given:
            _count_lost(lost, decision)
            if not decision.repeat and not decision.skipped:
                kept.append(decision.annotator)
                for question, value in _response(decision).items():
                    said = {"value": value, "user_id": user_id(decision.annotator)}
                    responses.setdefault(question, []).append(said)
        records.append(
            {
                "id": prompt_digest(record),
                "fields": fields,
                "metadata": {NAMES: kept} if kept else {},
                "suggestions": {},
                "responses": responses,
                "vectors": {},
                "_server_id": None,
            }
        )
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return lost


def read_argilla(path: Path, at: str) -> Exchanged:
    """Reads a list of records, or JSON lines of them.

    The fields that the ranking names are the answers, in the order of the fields; what is before them is the prompt. Of
    fields that no ranking names yet those called `response...`, `reply...` or `answer...` are the answers.

    Raises:
        RecordError: Naming the record, if it is none with a ranking of its fields.
    """
    found = Exchanged()
    for where, row in rows_of_file(DataFile(str(path), "json"), ReadOptions()):
        fields = row.get("fields")
        if not isinstance(fields, dict):
            raise RecordError(f"{where}: 'fields' must be an object with the prompt and its answers; got {fields!r}")
        fields = {name: value for name, value in fields.items() if value is not None}
        given = list(_responses(row, where))
        names = _answer_fields(fields, [values for _, values in given], where)
        prompts = [name for name in fields if name not in names]
        if len(prompts) != 1:
            raise RecordError(
                f"{where}: 'fields' must hold one prompt beside the answers {', '.join(names)}; got "
                f"{', '.join(prompts) or 'none'}. Put together what belongs to the prompt"
            )
        prompt = fields[prompts[0]]
        record = as_answer_record(prompt, [as_answer_to(prompt, fields[name]) for name in names], where)
        found.records.append(record)
        spoken = (row.get("metadata") or {}).get(NAMES) or []
        people = {user_id(name): name for name in ([spoken] if isinstance(spoken, str) else spoken)}
        for user, values in given:
            decision = _decision(record, len(found.records), names, people.get(user, user), values, at, where)
            found.decisions.append(decision)
    return found


def _response(decision: Decision) -> dict[str, Any]:
    """Questions and what a decision says to them; answers that tie stand in the order of the file."""
    order = sorted(range(len(decision.ranks)), key=lambda answer: decision.ranks[answer] or len(decision.ranks) + 1)
    said: dict[str, Any] = {RANKING: [f"{ANSWER}{answer + 1}" for answer in order]}
    invalid = [f"{ANSWER}{answer + 1}" for answer, rank in enumerate(decision.ranks) if rank is None]
    if invalid:
        said[INVALID] = invalid
    if decision.comment:
        said[COMMENT] = decision.comment
    return said


def _count_lost(lost: Counter[str], decision: Decision) -> None:
    if decision.repeat:
        lost["hidden repeat"] += 1
        return
    if decision.skipped:
        lost["skipped prompt"] += 1
        return
    valid = [rank for rank in decision.ranks if rank is not None]
    if len(set(valid)) < len(valid):
        lost["tie, broken by the order of the file"] += 1
    for name, is_there in (
        ("order in which the answers were shown", decision.order),
        ("time of the decision", decision.decided_at),
        ("seconds", decision.seconds),
        ("scores of attributes", decision.attributes),
    ):
        lost[name] += bool(is_there)


def _responses(row: Mapping[str, Any], where: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """What each user said to each question; {} where the record was passed on."""
    responses = row.get("responses") or {}
    if isinstance(responses, dict):
        users: dict[str, dict[str, Any]] = {}
        discarded = set()
        for question, said in responses.items():
            for response in said if isinstance(said, list) else []:
                user = str(response.get("user_id"))
                if response.get("status") in UNDECIDED:
                    continue
                discarded |= {user} if response.get("status") == DISCARDED else set()
                users.setdefault(user, {})[question] = response.get("value")
        yield from ((user, {} if user in discarded else values) for user, values in users.items())
        return
    if not isinstance(responses, list):
        raise RecordError(
            f"{where}: 'responses' must be an object of questions, or a list of users'; got {responses!r}"
        )
    for response in responses:
        values = {name: item.get("value") for name, item in (response.get("values") or {}).items()}
        if response.get("status") not in UNDECIDED:
            yield str(response.get("user_id")), {} if response.get("status") == DISCARDED else values


def _answer_fields(fields: Mapping[str, Any], said: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    rankings = [ranking for values in said for ranking in [_ranking(values)] if ranking]
    if rankings:
        names = {name for ranking in rankings for name, _ in ranking}
        unknown = sorted(names - fields.keys())
        if unknown:
            raise RecordError(
                f"{where}: the ranking must name fields of the record, {', '.join(fields)}; got {', '.join(unknown)}"
            )
        return [name for name in fields if name in names]
    names = [name for name in fields if name.lower().startswith(("response", "reply", "answer"))]
    if len(names) < 2:
        raise RecordError(
            f"{where}: must have a ranking, or two fields whose names begin with response, reply or answer; got "
            f"{', '.join(fields)}"
        )
    return names


def _ranking(values: Mapping[str, Any]) -> list[tuple[str, float]] | None:
    """The values of a RankingQuestion with their ranks, whatever the question is called; None if there is none.

    A ranking is a list of values in their order, or of objects with value and rank, or an object of two such lists.
    """
    for question, value in values.items():
        if question == INVALID or not value:
            continue
        if isinstance(value, dict) and value.keys() >= {"value", "rank"}:
            value = [{"value": name, "rank": rank} for name, rank in zip(value["value"], value["rank"], strict=True)]
        if not isinstance(value, list):
            continue
        if all(isinstance(item, str) for item in value):
            return [(name, place) for place, name in enumerate(value, 1)]
        if all(isinstance(item, dict) and isinstance(item.get("value"), str) for item in value):
            return [(item["value"], item.get("rank") or place) for place, item in enumerate(value, 1)]
    return None


def _decision(
    record: Mapping[str, Any],
    line: int,
    names: Sequence[str],
    annotator: str,
    values: Mapping[str, Any],
    at: str,
    where: str,
) -> Decision:
    ranking = dict(_ranking(values) or {})
    invalid = values.get(INVALID) or []
    missing = [name for name in names if name not in ranking and name not in invalid]
    if values and missing:
        raise RecordError(f"{where}: {annotator} must rank all answers; missing are {', '.join(missing)}")
    comment = values.get(COMMENT)
    return Decision(
        prompt=prompt_digest(record),
        line=line,
        annotator=annotator,
        ranks=dense_ranks([None if name in invalid else ranking[name] for name in names] if values else []),
        order=(),
        seconds=0.0,
        decided_at=at,
        file_digest="",
        comment=comment if isinstance(comment, str) else "",
    )
