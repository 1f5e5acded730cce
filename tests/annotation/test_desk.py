"""What stands on an annotator's page, and what becomes of a decision: in the file's order, once, after a restart."""

import itertools
import json

import pytest
from annotation_place import records, shown_answers, write

from pangu_trl.annotation.attributes import Attribute, read_attributes
from pangu_trl.annotation.desk import Elsewhere, Refusal
from pangu_trl.annotation.prompts import AnswersFile, text_parts
from pangu_trl.annotation.store import read_decisions

_numbers = itertools.count()


def _say(state, ranks, **more):
    said = {"request": f"request-{next(_numbers)}", "page": state["page"]["id"], "ranks": ranks, "seconds": 1.5}
    return said | more


def _by_number(state, ranks):
    """Ranks in the order shown, from ranks in the order of the file."""
    return [ranks[index] for index in shown_answers(state)]


def test_ranks_are_kept_in_the_order_of_the_file_with_the_order_shown(place):
    desk = place.open()
    orders = set()
    for row in range(6):
        state = desk.state("ann")
        assert (state["ranked"], state["left"]) == (row, 6 - row)
        order = tuple(shown_answers(state))
        orders.add(order)
        desk.decide("ann", _say(state, _by_number(state, [2, None, 1, 2]), comment=f"c{row}"))
        decision = read_decisions(place.store)[-1]
        assert (decision.ranks, decision.order, decision.line) == ((2, None, 1, 2), order, row + 1)
        assert (decision.annotator, decision.seconds, decision.comment) == ("ann", 1.5, f"c{row}")
        assert decision.file_digest == AnswersFile.load(place.path).digest
    # With 24 orders for 6 prompts it would be odd if they were all the same.
    assert len(orders) > 1
    assert desk.state("ann")["page"] is None


def test_the_page_tells_nothing_of_where_answers_come_from(place):
    state = place.open().state("ann")
    assert "secret" not in json.dumps(state)
    assert state["page"].keys() == {"id", "prompt", "answers", "draft"}


def test_a_restart_shows_the_same_prompt_in_the_same_order_and_takes_the_page_from_before(place):
    desk = place.open()
    desk.decide("ann", _say(desk.state("ann"), [1, 2, 3, 4]))
    before = desk.state("ann")
    said = _say(before, [4, 3, 2, 1])
    desk = place.open()
    assert desk.state("ann") == before
    desk.decide("ann", said)
    # The page had no answer and sends it again, to a third server.
    desk = place.open()
    desk.decide("ann", said)
    assert [decision.line for decision in read_decisions(place.store)] == [1, 2]
    assert desk.state("ann")["ranked"] == 2


def test_a_second_window_cannot_decide_again(place):
    desk = place.open()
    state = desk.state("ann")
    desk.decide("ann", _say(state, [1, 2, 3, 4]))
    with pytest.raises(Elsewhere):
        desk.decide("ann", _say(state, [4, 3, 2, 1]))
    assert len(read_decisions(place.store)) == 1
    assert desk.state("ann")["page"]["id"] != state["page"]["id"]


def test_undo_brings_the_prompt_back_as_it_was_and_once(place):
    scored = (Attribute("helpful", {}),)
    desk = place.open(attributes=scored)
    first = desk.state("ann")
    scores = {"helpful": [5, None, 1, 2]}
    desk.decide("ann", _say(first, [1, 1, None, 2], comment="hm", attributes=scores))
    second = desk.state("ann")
    desk.undo("ann", second["last"])
    back = desk.state("ann")
    assert back["page"]["id"] == first["page"]["id"]
    assert back["page"]["draft"] == {
        "ranks": [1, 1, None, 2],
        "comment": "hm",
        "attributes": {"helpful": [5.0, None, 1.0, 2.0]},
        "seconds": 1.5,
    }
    assert read_decisions(place.store) == []
    with pytest.raises(Elsewhere):
        desk.undo("ann", second["last"])
    desk.decide("ann", _say(back, [1, 2, 3, 4]))
    assert desk.state("ann")["page"]["id"] == second["page"]["id"]
    assert len(read_decisions(place.store)) == 1


def test_a_hidden_repeat_stays_one_after_a_restart_and_an_undo(place):
    write(place.path, records(2))
    desk = place.open(repeats=1.0)
    for _ in range(2):
        desk.decide("ann", _say(desk.state("ann"), [1, 2, 3, 4]))
    state = desk.state("ann")
    firsts = {decision.prompt for decision in read_decisions(place.store)}
    desk = place.open(repeats=1.0)
    # Nobody has looked since: the desk has to find out which page this was.
    desk.decide("ann", _say(state, [4, 3, 2, 1]))
    again = read_decisions(place.store)[-1]
    assert (again.repeat, again.prompt in firsts) == (1, True)
    desk.undo("ann", desk.state("ann")["last"])
    assert desk.state("ann")["page"]["id"] == state["page"]["id"]
    desk.decide("ann", _say(desk.state("ann"), [1, 1, 1, 1]))
    assert [decision.repeat for decision in read_decisions(place.store)] == [0, 0, 1]


def test_a_request_from_before_an_undo_does_not_bring_it_back(place):
    desk = place.open()
    said = _say(desk.state("ann"), [1, 2, 3, 4])
    desk.decide("ann", said)
    desk.undo("ann", desk.state("ann")["last"])
    desk.decide("ann", said)
    assert desk.state("ann")["ranked"] == 0 and read_decisions(place.store) == []


def test_skipped_prompts_come_back_when_they_are_asked_for(place):
    desk = place.open()
    for row in range(6):
        state = desk.state("ann")
        desk.decide("ann", _say(state, None if row in (1, 4) else [1, 2, 3, 4]))
    assert desk.state("ann")["skipped"] == 2
    assert [decision.line for decision in read_decisions(place.store) if decision.skipped] == [2, 5]
    desk.ask_skipped_again("ann")
    state = desk.state("ann")
    assert (state["ranked"], state["skipped"], state["left"]) == (4, 0, 2)
    desk.decide("ann", _say(state, [1, 2, 3, 4]))
    assert read_decisions(place.store)[-1].line == 2


def test_annotators_share_the_work_and_see_only_their_own(place):
    desk = place.open(annotators=("ann", "bob"), overlap=0.3)
    names, pages = ("ann", "bob"), []
    for turn in range(20):
        name = names[turn % 2]
        state = desk.state(name)
        assert state["annotator"] == name
        if state["page"] is not None:
            pages.append(state["page"]["id"])
            desk.decide(name, _say(state, [1, 2, 3, 4]))
    # Round(0.3 x 6) = 2 prompts by both, 4 by one of them.
    assert len(pages) == len(set(pages)) == 2 * 2 + 4
    own = [d for d in read_decisions(place.store) if d.annotator == "ann"]
    assert desk.state("ann")["ranked"] == len(own)
    with pytest.raises(Elsewhere):
        # Bob's last number is none of hers.
        desk.undo("ann", desk.state("bob")["last"])


@pytest.mark.parametrize(
    ("ranks", "reason"),
    [
        ([1, 2, 3], "list of 4"),
        ([1, 2, 3, 5], "without gaps"),
        ([0, 1, 2, 3], "without gaps"),
        ([2, 2, 2, 2], "without gaps"),
        ([True, 2, 3, 4], "whole numbers"),
        ([1.0, 2, 3, 4], "whole numbers"),
        ("1234", "list of 4"),
    ],
)
def test_what_is_no_ranking_is_refused_and_not_kept(place, ranks, reason):
    desk = place.open()
    with pytest.raises(Refusal, match=reason):
        desk.decide("ann", _say(desk.state("ann"), ranks))
    assert read_decisions(place.store) == []


@pytest.mark.parametrize(
    "more",
    [
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": "1"},
        {"comment": "x" * 10_001},
        {"comment": None},
        {"request": "short"},
        {"request": 12345678},
        {"attributes": {"helpful": [6, 1, 1, 1]}},
        {"attributes": {"helpful": [1, 1, 1]}},
        {"attributes": {"helpful": [True, 1, 1, 1]}},
        {"attributes": {"other": [1, 1, 1, 1]}},
        {"page": "0" * 24},
        {"page": None},
    ],
    ids=str,
)
def test_what_a_page_of_ours_would_not_say_is_refused(place, more):
    desk = place.open(attributes=(Attribute("helpful", {}),))
    with pytest.raises(Refusal):
        desk.decide("ann", _say(desk.state("ann"), [1, 2, 3, 4], **more))
    assert read_decisions(place.store) == []


def test_answers_that_changed_are_shown_again_and_what_was_decided_stays(place):
    desk = place.open()
    for _ in range(3):
        desk.decide("ann", _say(desk.state("ann"), [1, 2, 3, 4]))
    assert not desk.state("ann")["file_changed"]
    rows = records()
    rows[1]["responses"][0] = "another answer"
    # Without a change of its content the file is the same, and so are prompts that only moved.
    write(place.path, [rows[2], rows[0], rows[1], *rows[3:]])
    assert desk.state("ann")["file_changed"]
    desk = place.open()
    assert desk.num_of_other_versions == 1
    state = desk.state("ann")
    assert (state["ranked"], state["left"], state["file_changed"]) == (2, 4, False)
    assert state["page"]["prompt"][0]["text"] == "question 1"
    assert len(read_decisions(place.store)) == 3


def test_a_file_that_is_only_written_again_has_not_changed(place):
    desk = place.open()
    write(place.path, records())
    assert not desk.state("ann")["file_changed"]
    place.path.unlink()
    assert desk.state("ann")["file_changed"]


def test_lines_that_say_the_same_are_shown_once_and_single_answers_not_at_all(tmp_path):
    rows = records(3)
    path = tmp_path / "answers.jsonl"
    write(path, [*rows, rows[0] | {"model": "another"}, {"prompt": "alone", "responses": ["one"]}])
    file = AnswersFile.load(path)
    assert (len(file.rows), file.num_repeated, file.num_single) == (3, 1, 1)
    assert [file.line(prompt) for prompt in file.rows] == [1, 2, 3]
    write(path, [{"prompt": "alone", "responses": ["one"]}])
    with pytest.raises(ValueError, match="two or more 'responses'"):
        AnswersFile.load(path)


def test_long_texts_come_in_pieces_that_are_the_whole(place):
    text = "".join(chr(0x4E00 + index % 5000) for index in range(250_000)) + "😀" * 10
    rows = records(1)
    rows[0]["responses"][2] = text
    write(place.path, rows)
    desk = place.open()
    page = desk.state("ann")["page"]
    which = next(index for index, parts in enumerate(page["answers"]) if parts[0]["length"] > 100)
    part = page["answers"][which][0]
    assert (part["length"], part["shown"]) == (250_010, 20_000)
    read = part["text"]
    assert len(desk.piece("ann", page["id"], which, 0, len(read))["text"]) == 100_000
    while len(read) < part["length"]:
        read += desk.piece("ann", page["id"], which, 0, len(read))["text"]
    assert read == text
    for wrong in ((4, 0, 0), (-2, 0, 0), (0, 1, 0), (0, 0, -1)):
        with pytest.raises(Refusal):
            desk.piece("ann", page["id"], *wrong)


def test_messages_are_shown_with_all_that_they_say():
    call = [{"function": {"name": "search", "arguments": {"q": "x"}}}]
    parts = text_parts(
        [
            {"role": "user", "content": "find x"},
            {"role": "assistant", "content": None, "tool_calls": call, "reasoning_content": "hm"},
            {"role": "tool", "content": "x is here"},
        ]
    )
    assert [part["role"] for part in parts] == ["user", "reasoning_content", "tool_calls", "tool"]
    assert json.loads(parts[2]["text"]) == call
    assert text_parts([{"role": "assistant", "content": "yes"}]) == [{"role": None, "text": "yes"}]
    assert text_parts([{"role": "assistant", "content": ""}]) == [{"role": None, "text": ""}]


def test_attributes_are_read_with_defaults_and_wrong_ones_are_named(tmp_path):
    path = tmp_path / "attributes.yaml"
    path.write_text("helpful: {en: Helpful, zh: 有帮助, from: 0, to: 1}\nharmless:\n", "utf-8")
    assert read_attributes(path) == (
        Attribute("helpful", {"en": "Helpful", "zh": "有帮助"}, 0, 1),
        Attribute("harmless", {}, 1, 5),
    )
    for text, reason in {
        "": "must map names",
        "- helpful": "must map names",
        "helpful: 5": "'helpful': must be a mapping",
        "helpful: {min: 1}": "knows en, zh, from and to; got min",
        "helpful: {from: 3, to: 3}": "from below to",
        "helpful: {from: 1, to: 11}": "of 10 steps at most",
        "helpful: {en: 7}": "helpful'.en must be text",
        "yes: {to: 4}": "must be a word; got bool",
        "a: [": "must be YAML",
    }.items():
        path.write_text(text, "utf-8")
        with pytest.raises(ValueError, match=reason):
            read_attributes(path)
