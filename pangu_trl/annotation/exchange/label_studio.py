"""Tasks of Label Studio with a Ranker, and the annotations on them, as its JSON export writes them.

Ours have a bucket for each rank and one for invalid answers, so that ties and invalid answers survive. A Ranker without
buckets gives one order.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from pangu_trl.annotation.decisions import Decision, prompt_digest
from pangu_trl.annotation.ranks import dense_ranks
from pangu_trl.answers.records import Answers
from pangu_trl.data.data_files import DataFile
from pangu_trl.data.readers import ReadOptions, rows_of_file
from pangu_trl.data.records import RecordError, answer_text, is_finite_number

from .exchanged import (
    Exchanged,
    answer_text_or_messages,
    as_answer_record,
    as_answer_to,
    count_lost_columns,
    decisions_by_prompt,
)

PROMPT, ITEMS, RANKER, COMMENT = "prompt", "items", "rank", "comment"
RANK_BUCKET, INVALID_BUCKET = "rank_", "invalid"
# Under this name Label Studio keeps what was moved into no bucket.
REST = "_"


def write_label_studio(path: Path, answers: Answers, decisions: Iterable[Decision]) -> Counter[str]:
    """Writes tasks for a project with the labelling interface of `labelling_interface`.

    Returns:
        What the file cannot hold, and how often it was there to hold.
    """
    lost: Counter[str] = Counter()
    tasks = []
    for record, given in decisions_by_prompt(answers, decisions):
        count_lost_columns(lost, record)
        tasks.append({"data": _data(record), "annotations": [_annotation(decision) for decision in given]})
        for decision in given:
            lost["order in which the answers were shown"] += bool(decision.order)
            lost["scores of attributes"] += bool(decision.attributes)
    path.write_text(json.dumps(tasks, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return lost


def labelling_interface(answers: Answers) -> str:
    """The XML that a project needs to show the tasks, with a bucket for each rank."""
    most = max(len(record["responses"]) for record in answers.records)
    is_chat = isinstance(answers.records[0]["prompt"], list)
    shown = (
        f'<Paragraphs name="{PROMPT}" value="${PROMPT}" nameKey="role" textKey="content" layout="dialogue"/>'
        if is_chat
        else f'<Text name="{PROMPT}" value="${PROMPT}"/>'
    )
    buckets = [(f"{RANK_BUCKET}{rank}", f"Rank {rank}") for rank in range(1, most + 1)]
    lines = [
        "<View>",
        f"  {shown}",
        f'  <List name="answers" value="${ITEMS}" title="Answers"/>',
        f'  <Ranker name="{RANKER}" toName="answers">',
        *(
            f"    <Bucket name={quoteattr(name)} title={quoteattr(title)}/>"
            for name, title in [*buckets, (INVALID_BUCKET, "Invalid")]
        ),
        "  </Ranker>",
        f'  <TextArea name="{COMMENT}" toName="{PROMPT}" placeholder="Comment"/>',
        "</View>",
    ]
    return "\n".join(lines) + "\n"


def read_label_studio(path: Path, at: str, buckets: Sequence[str] | None = None) -> Exchanged:
    """Reads a JSON export.

    Args:
        path: The file, a list of tasks or JSON lines of them.
        at: Time of decisions without one.
        buckets: Names of the Ranker's buckets, best first, where they are not ours; answers in one bucket are tied.
            `invalid` among them stands for invalid answers.

    Raises:
        RecordError: Naming the task, if it is none with a list to rank.
    """
    found = Exchanged()
    for where, task in rows_of_file(DataFile(str(path), "json"), ReadOptions()):
        data = task.get("data")
        if not isinstance(data, dict):
            raise RecordError(f"{where}: 'data' must be an object with the prompt and a list to rank; got {data!r}")
        record, ids = _record(data, where)
        found.records.append(record)
        times: Counter[str] = Counter()
        for number, annotation in enumerate(task.get("annotations") or task.get("completions") or []):
            annotator = _annotator(annotation.get("completed_by"))
            decision = _decision(
                record,
                len(found.records),
                ids,
                annotator,
                annotation,
                times[annotator],
                buckets,
                at,
                f"{where}: annotations[{number}]",
            )
            if decision is not None:
                times[annotator] += 1
                found.decisions.append(decision)
    return found


def _data(record: Mapping[str, Any]) -> dict[str, Any]:
    items = []
    for number, answer in enumerate(record["responses"], 1):
        plain = answer_text_or_messages(answer)
        item = {"id": f"answer_{number}", "title": f"Answer {number}", "body": answer_text(answer)}
        items.append(item if isinstance(plain, str) else item | {"messages": plain})
    return {PROMPT: record["prompt"], ITEMS: items}


def _annotation(decision: Decision) -> dict[str, Any]:
    result: list[dict[str, Any]] = []
    if not decision.skipped:
        placed: dict[str, list[str]] = {}
        for answer, rank in enumerate(decision.ranks):
            bucket = INVALID_BUCKET if rank is None else f"{RANK_BUCKET}{rank}"
            placed.setdefault(bucket, []).append(f"answer_{answer + 1}")
        result.append(_result(RANKER, "answers", "ranker", {"ranker": placed}))
    if decision.comment:
        result.append(_result(COMMENT, PROMPT, "textarea", {"text": [decision.comment]}))
    return {
        "completed_by": {"email": decision.annotator},
        "result": result,
        "was_cancelled": decision.skipped,
        "lead_time": decision.seconds,
        "created_at": decision.decided_at,
    }


def _result(name: str, to_name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": to_name, "type": kind, "value": value}


def _record(data: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """The record of a task, and the ids of its answers."""
    lists = {name: value for name, value in data.items() if _is_list_of_items(value)}
    if len(lists) != 1:
        raise RecordError(
            f"{where}: 'data' must hold one list of items with an 'id' to rank; got {', '.join(lists) or 'none'}"
        )
    name, items = next(iter(lists.items()))
    rest = {other: value for other, value in data.items() if other != name}
    prompt = rest.get(PROMPT, next(iter(rest.values())) if len(rest) == 1 else None)
    if prompt is None:
        raise RecordError(
            f"{where}: 'data' must hold a 'prompt' beside the list {name!r}; got {', '.join(rest) or 'nothing'}"
        )
    answers = [as_answer_to(prompt, item.get("messages", _text(item))) for item in items]
    return as_answer_record(prompt, answers, where), [str(item["id"]) for item in items]


def _is_list_of_items(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "id" in item for item in value)


def _text(item: Mapping[str, Any]) -> str:
    """The text of an item: its body, or its title where there is no body."""
    return str(item["body"] if item.get("body") is not None else item.get("title", ""))


def _annotator(completed_by: Any) -> str:
    """A name: the address or else the number of the one who completed it."""
    if isinstance(completed_by, dict):
        return str(completed_by.get("email") or completed_by.get("id"))
    return str(completed_by)


def _decision(
    record: Mapping[str, Any],
    line: int,
    ids: Sequence[str],
    annotator: str,
    annotation: Mapping[str, Any],
    repeat: int,
    buckets: Sequence[str] | None,
    at: str,
    where: str,
) -> Decision | None:
    results = annotation.get("result") or []
    placed = next((result["value"]["ranker"] for result in results if result.get("type") == "ranker"), None)
    is_skipped = bool(annotation.get("was_cancelled"))
    if placed is None and not is_skipped:
        return None
    seconds = annotation.get("lead_time")
    return Decision(
        prompt=prompt_digest(record),
        line=line,
        annotator=annotator,
        ranks=() if is_skipped else _ranks(placed, ids, buckets, where),
        order=(),
        seconds=float(seconds) if is_finite_number(seconds) else 0.0,
        decided_at=str(annotation.get("created_at") or at),
        file_digest="",
        repeat=repeat,
        comment=_comment(results),
    )


def _comment(results: Sequence[Mapping[str, Any]]) -> str:
    texts = [result["value"].get("text") for result in results if result.get("type") == "textarea"]
    return "\n".join(line for text in texts for line in ([text] if isinstance(text, str) else text or []))


def _ranks(placed: Any, ids: Sequence[str], buckets: Sequence[str] | None, where: str) -> tuple[int | None, ...]:
    if isinstance(placed, list):
        # As older versions wrote it.
        placed = {RANKER: placed}
    filled = {name: list(map(str, items)) for name, items in placed.items() if items}
    if buckets is None and len(filled) == 1 and not any(map(_our_place, filled)):
        order = next(iter(filled.values()))
        places: dict[str, float | None] = {item: place for place, item in enumerate(order)}
    else:
        places = {}
        for name, items in filled.items():
            place = _place(name, buckets, where)
            places |= dict.fromkeys(items, place)
    missing = [item for item in ids if item not in places]
    unknown = sorted(places.keys() - set(ids))
    if missing or unknown:
        raise RecordError(
            f"{where}: must place every answer of the task once; missing are {', '.join(missing) or 'none'}, unknown "
            f"{', '.join(unknown) or 'none'}"
        )
    return dense_ranks([places[item] for item in ids])


def _our_place(bucket: str) -> bool:
    return bucket == INVALID_BUCKET or re.fullmatch(rf"{RANK_BUCKET}\d+", bucket) is not None


def _place(bucket: str, buckets: Sequence[str] | None, where: str) -> float | None:
    """The place of a bucket among all, lower is better; None for that of invalid answers."""
    if bucket == INVALID_BUCKET:
        return None
    if buckets is not None and bucket in buckets:
        return buckets.index(bucket)
    if buckets is None and _our_place(bucket):
        return int(bucket.removeprefix(RANK_BUCKET))
    known = "rank_1, rank_2, ... and invalid" if buckets is None else ", ".join(buckets)
    raise RecordError(
        f"{where}: the buckets must be {known}; got {bucket!r}. Name all buckets, best first, with --buckets"
        + (f" ({REST} is what was moved into none)" if bucket == REST else "")
    )
