"""Pairs without a prompt: it is what chosen and rejected have in common, up to where the answer begins.

TRL cuts at the first character that differs, which may be the middle of a word that both answers begin with, and the
tokens of the rest are then none that a policy would write.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from pangu_trl.data.records import validate_record

# Where the last answer of a dialogue in one text begins, as in HH.
TURN = re.compile(r"\n\nAssistant:")
# Without turns: behind a line or a sentence. What follows of blanks belongs to the answer, with whose word it merges.
SENTENCE_END = re.compile(r"\n|[。！？：!?:](?=\s|[^\x00-\x7f]|$)")


def canonical_ranking(record: Mapping[str, Any], row: int, source: str) -> dict[str, Any]:
    """A validated ranking, also of a pair without a prompt.

    Args:
        record: A ranking as users have it.
        row: Its number.
        source: The set that it belongs to, for errors.

    Raises:
        ValueError: It is none; the message begins with source and row.
    """
    if record.get("prompt") is None and record.get("chosen") and record.get("rejected"):
        record = with_prompt(record, f"{source} row {row}")
    return validate_record(record, "ranking", f"{source} row {row}")


def with_prompt(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Splits `chosen` and `rejected` into the prompt that they share and two answers.

    Args:
        record: Has both, as messages or as texts, and no prompt.
        where: Its place, for errors.

    Raises:
        ValueError: They have nothing in common that ends before an answer.
    """
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        length = _start_of_answers(os.path.commonprefix([chosen, rejected]))
    elif isinstance(chosen, list) and isinstance(rejected, list):
        pairs = enumerate(zip(chosen, rejected, strict=False))
        shared = next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
        # An answer begins with the assistant's message, and may not be empty.
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)
        while shared > 0 and chosen[shared - 1].get("role") not in ("user", "tool"):
            shared -= 1
        length = shared
    else:
        length = 0
    if length < 1:
        raise ValueError(
            f"{where}: 'prompt' must be present, or 'chosen' and 'rejected' must begin alike up to the end of a user's "
            "turn, a line or a sentence; where their answers begin cannot be told. Give the prompt a column of its own."
        )
    return {**record, "prompt": chosen[:length], "chosen": chosen[length:], "rejected": rejected[length:]}


def _start_of_answers(shared: str) -> int:
    ends = [match.end() for match in TURN.finditer(shared)] or [match.end() for match in SENTENCE_END.finditer(shared)]
    return ends[-1] if ends else 0
