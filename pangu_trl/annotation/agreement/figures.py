"""What the decisions of several annotators say together: agreement, contradictions, time, and habits of the hand."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pangu_trl.annotation.decisions import Decision, latest_decisions
from pangu_trl.annotation.ranks import mid_ranks

from .measures import majority_cycles, ordinal_alpha, pair_counts, weighted_tau, wilson_interval

# By the name of an annotator, or by the digest of a prompt.
Rankings = dict[str, list[float]]


@dataclass(frozen=True)
class Concordance:
    """How far two rankings of each of some prompts agree.

    Attributes:
        prompts: Ranked both times.
        pairs: Pairs of their answers that neither ranking ties.
        contradictions: Those of them that the two order opposite ways.
        tied_pairs: Pairs that either ties.
        pair_agreement: Share of `pairs` that both order alike; None without such pairs.
        tau: Mean weighted Kendall tau of the prompts; None where no prompt has one.
        prompts_without_tau: Those where a ranking ties all answers.
        alpha: Krippendorff's alpha of the answers' places; None where there is none.
    """

    prompts: int
    pairs: int
    contradictions: int
    tied_pairs: int
    pair_agreement: float | None
    tau: float | None
    prompts_without_tau: int
    alpha: float | None


@dataclass(frozen=True)
class PositionBias:
    """How often the answer that the page showed first was ranked first, ties shared.

    Attributes:
        decisions: Those that say something: not all answers tied or invalid, and their order on the page known.
        share: How often; a tie of m best answers counts 1 / m.
        interval: Of the share, 95 % (Wilson).
        by_chance: The share if the place on the page meant nothing: the mean of 1 / K.
        last_share: The same of the answer that was shown last.
    """

    decisions: int
    share: float
    interval: tuple[float, float]
    by_chance: float
    last_share: float

    @property
    def beyond_chance(self) -> bool:
        """Whether chance lies outside of the interval."""
        return not self.interval[0] <= self.by_chance <= self.interval[1]


@dataclass(frozen=True)
class AnnotatorFigures:
    """One annotator.

    Attributes:
        ranked: Prompts ranked.
        skipped: Prompts passed on.
        invalid_answers: Share of the answers called invalid.
        tied_pairs: Share of the pairs of answers tied.
        seconds: Of all decisions together.
        median_seconds: Of a ranked prompt; None where no time is known.
        tenth_seconds: A tenth of the ranked prompts took no longer.
        ninetieth_seconds: A tenth took longer.
        with_others: Agreement with every other annotator, each prompt that both ranked counting once.
        alpha_without: Alpha of all annotators but this one; that it rises says that this one ranks unlike the rest.
        with_self: Agreement of hidden repeats with the decisions before; None without repeats.
        position_bias: None where no decision says anything.
    """

    ranked: int
    skipped: int
    invalid_answers: float
    tied_pairs: float
    seconds: float
    median_seconds: float | None
    tenth_seconds: float | None
    ninetieth_seconds: float | None
    with_others: Concordance
    alpha_without: float | None
    with_self: Concordance | None
    position_bias: PositionBias | None


class PairFigures(NamedTuple):
    """Two annotators and how far they agree."""

    first: str
    second: str
    concordance: Concordance


@dataclass(frozen=True)
class Dispute:
    """A prompt on which annotators contradict each other.

    Attributes:
        prompt: Its digest.
        line: Line of the answers file.
        annotators: How many ranked it.
        contradictions: Pairs of answers that some annotators order one way and some the other.
        cycles: Groups of answers, numbers from 0, whose majority goes round.
    """

    prompt: str
    line: int
    annotators: int
    contradictions: int
    cycles: list[list[int]]


@dataclass(frozen=True)
class Agreement:
    """Everything that was found.

    Attributes:
        prompts: With a ranking of anybody.
        shared_prompts: Ranked by two annotators or more.
        together: Over all pairs of annotators; its alpha is that of all at once.
        annotators: By name.
        pairs: Every two annotators who ranked a prompt in common.
        disputes: Prompts with contradictions, those with cycles first, then by contradictions.
        position_bias: Of all decisions; None where none says anything.
        replaced: Decisions left out, as the same annotator decided on the same prompt again later.
    """

    prompts: int
    shared_prompts: int
    together: Concordance
    annotators: dict[str, AnnotatorFigures]
    pairs: list[PairFigures]
    disputes: list[Dispute]
    position_bias: PositionBias | None
    replaced: int = field(default=0)


def measure_agreement(decisions: Iterable[Decision]) -> Agreement:
    """Compares the decisions of all annotators.

    Annotators are compared by their first decisions, hidden repeats only with those. Invalid answers are tied behind
    all others. Skipped prompts count as such and for nothing else.

    Raises:
        ValueError: There is no decision, or two on one prompt are on different numbers of answers.
    """
    latest = latest_decisions(decisions)
    if not latest.decisions:
        raise ValueError("there is no decision yet, so there is nothing to compare")
    firsts = [decision for decision in latest.decisions if not decision.repeat and not decision.skipped]
    by_prompt: dict[str, Rankings] = {}
    for decision in firsts:
        by_prompt.setdefault(decision.prompt, {})[decision.annotator] = mid_ranks(decision.ranks)
    shared = {prompt: rankings for prompt, rankings in by_prompt.items() if len(rankings) > 1}
    lines = {decision.prompt: decision.line for decision in reversed(latest.decisions)}
    names = sorted({decision.annotator for decision in latest.decisions})
    pairs = [PairFigures(one, two, _concordance(shared, [(one, two)])) for one, two in itertools.combinations(names, 2)]
    return Agreement(
        prompts=len(by_prompt),
        shared_prompts=len(shared),
        together=_concordance(shared, list(itertools.combinations(names, 2))),
        annotators={name: _annotator(name, latest.decisions, shared, names) for name in names},
        pairs=[pair for pair in pairs if pair.concordance.prompts],
        disputes=_disputes(shared, lines),
        position_bias=_position_bias(latest.decisions),
        replaced=latest.replaced,
    )


def _concordance(shared: Mapping[str, Rankings], pairs: Sequence[tuple[str, str]]) -> Concordance:
    """Agreement of pairs of annotators on the prompts that they share; `prompts` counts each once a pair."""
    compared = [
        (rankings[one], rankings[two])
        for rankings in shared.values()
        for one, two in pairs
        if one in rankings and two in rankings
    ]
    names = {name for pair in pairs for name in pair}
    return _compare(compared, _units([_only(rankings, names) for rankings in shared.values()]))


def _compare(compared: Sequence[tuple[list[float], list[float]]], units: Iterable[Sequence[float]]) -> Concordance:
    taus = [weighted_tau(one, two) for one, two in compared]
    defined = [tau for tau in taus if tau is not None]
    counts = [pair_counts(one, two) for one, two in compared]
    same, opposite, tied = (sum(count[place] for count in counts) for place in range(3))
    return Concordance(
        prompts=len(compared),
        pairs=same + opposite,
        contradictions=opposite,
        tied_pairs=tied,
        pair_agreement=same / (same + opposite) if same + opposite else None,
        tau=sum(defined) / len(defined) if defined else None,
        prompts_without_tau=len(taus) - len(defined),
        alpha=ordinal_alpha(units),
    )


def _units(prompts: Iterable[Rankings]) -> list[list[float]]:
    """Of each answer the places that annotators gave it, from 0 for the best to 1, so that prompts of any K compare."""
    units = []
    for rankings in prompts:
        for ranks in zip(*rankings.values(), strict=True):
            num_answers = len(next(iter(rankings.values())))
            units.append([(rank - 0.5) / num_answers for rank in ranks])
    return units


def _only(rankings: Rankings, names: Iterable[str]) -> Rankings:
    return {name: rankings[name] for name in names if name in rankings}


def _annotator(
    name: str, decisions: Sequence[Decision], shared: Mapping[str, Rankings], names: Sequence[str]
) -> AnnotatorFigures:
    own = [decision for decision in decisions if decision.annotator == name]
    ranked = [decision for decision in own if not decision.skipped]
    seconds = sorted(decision.seconds for decision in ranked if decision.seconds)
    answers = [rank for decision in ranked for rank in decision.ranks]
    pairs = [pair for decision in ranked for pair in itertools.combinations(mid_ranks(decision.ranks), 2)]
    without = [_only(rankings, set(names) - {name}) for rankings in shared.values()]
    return AnnotatorFigures(
        ranked=sum(not decision.repeat for decision in ranked),
        skipped=sum(not decision.repeat for decision in own if decision.skipped),
        invalid_answers=sum(rank is None for rank in answers) / len(answers) if answers else 0.0,
        tied_pairs=sum(one == two for one, two in pairs) / len(pairs) if pairs else 0.0,
        seconds=sum(decision.seconds for decision in own),
        median_seconds=statistics.median(seconds) if seconds else None,
        tenth_seconds=_quantile(seconds, 0.1),
        ninetieth_seconds=_quantile(seconds, 0.9),
        with_others=_with_others(name, shared),
        alpha_without=ordinal_alpha(_units(without)) if len(names) > 2 else None,
        with_self=_with_self(ranked),
        position_bias=_position_bias(own),
    )


def _with_others(name: str, shared: Mapping[str, Rankings]) -> Concordance:
    compared = [
        (rankings[name], ranks)
        for rankings in shared.values()
        if name in rankings
        for other, ranks in rankings.items()
        if other != name
    ]
    return _compare(compared, _units({"self": one, "other": two} for one, two in compared))


def _with_self(ranked: Sequence[Decision]) -> Concordance | None:
    before = {decision.prompt: mid_ranks(decision.ranks) for decision in ranked if not decision.repeat}
    compared = [
        (before[decision.prompt], mid_ranks(decision.ranks))
        for decision in ranked
        if decision.repeat and decision.prompt in before
    ]
    if not compared:
        return None
    return _compare(compared, _units({"before": one, "again": two} for one, two in compared))


def _disputes(shared: Mapping[str, Rankings], lines: Mapping[str, int]) -> list[Dispute]:
    found = []
    for prompt, rankings in shared.items():
        ranks = list(rankings.values())
        contradictions = _contradictory_pairs(ranks)
        if contradictions:
            found.append(Dispute(prompt, lines[prompt], len(ranks), contradictions, majority_cycles(ranks)))
    return sorted(found, key=lambda dispute: (-len(dispute.cycles), -dispute.contradictions, dispute.line))


def _contradictory_pairs(rankings: Sequence[Sequence[float]]) -> int:
    pairs = itertools.combinations(range(len(rankings[0])), 2)
    return sum(
        any(ranks[one] < ranks[two] for ranks in rankings) and any(ranks[one] > ranks[two] for ranks in rankings)
        for one, two in pairs
    )


def _position_bias(decisions: Iterable[Decision]) -> PositionBias | None:
    first = last = chance = 0.0
    count = 0
    for decision in decisions:
        # What ties all says nothing about places; neither does what calls all invalid, or was ranked elsewhere.
        if decision.skipped or not decision.order or len(set(decision.ranks)) < 2:
            continue
        best = [answer for answer, rank in enumerate(decision.ranks) if rank == 1]
        first += (decision.order[0] in best) / len(best)
        last += (decision.order[-1] in best) / len(best)
        chance += 1 / len(decision.ranks)
        count += 1
    if not count:
        return None
    return PositionBias(count, first / count, wilson_interval(first, count), chance / count, last / count)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values do not exceed."""
    return next((value for place, value in enumerate(ordered, 1) if place >= share * len(ordered) - 1e-9), None)
