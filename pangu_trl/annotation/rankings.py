"""Decisions of annotators as the ranking records that the reward stage reads."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pangu_trl.answers.records import Answers, is_empty, per_answer_columns
from pangu_trl.data.records import validate_record

from .decisions import Decision, latest_decisions, prompt_digest
from .ranks import mid_ranks

INVALID = ("last", "drop")
# Columns of an answers file that a ranking has itself; what a judge said before is kept under the other name.
JUDGED_BEFORE = "scores_before_annotation"


@dataclass
class Rankings:
    """Ranking records, and what was left out or changed on the way.

    Attributes:
        records: Of each prompt that was ranked and can be exported, in the order of the answers file.
        skipped: Decisions that passed a prompt on.
        repeats: Hidden repeats, which serve for agreement only.
        replaced: Decisions of which the annotator took a later one.
        unranked: Prompts that nobody ranked.
        unknown: Decisions on prompts that are not in the answers file, by the digest of the file they were taken on.
        too_few: Lines whose prompt was left with fewer than two answers once others were dropped.
        dropped_answers: Invalid answers that were dropped.
        empty_answers: Answers without text, which no reward model can score and which are always dropped.
        tied: Records without a pair, as all their answers are tied; the reward stage passes over them.
        evened: Records with equal answers that got different ranks and now share the mean.
        overwritten: Columns of the answers file whose name a column of the annotation has.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    repeats: int = 0
    replaced: int = 0
    unranked: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    too_few: list[int] = field(default_factory=list)
    dropped_answers: int = 0
    empty_answers: int = 0
    tied: int = 0
    evened: int = 0
    overwritten: set[str] = field(default_factory=set)


def make_rankings(
    answers: Answers,
    decisions: Iterable[Decision],
    invalid: str = "last",
    soft_labels: bool = False,
) -> Rankings:
    """Makes one record of each ranked prompt: its answers and columns, scores, and who said so.

    The score of an answer is K minus its place, K - 1 for the best of K alone; tied answers share the mean of their
    places, and several annotators' places are averaged (Borda), so that each counts alike. With `soft_labels` what
    each annotator gave stands in `annotator_scores`, of which the reward stage makes the share of votes for a pair.

    Args:
        answers: The answers file.
        decisions: Of any annotators.
        invalid: `last` puts invalid answers behind all others, tied; `drop` leaves out the answers that at least half
            of their annotators called invalid.
        soft_labels: Whether to add `annotator_scores`.

    Raises:
        ValueError: Decisions on one prompt are on different numbers of answers.
    """
    if invalid not in INVALID:
        raise ValueError(f"invalid must be one of {', '.join(INVALID)}; got {invalid!r}")
    latest = latest_decisions(decisions)
    found = Rankings(replaced=latest.replaced)
    by_prompt: dict[str, list[Decision]] = {}
    digests = [prompt_digest(record) for record in answers.records]
    known = set(digests)
    for decision in latest.decisions:
        if decision.prompt not in known:
            found.unknown[decision.file_digest] += 1
        elif decision.skipped:
            found.skipped += 1
        elif decision.repeat:
            found.repeats += 1
        else:
            by_prompt.setdefault(decision.prompt, []).append(decision)
    done: set[str] = set()
    for digest, record, place in zip(digests, answers.records, answers.places, strict=True):
        # A second line of the same content was ranked with the first; a single answer has nothing to be ranked against.
        if digest in done or len(record["responses"]) < 2:
            continue
        done.add(digest)
        if digest not in by_prompt:
            found.unranked += 1
        else:
            _add(found, record, by_prompt[digest], place, invalid, soft_labels)
    return found


def _add(
    found: Rankings,
    record: Mapping[str, Any],
    decisions: Sequence[Decision],
    place: str,
    invalid: str,
    soft_labels: bool,
) -> None:
    decisions = sorted(decisions, key=lambda decision: decision.annotator)
    votes = [sum(rank is None for rank in ranks) for ranks in zip(*(one.ranks for one in decisions), strict=True)]
    with_text = [answer for answer, response in enumerate(record["responses"]) if not is_empty(response)]
    kept = [answer for answer in with_text if invalid == "last" or 2 * votes[answer] < len(decisions)]
    if len(kept) < 2:
        found.too_few.append(line_of(place))
        return
    found.empty_answers += len(votes) - len(with_text)
    found.dropped_answers += len(with_text) - len(kept)
    responses = [record["responses"][answer] for answer in kept]
    each = [_scores([decision.ranks[answer] for answer in kept]) for decision in decisions]
    evened = [_even_out(responses, scores) for scores in each]
    found.evened += evened != each
    scores = [statistics.fmean(of_answer) for of_answer in zip(*evened, strict=True)]
    found.tied += len(set(scores)) == 1
    added = {"responses": responses, "scores": scores} | _provenance(
        decisions, [votes[answer] for answer in kept], kept
    )
    if soft_labels:
        added["annotator_scores"] = evened
    columns = _kept_columns(record, kept)
    found.overwritten |= columns.keys() & added.keys()
    found.records.append(validate_record(columns | added, "ranking", place))


def line_of(place: str) -> int:
    """The line in a place such as `answers.jsonl:3`."""
    return int(place.rpartition(":")[2])


def _scores(ranks: Sequence[int | None]) -> list[float]:
    return [len(ranks) - place for place in mid_ranks(ranks)]


def _even_out(responses: Sequence[Any], scores: Sequence[float]) -> list[float]:
    """Gives equal answers the mean of their scores: a record that says one of them is better teaches nothing."""
    same = [[place for place, other in enumerate(responses) if other == response] for response in responses]
    return [statistics.fmean(scores[place] for place in places) for places in same]


def _kept_columns(record: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The columns of the answers file without those that a ranking has itself, answers that were dropped left out."""
    per_answer = per_answer_columns(dict(record))
    columns = {}
    for name, value in record.items():
        if name in ("responses", "ranked"):
            continue
        name = JUDGED_BEFORE if name == "scores" else name
        columns[name] = [value[answer] for answer in kept] if name in per_answer or name == JUDGED_BEFORE else value
    return columns


def _provenance(decisions: Sequence[Decision], votes: Sequence[int], kept: Sequence[int]) -> dict[str, Any]:
    """Who ranked when, and what they said beside; the lists go by the annotators, in the order of `annotators`."""
    columns: dict[str, Any] = {
        "annotators": [decision.annotator for decision in decisions],
        "num_annotators": len(decisions),
        "decided_at": [decision.decided_at for decision in decisions],
        "annotation_seconds": [float(decision.seconds) for decision in decisions],
        "invalid_votes": list(votes),
        "comments": [decision.comment for decision in decisions],
    }
    names = sorted({name for decision in decisions for name in decision.attributes})
    for name in names:
        given = [decision.attributes[name] for decision in decisions if name in decision.attributes]
        columns[f"attribute_{name}"] = [_mean(scores[answer] for scores in given) for answer in kept]
    return columns


def _mean(scores: Iterable[float | None]) -> float | None:
    """The mean of the scores that were given; None if none was."""
    given = [score for score in scores if score is not None]
    return statistics.fmean(given) if given else None
