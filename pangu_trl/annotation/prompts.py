"""The answers file as annotators get it: prompts by their digest, and texts in parts that a page can show."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_trl.answers.records import Answers
from pangu_trl.data.records import RecordError

from .decisions import prompt_digest

# Fields of a message besides its content that a reader must see to judge it.
SHOWN_FIELDS = ("reasoning_content", "thinking", "tool_calls", "function_call")


@dataclass(frozen=True)
class AnswersFile:
    """What there is to rank in one version of an answers file.

    Attributes:
        path: The file.
        digest: Of its bytes.
        answers: Its records.
        rows: Index of the record of each prompt, by the prompt's digest, in the order of the file.
        num_repeated: Lines that say the same as one before them, and are shown with it once.
        num_single: Lines with a single answer, which nothing can be ranked against.
    """

    path: Path
    digest: str
    answers: Answers
    rows: dict[str, int]
    num_repeated: int
    num_single: int

    @classmethod
    def load(cls, path: str | Path) -> "AnswersFile":
        """Reads an answers file.

        Raises:
            RecordError: Naming file, line and field, if a record is malformed or none has two answers.
        """
        # What is no file is said better by the reader.
        digest = file_digest(path) if Path(path).is_file() else None
        answers = Answers.load(path)
        if file_digest(path) != digest:
            raise RecordError(f"{path}: changed while it was read; start again when it is whole")
        rows: dict[str, int] = {}
        num_repeated = num_single = 0
        for row, record in enumerate(answers.records):
            if len(record["responses"]) < 2:
                num_single += 1
                continue
            prompt = prompt_digest(record)
            num_repeated += prompt in rows
            rows.setdefault(prompt, row)
        if not rows:
            raise RecordError(
                f"{path}: must hold a record with two or more 'responses' to rank; each has one. `pangu-trl sample "
                "--num-answers 4` draws several"
            )
        return cls(Path(path), digest, answers, rows, num_repeated, num_single)

    def record(self, prompt: str) -> dict[str, Any]:
        """The record of a prompt."""
        return self.answers.records[self.rows[prompt]]

    def line(self, prompt: str) -> int:
        """The line that a prompt stands at, from 1."""
        return int(self.answers.places[self.rows[prompt]].rpartition(":")[2])


def file_digest(path: str | Path) -> str:
    """Digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def text_parts(value: str | list[Mapping[str, Any]]) -> list[dict[str, str | None]]:
    """What a page shows of a prompt or an answer: texts, each with the role that says it, or None.

    An answer that is one message of the assistant is a text. What a message holds besides its content, as calls of
    tools, is a part of its own.
    """
    if isinstance(value, str):
        return [{"role": None, "text": value}]
    parts: list[dict[str, str | None]] = []
    for message in value:
        for name in SHOWN_FIELDS:
            if message.get(name):
                said = message[name] if isinstance(message[name], str) else json.dumps(message[name], indent=1)
                parts.append({"role": name, "text": said})
        if message.get("content"):
            parts.append({"role": message["role"], "text": message["content"]})
    if len(parts) == len(value) == 1 and parts[0]["role"] == "assistant":
        return [{"role": None, "text": parts[0]["text"]}]
    return parts or [{"role": None, "text": ""}]
