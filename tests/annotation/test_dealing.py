"""Who gets which prompt: parts, overlap, repeats, orders, and that nothing but what is stored decides."""

import math
from collections import Counter

import pytest

from pangu_trl.annotation.dealing import REPEAT_DISTANCE, Turn, deal, indecision, make_deck
from pangu_trl.annotation.decisions import Decision

PROMPTS = [f"prompt-{number}" for number in range(200)]


def _decision(turn: Turn, annotator: str, skipped: bool = False) -> Decision:
    ranks = () if skipped else (1, 2)
    return Decision(turn.prompt, 1, annotator, ranks, (0, 1), 1.0, "2026-01-01T00:00:00Z", "file", turn.repeat)


def _work(deck, speeds, skip=lambda annotator, prompt: False, rounds=10_000):
    """Has annotators work side by side, each deciding `speed` prompts a round; each has one prompt on the page."""
    decisions = {name: [] for name in speeds}
    ranked: set[str] = set()
    pages: dict[str, Turn] = {}
    for _ in range(rounds):
        active = False
        for name, speed in speeds.items():
            for _ in range(speed):
                held = {turn.prompt for other, turn in pages.items() if other != name}
                turn = next(deal(deck, name, decisions[name], ranked, speeds, held), None)
                if turn is None:
                    pages.pop(name, None)
                    break
                active = True
                pages[name] = turn
                skipped = skip(name, turn.prompt)
                decisions[name].append(_decision(turn, name, skipped))
                if not skipped:
                    ranked.add(turn.prompt)
        if not active:
            break
    return decisions


def test_every_prompt_is_ranked_once_and_the_shared_ones_by_everybody():
    deck = make_deck(PROMPTS, overlap=0.1, order="given", seed=3, repeats=0)
    assert len(deck.shared) == 20
    decisions = _work(deck, {"ann": 1, "bob": 1, "cy": 1})
    times = Counter(decision.prompt for own in decisions.values() for decision in own)
    assert {prompt: times[prompt] for prompt in PROMPTS} == {
        prompt: 3 if prompt in deck.shared else 1 for prompt in PROMPTS
    }


def test_parts_are_even_and_the_fast_takes_over_from_the_slow():
    deck = make_deck(PROMPTS, overlap=0, order="random", seed=3, repeats=0)
    even = [len(own) for own in _work(deck, {"ann": 1, "bob": 1, "cy": 1, "di": 1}).values()]
    assert sum(even) == 200 and max(even) - min(even) <= 1
    fast = _work(deck, {"ann": 3, "bob": 1})
    assert len(fast["ann"]) == 150 and len(fast["bob"]) == 50


def test_one_who_joins_late_takes_from_each_and_changes_nothing_else():
    deck = make_deck(PROMPTS, overlap=0, order="given", seed=0, repeats=0)
    two, three = ["ann", "bob"], ["ann", "bob", "cy"]

    def own_part(name, everybody):
        # Before what belongs to others comes the own part in the order of the file.
        turns = [PROMPTS.index(turn.prompt) for turn in deal(deck, name, [], set(), everybody)]
        end = next((place for place in range(1, len(turns)) if turns[place] < turns[place - 1]), len(turns))
        return set(turns[:end])

    for name in two:
        before, after = own_part(name, two), own_part(name, three)
        assert after < before
        # A third of 100 moves on; four standard deviations of a binomial around it.
        assert abs(len(before - after) - len(before) / 3) < 4 * math.sqrt(100 * 2 / 9)
    assert own_part("cy", three) == (own_part("ann", two) - own_part("ann", three)) | (
        own_part("bob", two) - own_part("bob", three)
    )


def test_a_prompt_that_was_skipped_is_free_for_others_and_comes_not_back():
    deck = make_deck(PROMPTS[:30], overlap=0, order="given", seed=1, repeats=0)
    decisions = _work(deck, {"ann": 1, "bob": 1}, skip=lambda name, prompt: name == "ann")
    assert len(decisions["ann"]) == len({decision.prompt for decision in decisions["ann"]})
    assert {decision.prompt for decision in decisions["bob"]} == set(PROMPTS[:30])


def test_what_another_looks_at_comes_last():
    deck = make_deck(PROMPTS[:6], overlap=0, order="given", seed=1, repeats=0)
    free = [turn.prompt for turn in deal(deck, "ann", [], set(), ["ann"])]
    assert free == PROMPTS[:6]
    held = [turn.prompt for turn in deal(deck, "ann", [], set(), ["ann"], held={PROMPTS[0]})]
    assert held == [*PROMPTS[1:6], PROMPTS[0]]


def test_one_of_every_ten_ranked_prompts_comes_back_later():
    deck = make_deck(PROMPTS, overlap=0, order="given", seed=5, repeats=0.1)
    own = _work(deck, {"ann": 1})["ann"]
    assert len(own) == 220
    repeats = {decision.prompt: place for place, decision in enumerate(own) if decision.repeat}
    firsts = {decision.prompt: place for place, decision in enumerate(own) if not decision.repeat}
    # One of each ten, in the order of the file as that is how they were dealt.
    assert sorted(PROMPTS.index(prompt) // 10 for prompt in repeats) == list(range(20))
    early = [prompt for prompt in repeats if firsts[prompt] < len(own) - 2 * REPEAT_DISTANCE]
    assert len(early) >= 18
    for prompt in early:
        assert repeats[prompt] - firsts[prompt] > REPEAT_DISTANCE
    assert all(repeats[prompt] - firsts[prompt] > 1 for prompt in repeats)


def test_skipped_prompts_come_not_back_as_repeats():
    deck = make_deck(PROMPTS, overlap=0, order="given", seed=5, repeats=0.1)
    own = _work(deck, {"ann": 1}, skip=lambda name, prompt: int(prompt.split("-")[1]) % 2)["ann"]
    skipped = {decision.prompt for decision in own if decision.skipped}
    repeats = {decision.prompt for decision in own if decision.repeat}
    assert len(skipped) == 100 and len(repeats) == 10 and not repeats & skipped


def test_a_restart_at_any_moment_goes_on_with_the_same_prompt():
    deck = make_deck(PROMPTS[:60], overlap=0.2, order="random", seed=5, repeats=0.1)
    whole = _work(deck, {"ann": 1})["ann"]
    for place in range(len(whole)):
        again = make_deck(PROMPTS[:60], overlap=0.2, order="random", seed=5, repeats=0.1)
        ranked = {decision.prompt for decision in whole[:place]}
        turn = next(deal(again, "ann", whole[:place], ranked, []))
        assert (turn.prompt, turn.repeat) == (whole[place].prompt, whole[place].repeat)


def test_the_seed_decides_order_and_overlap():
    decks = [make_deck(PROMPTS, overlap=0.1, order="random", seed=seed, repeats=0) for seed in (0, 0, 1)]
    assert decks[0] == decks[1]
    assert decks[0].prompts != decks[2].prompts and decks[0].shared != decks[2].shared
    assert sorted(decks[0].prompts) == sorted(PROMPTS)


def test_small_files_share_a_prompt_and_equal_lines_are_one():
    deck = make_deck(["a", "b", "a"], overlap=0.01, order="given", seed=0, repeats=0)
    assert deck.prompts == ("a", "b") and len(deck.shared) == 1
    assert not make_deck(["a", "b"], overlap=0, order="given", seed=0, repeats=0).shared
    assert list(deal(make_deck([], overlap=0.5, order="given", seed=0, repeats=0.5), "ann", [], set(), [])) == []


def test_active_order_starts_where_the_judge_is_undecided():
    indecisions = {"sure": 0.1, "torn": 0.9, "half": 0.5, "also torn": 0.9}
    deck = make_deck(indecisions, overlap=0, order="active", seed=0, repeats=0, indecision=indecisions)
    assert deck.prompts == ("torn", "also torn", "half", "sure")


def test_indecision_is_the_mean_entropy_of_pairs():
    # sigmoid(log 3) = 3/4, whose entropy is 2 - 3/4 log2(3) = 0.811278 bits; equal scores are 1 bit.
    assert indecision([[math.log(3), 0.0]], ["a", "b"]) == pytest.approx(0.8112781)
    # Pairs: 1 bit between the equal ones, 0.811278 twice.
    assert indecision([[math.log(3), 0.0, 0.0]], ["a", "b", "c"]) == pytest.approx((1 + 2 * 0.8112781) / 3)
    # Judges that are sure of opposite things.
    assert indecision([[50.0, 0.0], [0.0, 50.0]], ["a", "b"]) == pytest.approx(1)
    assert indecision([[5000.0, -5000.0]], ["a", "b"]) == 0
    assert indecision([[-5000.0, 5000.0]], ["a", "b"]) == 0


def test_equal_answers_leave_nothing_to_decide():
    assert indecision([[1.0, 1.0]], ["same", "same"]) == 0
    assert indecision([[1.0, 1.0]], ["a", "b"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": 1.5}, "overlap is a share"),
        ({"repeats": -0.1}, "repeats is a share"),
        ({"order": "newest"}, "order must be one of given, random, active; got 'newest'"),
        ({"order": "active"}, "needs scores of a judge"),
        ({"order": "active", "indecision": {"a": 1.0}}, "1 have none"),
    ],
)
def test_what_cannot_be_dealt_is_refused(changes, message):
    arguments = {"overlap": 0.1, "order": "given", "seed": 0, "repeats": 0.0} | changes
    with pytest.raises(ValueError, match=message):
        make_deck(["a", "b"], **arguments)
