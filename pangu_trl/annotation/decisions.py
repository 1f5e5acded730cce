"""What an annotator decided on one prompt, as it is kept, compared and exported."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Decision:
    """One annotator's ranking of the K answers to one prompt.

    Answers are numbered as the answers file has them, whatever order the page showed.

    Attributes:
        prompt: Digest of the prompt and its answers; two lines with the same content have the same.
        line: Line of the answers file, from 1.
        annotator: Name given with `--annotator`.
        ranks: Rank of each answer, 1 for the best; equal ranks are a tie, None an invalid answer. Dense: 1, 2, 2, 3.
            Empty if the prompt was skipped.
        order: Numbers of the answers, from 0, in the order in which the page showed them, first to last. Empty where
            that is not known, as of what was ranked elsewhere.
        seconds: Time on the page, pauses left out; 0 where it is not known.
        decided_at: UTC, ISO 8601 with seconds.
        file_digest: Digest of the answers file that was open.
        repeat: How many times this annotator had decided on this prompt before, because it was shown again on purpose.
        comment: What the annotator wrote about the prompt.
        attributes: A score for each answer by the name of an attribute; None where none was given.
    """

    prompt: str
    line: int
    annotator: str
    ranks: tuple[int | None, ...]
    order: tuple[int, ...]
    seconds: float
    decided_at: str
    file_digest: str
    repeat: int = 0
    comment: str = ""
    attributes: dict[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        """Whether the annotator passed the prompt on unranked."""
        return not self.ranks


def prompt_digest(record: Mapping[str, Any]) -> str:
    """Digest of a record's `prompt` and `responses`, as text or as messages, whatever else the record holds."""
    content = json.dumps([record["prompt"], record["responses"]], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class LatestDecisions(NamedTuple):
    """Decisions of which no annotator has two on the same prompt and repeat, and how many gave way to later ones."""

    decisions: list[Decision]
    replaced: int


def latest_decisions(decisions: Iterable[Decision]) -> LatestDecisions:
    """Keeps the later of two decisions of one annotator on the same prompt, which two stores may hold.

    Raises:
        ValueError: Two decisions on one prompt are on different numbers of answers.
    """
    kept: dict[tuple[str, str, int], Decision] = {}
    count = 0
    for decision in decisions:
        count += 1
        key = (decision.annotator, decision.prompt, decision.repeat)
        if key not in kept or decision.decided_at >= kept[key].decided_at:
            kept[key] = decision
    _check_sizes(kept.values())
    return LatestDecisions(list(kept.values()), count - len(kept))


def _check_sizes(decisions: Iterable[Decision]) -> None:
    sizes: dict[str, Decision] = {}
    for decision in decisions:
        if decision.skipped:
            continue
        other = sizes.setdefault(decision.prompt, decision)
        if len(other.ranks) != len(decision.ranks):
            raise ValueError(
                f"line {decision.line}: {decision.annotator} ranked {len(decision.ranks)} answers and "
                f"{other.annotator} {len(other.ranks)}; decisions on one prompt are on the same answers"
            )
