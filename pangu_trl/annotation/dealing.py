"""Who gets which prompt next: the order, what all annotators share, and what comes back hidden.

Every choice is a digest of the stored seed and of what is chosen, none is a state. So the decisions that are stored say
what comes next, after a restart as well as without one.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .decisions import Decision

ORDERS = ("given", "random", "active")
# Other decisions of the annotator between a prompt and its hidden repeat, while there are others.
REPEAT_DISTANCE = 10


@dataclass(frozen=True)
class Deck:
    """The prompts in the order in which they are dealt, and the rules.

    Attributes:
        prompts: Digest of each prompt, each once.
        shared: Those of them that every annotator gets.
        seed: Of everything that is drawn.
        repeats: Share of the prompts that an annotator ranked which come back to the same annotator.
    """

    prompts: tuple[str, ...]
    shared: frozenset[str]
    seed: int
    repeats: float


@dataclass(frozen=True)
class Turn:
    """A prompt to show, and how many times this annotator had it before: 0, or 1 for a hidden repeat."""

    prompt: str
    repeat: int = 0


def make_deck(
    prompts: Iterable[str],
    overlap: float,
    order: str,
    seed: int,
    repeats: float,
    indecision: Mapping[str, float] | None = None,
) -> Deck:
    """Puts the prompts in order and draws those that every annotator gets.

    Args:
        prompts: Digest of each prompt, as the answers file has them; a second line of the same content is dealt with
            the first.
        overlap: Share of the prompts that every annotator gets; with more than 0 it is at least one prompt. They are
            drawn at random in every order, so that agreement on them speaks for the others.
        order: `given` as in the file, `random` by the seed, `active` with the highest indecision first.
        seed: Of the order and of the overlap.
        repeats: Share of an annotator's ranked prompts that come back, see `deal`.
        indecision: Of each prompt, as `indecision` gives it; `active` needs it, the others ignore it.
    """
    for name, share in (("overlap", overlap), ("repeats", repeats)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share of the prompts, from 0 to 1; got {share:g}")
    given = tuple(dict.fromkeys(prompts))
    if order == "given":
        ordered = given
    elif order == "random":
        ordered = tuple(sorted(given, key=lambda prompt: _draw(seed, "order", prompt)))
    elif order == "active":
        if indecision is None:
            raise ValueError("order active needs scores of a judge for every prompt; none were given")
        missing = [prompt for prompt in given if prompt not in indecision]
        if missing:
            raise ValueError(f"order active needs scores for every prompt; {len(missing)} have none")
        # Sorting keeps the order of the file among equals.
        ordered = tuple(sorted(given, key=lambda prompt: -indecision[prompt]))
    else:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
    num_shared = min(len(given), max(1, round(overlap * len(given)))) if overlap else 0
    shared = sorted(given, key=lambda prompt: _draw(seed, "overlap", prompt))[:num_shared]
    return Deck(ordered, frozenset(shared), seed, repeats)


def deal(
    deck: Deck,
    annotator: str,
    own: Sequence[Decision],
    ranked: Collection[str],
    annotators: Iterable[str],
    held: Collection[str] = frozenset(),
) -> Iterator[Turn]:
    """What one annotator gets from here on, as long as nobody decides anything: the first is the next to show.

    1. A hidden repeat that is due. Of every 1 / `repeats` prompts that the annotator ranked one is drawn to come back,
       once `REPEAT_DISTANCE` other decisions lie between.
    2. In the order of the deck: the prompts that everybody gets, and of the others the annotator's own part. A prompt
       belongs to that annotator whose digest together with it is the highest (rendezvous hashing): parts are even
       within chance, and one who joins late takes about as much from each of the others and changes nothing else.
    3. What belongs to others and is free still, as they may be slower or gone.
    4. What another annotator looks at right now.
    5. Repeats that are not due yet.

    A prompt that is not shared is free until somebody ranked it; who skips it frees it for the others.

    Args:
        deck: The prompts and the rules.
        annotator: Who is to get the next prompt.
        own: The annotator's decisions, in the order in which they were taken.
        ranked: Prompts that anybody ranked, the annotator included; skipped ones do not count.
        annotators: Everybody who takes part so far; the annotator may be missing.
        held: Prompts that others have on their pages.
    """
    due, later = _repeats(deck, annotator, own)
    yield from (Turn(prompt, 1) for prompt in due)
    everybody = sorted({annotator, *annotators})
    seen = {decision.prompt for decision in own}
    of_others, looked_at = [], []
    for prompt in deck.prompts:
        if prompt in seen:
            continue
        if prompt in deck.shared:
            yield Turn(prompt)
        elif prompt in ranked:
            continue
        elif prompt in held:
            looked_at.append(prompt)
        elif _owner(deck.seed, prompt, everybody) == annotator:
            yield Turn(prompt)
        else:
            of_others.append(prompt)
    yield from map(Turn, of_others)
    yield from map(Turn, looked_at)
    yield from (Turn(prompt, 1) for prompt in later)


def indecision(scores: Sequence[Sequence[float]], responses: Sequence[object]) -> float:
    """How little the judges can tell the answers to a prompt apart: 0 for sure of every pair, 1 for of none.

    The entropy, in bits, of the probability that one answer is better than the other, averaged over the pairs. That
    probability is the mean of the judges' sigmoid(difference of scores) (Bradley-Terry); judges that are sure of
    opposite things are undecided together. Pairs of equal answers count as decided: nobody could rank them.

    Args:
        scores: Of each answer by each judge, (M judges, K answers).
        responses: The K answers.
    """
    entropies = []
    for left in range(len(responses)):
        for right in range(left + 1, len(responses)):
            if responses[left] == responses[right]:
                entropies.append(0.0)
                continue
            sure = [_sigmoid(judge[left] - judge[right]) for judge in scores]
            entropies.append(_entropy(sum(sure) / len(sure)))
    return sum(entropies) / len(entropies) if entropies else 0.0


def _repeats(deck: Deck, annotator: str, own: Sequence[Decision]) -> tuple[list[str], list[str]]:
    """The prompts to show again: those that are due, and those that are not yet."""
    firsts = [place for place, decision in enumerate(own) if not decision.repeat and not decision.skipped]
    repeated = {decision.prompt for decision in own if decision.repeat}
    due, later = [], []
    # The small addend keeps 30 * 0.1 from being 2.
    for number in range(math.floor(len(firsts) * deck.repeats + 1e-9)):
        start, end = (math.ceil((number + step) / deck.repeats - 1e-9) for step in (0, 1))
        # Never the last of them, which at the end of a file would come back at once.
        window = firsts[start : max(end - 1, start + 1)]
        drawn = min(window, key=lambda place: _draw(deck.seed, "repeat", annotator, own[place].prompt))
        if own[drawn].prompt not in repeated:
            (due if len(own) - 1 - drawn >= REPEAT_DISTANCE else later).append(own[drawn].prompt)
    return due, later


def _owner(seed: int, prompt: str, annotators: Sequence[str]) -> str:
    return max(annotators, key=lambda annotator: _draw(seed, "part", annotator, prompt))


def _draw(seed: int, *what: str) -> bytes:
    """A number that looks random and is always the same for the same words."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8)
    for word in what:
        # A byte that UTF-8 has not keeps the words apart.
        digest.update(b"\xff" + word.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _sigmoid(difference: float) -> float:
    # Either form would overflow where the other is used.
    if difference >= 0:
        return 1 / (1 + math.exp(-difference))
    return math.exp(difference) / (1 + math.exp(difference))


def _entropy(probability: float) -> float:
    return sum(-share * math.log2(share) for share in (probability, 1 - probability) if share > 0)
