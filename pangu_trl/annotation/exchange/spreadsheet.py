"""CSV for spreadsheets: a row for each answer and decision, with a column `rank` that people may fill in.

A text that a spreadsheet would run as a formula gets an apostrophe before it, which makes it text there, and which is
taken off again when the file is read.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pangu_trl.annotation.decisions import Decision, prompt_digest
from pangu_trl.annotation.ranks import dense_ranks
from pangu_trl.answers.records import Answers
from pangu_trl.data.data_files import DataFile
from pangu_trl.data.readers import ReadOptions, rows_of_file
from pangu_trl.data.records import RecordError, is_finite_number
from pangu_trl.data.strict_json import parse_json

from .exchanged import Exchanged, as_answer_record, count_lost_columns, decisions_by_prompt

NEEDED = ("prompt_id", "answer", "prompt", "response", "annotator", "rank")
COLUMNS = (*NEEDED, "form", "repeat", "shown", "seconds", "decided_at", "file", "comment")
ATTRIBUTE = "attribute "
INVALID, SKIPPED = "invalid", "skipped"
MESSAGES = "messages"
SEPARATORS = (",", ";", "\t")
LONGEST_IN_EXCEL = 32767

# What starts a formula, in half and full width, behind blanks too, or starts a command of DDE.
_FORMULA = re.compile(r"'*\s*[=+\-@|%＝＋－＠]|'*[\t\r\n]")


def as_cell(text: str) -> str:
    """A text as a spreadsheet may have it: with an apostrophe before what would start a formula.

    So is what has apostrophes before such a start already, so that `from_cell` can tell them apart.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text of a cell; the reverse of `as_cell`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


def write_spreadsheet(path: Path, answers: Answers, decisions: Iterable[Decision]) -> Counter[str]:
    """Writes all prompts; those that nobody decided on have an empty `annotator` and `rank`.

    UTF-8 with a mark at the beginning, by which spreadsheets know it, and every text in quotes.

    Returns:
        What the file cannot hold, and how often it was there to hold.

    Raises:
        ValueError: Naming the line, if a text holds the character NUL, which ends a CSV file for many programs.
    """
    lost: Counter[str] = Counter()
    prompts = decisions_by_prompt(answers, decisions)
    lines = {prompt_digest(record): place for record, place in zip(answers.records, answers.places, strict=True)}
    attributes = sorted({name for _, given in prompts for decision in given for name in decision.attributes})
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow([*COLUMNS, *(f"{ATTRIBUTE}{name}" for name in attributes)])
        for record, given in prompts:
            count_lost_columns(lost, record)
            _check_texts(record, given, lines[prompt_digest(record)], lost)
            for decision in given or [None]:
                writer.writerows(_rows(record, decision, attributes))
    return lost


def read_spreadsheet(path: Path, at: str) -> Exchanged:
    """Reads such a file, as it was written or as people filled it in.

    The rows of one `prompt_id` are one prompt. Who ranks writes a name, and for each answer a number: 1 for the best,
    the same for a tie, or `invalid`; `skipped` for all answers passes the prompt on. Columns that are not in `NEEDED`
    may be missing. A spreadsheet may have put semicolons or tabs in the place of commas.

    Args:
        path: The file.
        at: Time of decisions without one.

    Raises:
        RecordError: Naming the line, if it is no such file.
    """
    found = Exchanged()
    for identity, prompt in _read_prompts(path).items():
        record = prompt.record(f"{path}: prompt_id {identity!r}")
        found.records.append(record)
        for (annotator, repeat), rows in prompt.given.items():
            decision = _decision(path, record, len(found.records), annotator, repeat, rows, at)
            if decision is not None:
                found.decisions.append(decision)
    return found


@dataclass
class _Prompt:
    """The rows of one prompt: its text, its answers by number, and by annotator and repeat the rows by answer."""

    text: Any
    answers: dict[int, Any] = field(default_factory=dict)
    given: dict[tuple[str, int], dict[int, tuple[str, Mapping[str, str]]]] = field(default_factory=dict)

    def add(self, where: str, row: Mapping[str, str]) -> None:
        answer = _whole(row["answer"], where, "answer")
        text, response = (_value(row, name, where) for name in ("prompt", "response"))
        if text != self.text or self.answers.setdefault(answer, response) != response:
            raise RecordError(
                f"{where}: prompt and response must be those of the rows above with this prompt_id and answer; they "
                "differ. Restore them, or give another prompt_id"
            )
        if not row["annotator"]:
            if row["rank"]:
                raise RecordError(f"{where}: 'annotator' must name who gave the rank {row['rank']!r}; it is empty")
            return
        annotator = from_cell(row["annotator"])
        rows = self.given.setdefault((annotator, _whole(row.get("repeat") or "0", where, "repeat")), {})
        if answer in rows:
            raise RecordError(
                f"{where}: {annotator} must rank answer {answer} once; it was ranked in {rows[answer][0]}. A column "
                "'repeat' with 1 says that the prompt was ranked again"
            )
        rows[answer] = (where, row)

    def record(self, where: str) -> dict[str, Any]:
        if sorted(self.answers) != list(range(1, len(self.answers) + 1)):
            numbers = ", ".join(map(str, sorted(self.answers)))
            raise RecordError(f"{where}: must have the answers 1 to {len(self.answers)}; got {numbers}")
        return as_answer_record(self.text, [self.answers[number] for number in sorted(self.answers)], where)


def _read_prompts(path: Path) -> dict[str, _Prompt]:
    prompts: dict[str, _Prompt] = {}
    for where, row in rows_of_file(DataFile(str(path), "csv"), ReadOptions(separator=_separator(path))):
        missing = [name for name in NEEDED if name not in row]
        if missing:
            raise RecordError(
                f"{path}: must have the columns {', '.join(NEEDED)}; {', '.join(missing)} missing. `pangu-trl "
                "export-annotations --form csv` writes such a file"
            )
        identity = row["prompt_id"]
        if identity not in prompts:
            prompts[identity] = _Prompt(_value(row, "prompt", where))
        prompts[identity].add(where, row)
    return prompts


def _separator(path: Path) -> str:
    """The one that splits the header; messages about a header without any are the reader's."""
    with path.open("rb") as file:
        header = file.readline().decode("utf-8-sig", "replace")
    return max(SEPARATORS, key=header.count)


def _check_texts(record: Mapping[str, Any], given: Iterable[Decision], place: str, lost: Counter[str]) -> None:
    cells = [*map(_cell, [record["prompt"], *record["responses"]]), *(decision.comment for decision in given)]
    if any("\x00" in cell for cell in cells):
        raise ValueError(f"{place}: holds the character NUL, which CSV cannot hold; choose another form")
    lost["whole texts in Excel, which cuts a cell off"] += sum(len(cell) > LONGEST_IN_EXCEL for cell in cells)
    # Files that were put together have them there, and readers take them off.
    lost["marks U+FEFF at the beginning of a line"] += sum("\n\ufeff" in cell for cell in cells)


def _rows(record: Mapping[str, Any], decision: Decision | None, attributes: Iterable[str]) -> Iterator[list[Any]]:
    is_chat = isinstance(record["prompt"], list)
    for answer, response in enumerate(record["responses"]):
        # The letter keeps spreadsheets from taking a digest for a number.
        row = [f"p{prompt_digest(record)}", answer + 1, _cell(record["prompt"]), _cell(response)]
        form = MESSAGES if is_chat else ""
        if decision is None:
            yield [*row, "", "", form, *[""] * (len(COLUMNS) - len(row) - 3), *("" for _ in attributes)]
            continue
        row += [as_cell(decision.annotator), _rank(decision, answer), form, decision.repeat]
        row += [decision.order.index(answer) + 1 if decision.order else "", decision.seconds, decision.decided_at]
        row += [decision.file_digest, as_cell(decision.comment)]
        scores = (decision.attributes.get(name) for name in attributes)
        yield [*row, *("" if given is None or given[answer] is None else given[answer] for given in scores)]


def _rank(decision: Decision, answer: int) -> int | str:
    if decision.skipped:
        return SKIPPED
    rank = decision.ranks[answer]
    return INVALID if rank is None else rank


def _cell(value: Any) -> str:
    return as_cell(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(row: Mapping[str, str], name: str, where: str) -> Any:
    if row.get("form") == MESSAGES:
        return parse_json(row[name], f"{where}: {name!r}")
    return from_cell(row[name])


def _decision(
    path: Path,
    record: Mapping[str, Any],
    line: int,
    annotator: str,
    repeat: int,
    rows: Mapping[int, tuple[str, Mapping[str, str]]],
    at: str,
) -> Decision | None:
    """What the rows of one annotator say; None if they say nothing yet."""
    numbers = range(1, len(record["responses"]) + 1)
    ranks = [rows[number][1]["rank"].strip() if number in rows else "" for number in numbers]
    if not any(ranks):
        return None
    where, first = rows[min(rows)]
    if not all(ranks):
        missing = [str(number) for number, rank in zip(numbers, ranks, strict=True) if not rank]
        raise RecordError(
            f"{where}: {annotator} must give every answer a rank, or call it {INVALID}; missing for answer "
            f"{', '.join(missing)}"
        )
    is_skipped = ranks == [SKIPPED] * len(ranks)
    values = [] if is_skipped else [_place(rank, rows[number][0]) for number, rank in zip(numbers, ranks, strict=True)]
    shown = [rows[number][1].get("shown", "") for number in numbers]
    names = [name for name in first if name.startswith(ATTRIBUTE)]
    attributes = {
        name.removeprefix(ATTRIBUTE): tuple(
            _number(rows[number][1][name], *_at(rows, number, name)) for number in numbers
        )
        for name in names
    }
    return Decision(
        prompt=prompt_digest(record),
        line=line,
        annotator=annotator,
        ranks=dense_ranks(values),
        order=_order(shown, where) if any(shown) else (),
        seconds=_number(first.get("seconds", ""), where, "seconds") or 0.0,
        decided_at=first.get("decided_at") or at,
        file_digest=first.get("file") or "",
        repeat=repeat,
        comment=from_cell(first.get("comment", "")),
        attributes={name: scores for name, scores in attributes.items() if scores.count(None) < len(scores)},
    )


def _at(rows: Mapping[int, tuple[str, Any]], number: int, name: str) -> tuple[str, str]:
    return rows[number][0], name


def _place(rank: str, where: str) -> float | None:
    if rank == INVALID:
        return None
    value = _number(rank, where, "rank")
    if value is None or value <= 0:
        raise RecordError(f"{where}: 'rank' must be a number above 0, {INVALID}, or {SKIPPED} for all; got {rank!r}")
    return value


def _order(shown: list[str], where: str) -> tuple[int, ...]:
    places = [_whole(place, where, "shown") for place in shown]
    if sorted(places) != list(range(1, len(places) + 1)):
        raise RecordError(f"{where}: 'shown' must be the places 1 to {len(places)} of the answers; got {places}")
    return tuple(places.index(place) for place in sorted(places))


def _whole(text: str, where: str, name: str) -> int:
    value = _number(text, where, name)
    if value is None or value < 0 or value != int(value):
        raise RecordError(f"{where}: {name!r} must be a whole number; got {text!r}")
    return int(value)


def _number(text: str, where: str, name: str) -> float | None:
    """A number as spreadsheets write it, with a point or a comma; None for an empty cell."""
    if not text.strip():
        return None
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        value = None
    if value is None or not is_finite_number(value):
        words = f", {INVALID}, or {SKIPPED} for all" if name == "rank" else ""
        raise RecordError(f"{where}: {name!r} must be a number{words}; got {text!r}")
    return value
