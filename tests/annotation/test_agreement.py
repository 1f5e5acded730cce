"""Figures of a small table by hand, and the command with its page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pangu_trl import cli
from pangu_trl.annotation.agreement.figures import measure_agreement
from pangu_trl.annotation.agreement.page import render
from pangu_trl.annotation.agreement.words import WORDS
from pangu_trl.annotation.decisions import Decision, prompt_digest
from pangu_trl.annotation.store import Store
from pangu_trl.data.jsonl import write_jsonl

PROMPTS = [
    {"prompt": "First <b>?", "responses": ["a", "b", "c"]},
    {"prompt": "Second?", "responses": ["d", "e"]},
    {"prompt": "Third?", "responses": ["f", "g"]},
]


def decide(annotator, place, ranks, order, seconds=10.0, repeat=0):
    digest = prompt_digest(PROMPTS[place])
    time = f"2026-01-01T00:{place:02}:{repeat:02}Z"
    return Decision(digest, place + 1, annotator, ranks, order, seconds, time, "file", repeat)


@pytest.fixture
def decisions():
    return [
        decide("ann", 0, (1, 2, 3), (0, 1, 2), 10),
        decide("ann", 1, (1, 2), (1, 0), 20),
        decide("ann", 2, (1, None), (0, 1), 60),
        decide("ann", 0, (2, 1, 3), (0, 1, 2), 5, repeat=1),
        decide("bob", 0, (1, 3, 2), (2, 1, 0)),
        decide("bob", 1, (2, 1), (1, 0)),
        decide("cy", 0, (1, 2, 3), (0, 2, 1)),
        decide("cy", 1, (), (0, 1)),
    ]


def test_two_annotators_by_hand(decisions):
    agreement = measure_agreement(decisions)
    pairs = {(pair.first, pair.second): pair.concordance for pair in agreement.pairs}
    assert (agreement.prompts, agreement.shared_prompts) == (3, 2)
    found = pairs["ann", "bob"]
    # Of the three pairs of the first prompt two are alike, the one of the second is opposite.
    assert (found.prompts, found.pairs, found.contradictions, found.tied_pairs) == (2, 4, 2, 0)
    assert found.pair_agreement == 0.5
    # 6/11 as in the tests of the measures, and -1.
    assert found.tau == pytest.approx((6 / 11 - 1) / 2)
    # Places 1/6, 1/4, 1/2, 3/4, 5/6 twice each have the middles 1, 3, 5, 7, 9 of 10. Observed: four answers differ by
    # 4, 4 * 2 * 16 / 10 = 12.8. Expected: 4 (8 * 4 + 6 * 16 + 4 * 36 + 2 * 64) / 90 = 17.78.
    assert found.alpha == pytest.approx(1 - 12.8 / (1600 / 90))
    assert pairs["ann", "cy"].pair_agreement == pairs["ann", "cy"].tau == pairs["ann", "cy"].alpha == 1


def test_all_annotators_together_by_hand(decisions):
    agreement = measure_agreement(decisions)
    # ann-bob 2 and 1 pairs alike and opposite, and 0 and 1; ann-cy 3 alike; bob-cy 2 and 1.
    assert (agreement.together.pairs, agreement.together.contradictions) == (10, 3)
    assert agreement.together.tau == pytest.approx((6 / 11 - 1 + 1 + 6 / 11) / 4)
    assert agreement.annotators["ann"].with_others.tau == pytest.approx((6 / 11 + 1 - 1) / 3)
    assert agreement.annotators["cy"].alpha_without == pytest.approx(1 - 12.8 / (1600 / 90))


def test_oneself_on_hidden_repeats(decisions):
    found = measure_agreement(decisions).annotators["ann"].with_self
    assert (found.prompts, found.pairs, found.contradictions) == (1, 3, 1)
    assert found.tau == pytest.approx(2 / 11)
    assert measure_agreement(decisions).annotators["bob"].with_self is None


def test_counts_and_times_of_an_annotator(decisions):
    agreement = measure_agreement(decisions)
    ann, cy = agreement.annotators["ann"], agreement.annotators["cy"]
    assert (ann.ranked, ann.skipped, cy.ranked, cy.skipped) == (3, 0, 1, 1)
    # 5, 10, 20 and 60 seconds.
    assert (ann.seconds, ann.median_seconds, ann.tenth_seconds, ann.ninetieth_seconds) == (95, 15, 5, 60)
    # One of 3 + 2 + 2 + 3 answers.
    assert ann.invalid_answers == pytest.approx(0.1)
    assert ann.tied_pairs == 0


def test_position_bias_by_hand(decisions):
    bias = measure_agreement(decisions).position_bias
    assert bias.decisions == 7
    # Shown first and ranked first: ann's first, ann's third, bob's second, cy's first. Last: bob's first, ann's second.
    assert (bias.share, bias.last_share) == pytest.approx((4 / 7, 2 / 7))
    # Four decisions on three answers, three on two.
    assert bias.by_chance == pytest.approx((4 / 3 + 3 / 2) / 7)
    assert not bias.beyond_chance


def test_one_who_always_takes_the_first_is_found_out():
    decisions = [
        replace(decide("ann", 1, (1, 2) if first == 0 else (2, 1), (first, 1 - first)), prompt=f"{number}")
        for number, first in enumerate([0, 1] * 10)
    ]
    bias = measure_agreement(decisions).position_bias
    assert (bias.share, bias.by_chance, bias.beyond_chance) == (1, 0.5, True)


def test_ties_for_the_best_share_the_place():
    # Whatever is shown first, a tie of both best answers of three counts half.
    decisions = [decide("ann", 0, (1, 1, 2), (0, 1, 2)), decide("bob", 0, (1, 1, 2), (2, 1, 0))]
    assert measure_agreement(decisions).position_bias.share == 0.25
    # All tied says nothing.
    assert measure_agreement([decide("ann", 1, (1, 1), (0, 1))]).position_bias is None
    assert measure_agreement([decide("ann", 1, (None, None), (0, 1))]).position_bias is None


def test_disputes_and_cycles():
    decisions = [
        decide("ann", 0, (1, 2, 3), (0, 1, 2)),
        decide("bob", 0, (3, 1, 2), (0, 1, 2)),
        decide("cy", 0, (2, 3, 1), (0, 1, 2)),
        decide("ann", 1, (1, 2), (0, 1)),
        decide("bob", 1, (2, 1), (0, 1)),
        decide("ann", 2, (1, 2), (0, 1)),
        decide("bob", 2, (1, 1), (0, 1)),
    ]
    disputes = measure_agreement(decisions).disputes
    assert [(found.line, found.contradictions, found.cycles) for found in disputes] == [(1, 3, [[0, 1, 2]]), (2, 1, [])]


def test_the_later_of_two_decisions_counts(decisions):
    again = replace(decisions[5], ranks=(1, 2), decided_at="2026-02-01T00:00:00Z")
    agreement = measure_agreement([again, *decisions])
    assert agreement.replaced == 1
    assert agreement.annotators["bob"].with_others.contradictions == 2


def test_decisions_on_other_answers_are_refused(decisions):
    with pytest.raises(ValueError, match="line 2: bob ranked 3 answers and ann 2"):
        measure_agreement([*decisions[:5], replace(decisions[5], ranks=(2, 1, 3))])


def test_without_decisions_there_is_nothing_to_compare():
    with pytest.raises(ValueError, match="no decision yet"):
        measure_agreement([])


@pytest.fixture
def store(tmp_path, decisions):
    path = tmp_path / "answers.annotations.sqlite"
    with Store(path, seed=0) as store:
        for number, decision in enumerate(decisions):
            store.add(decision, f"request {number}")
    return path


def test_command_prints_figures_as_text_and_as_json(store, capsys):
    assert cli.main(["agreement", str(store)]) == 0
    text = capsys.readouterr().out
    assert "3 prompts ranked by 3 annotators, 2 by two or more" in text
    assert "ann and bob: alpha 0.28, weighted tau -0.23, 50% of 4 pairs alike (2 prompts compared)" in text
    assert "ann on hidden repeats" in text and "2 prompts with contradictions, 0 whose majority goes round" in text
    assert cli.main(["agreement", str(store), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["together"]["pairs"] == 10
    assert figures["annotators"]["ann"]["with_self"]["contradictions"] == 1


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.loads, self.cells = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "rect"):
            self.open.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "p"):
            self.cells.append(data)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_is_whole_loads_nothing_and_shows_prompts_as_text(store, tmp_path, language, capsys):
    answers, path = tmp_path / "answers.jsonl", tmp_path / "page.html"
    write_jsonl(answers, PROMPTS)
    words = ["agreement", str(store), "--page", str(path), "--lang", language, "--answers", str(answers)]
    assert cli.main(words) == 0
    page = _Page()
    page.feed(path.read_text("utf-8"))
    assert not page.open and not page.loads
    assert "First <b>?" in page.cells and "0.28" in page.cells
    title = WORDS["title"][language == "zh"]
    assert f"<title>{title}</title>" in path.read_text("utf-8")


def test_page_of_one_annotator_says_that_nothing_is_shared(decisions):
    text = render(measure_agreement(decisions[:1]), "en", {})
    assert WORDS["nothing_shared"][0].replace("'", "&#39;") in text
    assert not re.search(r"<h2>Prompts in dispute", text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.sqlite"], "no such file"),
        (["{store}", "--page", "page.txt"], "must end in .html"),
        (["{store}", "--answers", "a.jsonl"], "name one with --page"),
    ],
)
def test_wrong_words_are_refused_in_a_line(store, capsys, words, message):
    assert cli.main(["agreement", *(word.format(store=store) for word in words)]) == 2
    assert message in capsys.readouterr().err
