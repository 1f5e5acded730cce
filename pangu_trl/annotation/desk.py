"""What each annotator has on the page, and what becomes of what they decide; no page and no network in it."""

import hashlib
import math
import random
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .attributes import Attribute
from .dealing import Deck, Turn, deal
from .decisions import Decision
from .prompts import AnswersFile, file_digest, text_parts
from .store import AlreadyDecided, Kept, Store, now

# Of one text, in characters; a page asks for what follows when somebody wants to see it.
FIRST_PIECE = 20_000
PIECE = 100_000
LONGEST_COMMENT = 10_000
# Prompts whose time gives the pace.
PACE_WINDOW = 20


class Refusal(ValueError):
    """A request that says something impossible; the message is for the one who wrote the page."""


class Elsewhere(Refusal):
    """What is asked for was decided already, as in another window: the page has to show what comes next."""


@dataclass
class _Seat:
    """One annotator: the decisions that hold, what is on the page, and what was there before an undo."""

    own: list[Kept] = field(default_factory=list)
    turn: Turn | None = None
    reopened: Decision | None = None


class Desk:
    """Deals prompts to annotators and keeps their decisions.

    Args:
        store: Where decisions are kept.
        file: What there is to rank.
        deck: Its prompts in the order in which they are dealt.
        annotators: Who may take part.
        attributes: Scores that may be given to each answer.
    """

    def __init__(
        self,
        store: Store,
        file: AnswersFile,
        deck: Deck,
        annotators: Sequence[str],
        attributes: Sequence[Attribute] = (),
    ) -> None:
        self.store, self.file, self.deck, self.attributes = store, file, deck, tuple(attributes)
        self._mutex = threading.RLock()
        kept = store.decisions()
        # Those who are not here today have their parts still.
        self._everybody = {*annotators, *(one.decision.annotator for one in kept)}
        self._seats = {name: _Seat() for name in self._everybody}
        self._ranked: dict[str, int] = {}
        self.num_of_other_versions = 0
        for one in kept:
            if one.decision.prompt in file.rows:
                self._count(one)
            else:
                self.num_of_other_versions += 1
        self._file_stat = self._stat()
        self._file_changed = False

    def state(self, annotator: str) -> dict[str, Any]:
        """What the annotator's page shows: the prompt with its answers, without anything that tells their source."""
        with self._mutex:
            seat = self._seats[annotator]
            if seat.turn is None:
                seat.turn = next(self._turns(annotator), None)
            ranked = [one.decision for one in seat.own if not one.decision.skipped]
            recent = [decision.seconds for decision in ranked[-PACE_WINDOW:]]
            return {
                "annotator": annotator,
                "file": self.file.path.name,
                "file_changed": self._has_file_changed(),
                "ranked": len(ranked),
                "skipped": len(seat.own) - len(ranked),
                "left": self._num_left(seat),
                "pace": statistics.median(recent) if recent else None,
                "last": seat.own[-1].number if seat.own else None,
                "page": None if seat.turn is None else self._page(annotator, seat),
            }

    def decide(self, annotator: str, said: Mapping[str, Any]) -> None:
        """Keeps a decision; returns when it is on disk.

        Args:
            annotator: Whose page it comes from.
            said: `request`, the page's word for this call; `page`, its id; `ranks` in the order shown, or None to skip;
                `comment`, `attributes` and `seconds`.

        Raises:
            Elsewhere: The annotator has decided on this prompt already.
            Refusal: What is said is no decision.
        """
        with self._mutex:
            seat = self._seats[annotator]
            turn = self._turn(annotator, said.get("page"))
            order = self._order(annotator, turn)
            decision = Decision(
                prompt=turn.prompt,
                line=self.file.line(turn.prompt),
                annotator=annotator,
                ranks=_ranks(said.get("ranks"), order),
                order=order,
                seconds=_seconds(said.get("seconds")),
                decided_at=now(),
                file_digest=self.file.digest,
                repeat=turn.repeat,
                comment=_comment(said.get("comment", "")),
                attributes=self._scores(said.get("attributes", {}), order),
            )
            try:
                number = self.store.add(decision, _request(said.get("request")))
            except AlreadyDecided as error:
                raise Elsewhere(str(error)) from error
            if all(one.number != number for one in reversed(seat.own)) and not self.store.is_undone(number):
                self._count(Kept(number, decision))
            if turn == seat.turn:
                seat.turn = seat.reopened = None

    def undo(self, annotator: str, number: Any) -> None:
        """Takes the annotator's last decision back and puts its prompt on the page; said twice it is done once.

        Raises:
            Elsewhere: That decision is not the last any more.
        """
        with self._mutex:
            seat = self._seats[annotator]
            if not seat.own or seat.own[-1].number != number:
                raise Elsewhere("this is not the last decision any more")
            decision = self.store.undo(number, annotator)
            self._uncount(seat, len(seat.own) - 1)
            seat.turn, seat.reopened = Turn(decision.prompt, decision.repeat), decision

    def ask_skipped_again(self, annotator: str) -> None:
        """Has the prompts come back that the annotator skipped."""
        with self._mutex:
            seat = self._seats[annotator]
            for place in reversed(range(len(seat.own))):
                if seat.own[place].decision.skipped:
                    self.store.undo(seat.own[place].number, annotator)
                    self._uncount(seat, place)

    def piece(self, annotator: str, page: str, which: int, part: int, start: int) -> dict[str, Any]:
        """What follows in a long text.

        Args:
            annotator: Whose page asks.
            page: Its id.
            which: Place of the answer on the page; -1 for the prompt.
            part: Number of the part.
            start: Characters that are there already.
        """
        with self._mutex:
            turn = self._turn(annotator, page)
            record, order = self.file.record(turn.prompt), self._order(annotator, turn)
        if not -1 <= which < len(order):
            raise Refusal(f"there is no answer {which}")
        parts = text_parts(record["prompt"] if which == -1 else record["responses"][order[which]])
        if not 0 <= part < len(parts) or start < 0:
            raise Refusal(f"there is no part {part}, or no place {start} in it")
        return {"text": parts[part]["text"][start : start + PIECE]}

    def _turns(self, annotator: str) -> Any:
        # Of the others: who is dealt a prompt has none.
        held = {seat.turn.prompt for seat in self._seats.values() if seat.turn is not None}
        own = [one.decision for one in self._seats[annotator].own]
        return deal(self.deck, annotator, own, self._ranked.keys(), self._everybody, held)

    def _page(self, annotator: str, seat: _Seat) -> dict[str, Any]:
        turn = seat.turn
        record, order = self.file.record(turn.prompt), self._order(annotator, turn)
        page = {
            "id": self._page_id(annotator, turn),
            "prompt": _first_pieces(record["prompt"]),
            "answers": [_first_pieces(record["responses"][index]) for index in order],
            "draft": None,
        }
        if seat.reopened is not None:
            # In the order of the page, which is that of then: the seed is stored.
            page["draft"] = {
                "ranks": [seat.reopened.ranks[index] for index in order] if seat.reopened.ranks else None,
                "comment": seat.reopened.comment,
                "attributes": {
                    name: [scores[index] for index in order] for name, scores in seat.reopened.attributes.items()
                },
                "seconds": seat.reopened.seconds,
            }
        return page

    def _page_id(self, annotator: str, turn: Turn) -> str:
        """A name of what is on a page that tells neither the prompt's line nor that it is a repeat."""
        words = f"{self.deck.seed}\n{annotator}\n{turn.prompt}\n{turn.repeat}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(words, digest_size=12).hexdigest()

    def _turn(self, annotator: str, page: Any) -> Turn:
        turn = self._seats[annotator].turn
        if turn is not None and self._page_id(annotator, turn) == page:
            return turn
        # A page from before a restart, or another window.
        for prompt in self.file.rows:
            for repeat in (0, 1):
                if self._page_id(annotator, Turn(prompt, repeat)) == page:
                    return Turn(prompt, repeat)
        raise Elsewhere("this prompt is not in the answers file any more")

    def _order(self, annotator: str, turn: Turn) -> tuple[int, ...]:
        order = list(range(len(self.file.record(turn.prompt)["responses"])))
        random.Random(f"{self.deck.seed}\n{annotator}\n{turn.prompt}\n{turn.repeat}").shuffle(order)
        return tuple(order)

    def _scores(self, said: Any, order: Sequence[int]) -> dict[str, tuple[float | None, ...]]:
        if not isinstance(said, dict) or not said.keys() <= {attribute.name for attribute in self.attributes}:
            raise Refusal(f"attributes must map names of the attributes to scores; got {said!r}")
        scores = {}
        for attribute in self.attributes:
            given = said.get(attribute.name)
            if given is None:
                continue
            if (
                not isinstance(given, list)
                or len(given) != len(order)
                or not all(score is None or attribute.takes(score) for score in given)
            ):
                raise Refusal(
                    f"{attribute.name} must be a list of {len(order)} scores from {attribute.lowest} to "
                    f"{attribute.highest} or null; got {given!r}"
                )
            if any(score is not None for score in given):
                scores[attribute.name] = tuple(None if s is None else float(s) for s in _as_in_file(given, order))
        return scores

    def _count(self, one: Kept) -> None:
        self._seats[one.decision.annotator].own.append(one)
        if not one.decision.skipped:
            self._ranked[one.decision.prompt] = self._ranked.get(one.decision.prompt, 0) + 1

    def _uncount(self, seat: _Seat, place: int) -> None:
        decision = seat.own.pop(place).decision
        if not decision.skipped:
            self._ranked[decision.prompt] -= 1
            if not self._ranked[decision.prompt]:
                del self._ranked[decision.prompt]

    def _num_left(self, seat: _Seat) -> int:
        seen = {one.decision.prompt for one in seat.own}
        shared, ranked = self.deck.shared, self._ranked
        return sum(prompt not in seen and (prompt in shared or prompt not in ranked) for prompt in self.deck.prompts)

    def _stat(self) -> tuple[int, int] | None:
        try:
            stat = self.file.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _has_file_changed(self) -> bool:
        """Whether the file is another by now; it is read again only when its time or size is."""
        stat = self._stat()
        if stat != self._file_stat:
            self._file_stat = stat
            try:
                self._file_changed = stat is None or file_digest(self.file.path) != self.file.digest
            except OSError:
                self._file_changed = True
        return self._file_changed


def _first_pieces(value: Any) -> list[dict[str, Any]]:
    parts = text_parts(value)
    return [
        {
            "role": part["role"],
            "text": part["text"][:FIRST_PIECE],
            "shown": min(len(part["text"]), FIRST_PIECE),
            "length": len(part["text"]),
        }
        for part in parts
    ]


def _as_in_file(shown: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """Values of answers in the order shown, in that of the file."""
    placed: list[Any] = [None] * len(order)
    for value, index in zip(shown, order, strict=True):
        placed[index] = value
    return placed


def _ranks(said: Any, order: Sequence[int]) -> tuple[int | None, ...]:
    if said is None:
        return ()
    if (
        not isinstance(said, list)
        or len(said) != len(order)
        or not all(rank is None or type(rank) is int for rank in said)
    ):
        raise Refusal(f"ranks must be a list of {len(order)} whole numbers or null, one an answer; got {said!r}")
    given = {rank for rank in said if rank is not None}
    if given != set(range(1, len(given) + 1)):
        raise Refusal(f"ranks must count from 1 without gaps; got {said!r}")
    return tuple(_as_in_file(said, order))


def _seconds(said: Any) -> float:
    if type(said) not in (int, float) or not math.isfinite(said) or said < 0:
        raise Refusal(f"seconds must be a number, 0 or greater; got {said!r}")
    return round(float(said), 3)


def _comment(said: Any) -> str:
    if not isinstance(said, str) or len(said) > LONGEST_COMMENT:
        raise Refusal(f"comment must be a text of {LONGEST_COMMENT} characters at most")
    # SQLite and every file that this goes to want UTF-8, which has no lone surrogates.
    return said.encode("utf-8", "replace").decode("utf-8")


def _request(said: Any) -> str:
    if not isinstance(said, str) or not 8 <= len(said) <= 64 or not said.isascii():
        raise Refusal("request must be a word of the page's own, of 8 to 64 letters")
    return said
