"""Files of other tools: round trips, files as those tools write them, formulas, and what is refused."""

import csv
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pangu_trl import cli
from pangu_trl.annotation.decisions import Decision, prompt_digest
from pangu_trl.annotation.exchange.argilla import read_argilla, user_id, write_argilla
from pangu_trl.annotation.exchange.label_studio import labelling_interface, read_label_studio, write_label_studio
from pangu_trl.annotation.exchange.spreadsheet import as_cell, from_cell, read_spreadsheet, write_spreadsheet
from pangu_trl.annotation.ranks import dense_ranks
from pangu_trl.annotation.store import read_decisions, store_path
from pangu_trl.answers.records import Answers
from pangu_trl.data.jsonl import read_jsonl, write_jsonl
from pangu_trl.data.records import RecordError

NOW = "2026-03-01T00:00:00Z"

# Beginnings of formulas, quotes and line ends more often than chance would have them.
TEXT = st.lists(
    st.one_of(
        st.sampled_from(["=", "+", "-", "@", "'", '"', "\t", "\r", "\n", ",", ";", "|", " ", "＝", "1", "e9"]),
        st.text(st.characters(exclude_characters="\x00\ufeff", exclude_categories=["Cs"]), max_size=3),
    ),
    max_size=6,
).map("".join)
FULL_TEXT = TEXT.filter(str.strip)


@st.composite
def annotated(draw):
    """A file of answers, texts or conversations, and decisions on it as the page takes them."""
    is_chat = draw(st.booleans())
    records = []
    for number in range(draw(st.integers(1, 3))):
        size = draw(st.integers(2, 4))
        prompt = f"{number}{draw(FULL_TEXT)}"
        responses = [draw(TEXT) for _ in range(size)]
        if is_chat:
            prompt = [{"role": "system", "content": draw(FULL_TEXT)}, {"role": "user", "content": prompt}]
            responses = [[{"role": "assistant", "content": text}] for text in responses]
            if draw(st.booleans()):
                responses[0] = [*responses[0], {"role": "tool", "content": "7"}, {"role": "assistant", "content": "so"}]
        records.append({"prompt": prompt, "responses": responses, "ranked": False})
    decisions = []
    for line, record in enumerate(records, 1):
        size = len(record["responses"])
        for annotator in draw(st.lists(FULL_TEXT.map(str.strip), max_size=2, unique=True)):
            is_skipped = draw(st.booleans())
            ranks = (
                []
                if is_skipped
                else draw(st.lists(st.one_of(st.none(), st.integers(1, 3)), min_size=size, max_size=size))
            )
            decision = Decision(
                prompt=prompt_digest(record),
                line=line,
                annotator=annotator,
                ranks=dense_ranks(ranks),
                order=tuple(draw(st.permutations(range(size)))),
                seconds=draw(st.floats(0, 1000)),
                decided_at="2026-01-01T00:00:00Z",
                file_digest="f",
                comment=draw(TEXT),
                attributes={"true": tuple(draw(st.lists(st.integers(1, 5), min_size=size, max_size=size)))},
            )
            again = replace(decision, repeat=1, ranks=decision.ranks[::-1])
            decisions += [decision] if draw(st.booleans()) else [decision, again]
    return Answers(records, [f"answers.jsonl:{line}" for line in range(1, len(records) + 1)]), decisions


def ordered(decisions):
    return sorted(decisions, key=lambda decision: (decision.prompt, decision.annotator, decision.repeat))


def many(test):
    return settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])(test)


@many
@given(TEXT)
def test_no_cell_starts_a_formula_and_every_text_comes_back(text):
    cell = as_cell(text)
    assert from_cell(cell) == text
    assert cell == text or cell == f"'{text}"
    assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "|"))


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("  =1+1", "'  =1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-5", "'-5"),
        ("'=1", "''=1"),
        ("'quoted'", "'quoted'"),
        ("1=1", "1=1"),
        ("＝1", "'＝1"),
        ("", ""),
    ],
)
def test_cells_by_hand(text, cell):
    assert (as_cell(text), from_cell(cell)) == (cell, text)


@many
@given(annotated())
def test_a_spreadsheet_loses_nothing(tmp_path, content):
    answers, decisions = content
    lost = write_spreadsheet(tmp_path / "ranked.csv", answers, decisions)
    found = read_spreadsheet(tmp_path / "ranked.csv", NOW)
    assert not +lost
    assert found.records == answers.records
    assert ordered(found.decisions) == ordered(decisions)


@many
@given(annotated())
def test_label_studio_keeps_ties_invalid_answers_repeats_and_times(tmp_path, content):
    answers, decisions = content
    lost = write_label_studio(tmp_path / "tasks.json", answers, decisions)
    found = read_label_studio(tmp_path / "tasks.json", NOW)
    assert found.records == answers.records
    expected = [replace(decision, order=(), attributes={}, file_digest="") for decision in decisions]
    assert ordered(found.decisions) == ordered(expected)
    counts = {"order in which the answers were shown": len(decisions), "scores of attributes": len(decisions)}
    assert +lost == {name: count for name, count in counts.items() if count}


@many
@given(annotated())
def test_argilla_keeps_names_invalid_answers_and_comments(tmp_path, content):
    answers, decisions = content
    lost = write_argilla(tmp_path / "records.json", answers, decisions)
    found = read_argilla(tmp_path / "records.json", NOW)
    assert found.records == answers.records
    expected = []
    for decision in decisions:
        if not decision.repeat and not decision.skipped:
            # Ties are broken by the order of the file.
            order = [None if rank is None else (rank, answer) for answer, rank in enumerate(decision.ranks)]
            places = sorted(place for place in order if place is not None)
            ranks = tuple(None if place is None else places.index(place) + 1 for place in order)
            expected.append(
                replace(decision, ranks=ranks, order=(), attributes={}, file_digest="", seconds=0.0, decided_at=NOW)
            )
    assert ordered(found.decisions) == ordered(expected)
    assert lost["hidden repeat"] == sum(bool(decision.repeat) for decision in decisions)
    assert lost["skipped prompt"] == sum(decision.skipped and not decision.repeat for decision in decisions)
    with_ties = [
        decision
        for decision in decisions
        if not decision.repeat and any(decision.ranks.count(rank) > 1 for rank in decision.ranks if rank is not None)
    ]
    assert lost["tie, broken by the order of the file"] == len(with_ties)


def test_what_csv_cannot_hold_is_refused_or_told(tmp_path):
    answers = Answers([{"prompt": "Q?", "responses": ["a", "b\x00"]}], ["answers.jsonl:7"])
    with pytest.raises(ValueError, match="answers.jsonl:7: holds the character NUL"):
        write_spreadsheet(tmp_path / "file.csv", answers, [])
    answers = Answers([{"prompt": "Q?", "responses": ["a", "b" * 32768]}], ["answers.jsonl:7"])
    lost = +write_spreadsheet(tmp_path / "file.csv", answers, [])
    assert lost == {"whole texts in Excel, which cuts a cell off": 1}
    marked = Answers([{"prompt": "Q?", "responses": ["a", "b\n\ufeffc"]}], ["answers.jsonl:7"])
    assert +write_spreadsheet(tmp_path / "marked.csv", marked, []) == {"marks U+FEFF at the beginning of a line": 1}
    assert read_spreadsheet(tmp_path / "file.csv", NOW).records[0]["responses"] == ["a", "b" * 32768]


def test_files_say_which_columns_they_have_no_place_for(tmp_path):
    record = {"prompt": "Q?", "responses": ["a", "b"], "finished": [True, True], "topic": "x"}
    answers = Answers([record], ["answers.jsonl:1"])
    for write in (write_spreadsheet, write_label_studio, write_argilla):
        assert +write(tmp_path / "file", answers, []) == {"column 'finished'": 1, "column 'topic'": 1}


# As Label Studio's documentation shows tasks and results of a Ranker.
ITEMS = [
    {"id": "blog", "title": "T1", "body": "first"},
    {"id": "mdn", "title": "T2", "body": "second"},
    {"id": "wiki", "title": "third"},
]


def task(ranker, **annotation):
    result = {"id": "x", "from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": ranker}}
    return {
        "id": 1,
        "data": {"text": "Which?", "items": ITEMS},
        "annotations": [{"result": [result], "completed_by": 7, "was_cancelled": False} | annotation],
    }


@pytest.mark.parametrize(
    ("ranker", "buckets", "ranks"),
    [
        ({"rank": ["mdn", "wiki", "blog"]}, None, (3, 1, 2)),
        (["mdn", "wiki", "blog"], None, (3, 1, 2)),
        ({"best": ["mdn"], "ads": ["blog"], "_": ["wiki"]}, ["best", "_", "ads"], (3, 1, 2)),
        ({"best": ["mdn", "wiki"], "ads": [], "invalid": ["blog"]}, ["best", "ads", "invalid"], (None, 1, 1)),
        ({"rank_1": ["wiki"], "rank_2": ["mdn", "blog"]}, None, (2, 2, 1)),
    ],
)
def test_label_studio_as_it_writes_its_files(tmp_path, ranker, buckets, ranks):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task(ranker, lead_time=4.3, created_at="2025-05-05T10:00:00.1Z")]), "utf-8")
    found = read_label_studio(path, NOW, buckets)
    assert found.records == [{"prompt": "Which?", "responses": ["first", "second", "third"], "ranked": False}]
    (decision,) = found.decisions
    assert (decision.ranks, decision.annotator, decision.seconds) == (ranks, "7", 4.3)
    assert decision.decided_at == "2025-05-05T10:00:00.1Z"


def test_label_studio_users_may_have_addresses_and_pass_tasks_on(tmp_path):
    path = tmp_path / "export.json"
    one = task({"rank": ["mdn", "wiki", "blog"]}, completed_by={"id": 3, "email": "ann@example.org"})
    two = task({}, was_cancelled=True)
    three = task({"rank": []}, result=[])
    path.write_text(json.dumps([one, two, three]), "utf-8")
    decisions = read_label_studio(path, NOW).decisions
    assert [(decision.annotator, decision.skipped) for decision in decisions] == [
        ("ann@example.org", False),
        ("7", True),
    ]


def test_labelling_interface_has_a_bucket_for_each_rank():
    answers = Answers(
        [{"prompt": "Q?", "responses": ["a", "b"]}, {"prompt": "R?", "responses": ["a", "b", "c"]}], ["a:1", "a:2"]
    )
    text = labelling_interface(answers)
    assert [f'<Bucket name="rank_{rank}"' in text for rank in range(1, 5)] == [True, True, True, False]
    assert '<Text name="prompt" value="$prompt"/>' in text and '<Bucket name="invalid"' in text


# As `Dataset.records.to_json` of Argilla 2 and a FeedbackDataset of Argilla 1 write records.
FIELDS = {"instruction": "Which?", "response_1": "a", "response_2": "b", "response_3": None}
USER = "12345678-1234-5678-1234-567812345678"


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ({"ranking": [{"value": ["response_2", "response_1"], "user_id": USER}]}, [(2, 1)]),
        (
            {
                "mine": [
                    {"value": [{"value": "response_2", "rank": 1}, {"value": "response_1", "rank": 1}], "user_id": USER}
                ]
            },
            [(1, 1)],
        ),
        (
            [
                {
                    "user_id": USER,
                    "status": "submitted",
                    "values": {
                        "mine": {"value": [{"rank": 2, "value": "response_1"}, {"rank": 1, "value": "response_2"}]},
                        "why": {"value": "so"},
                    },
                }
            ],
            [(2, 1)],
        ),
        ([{"user_id": USER, "status": "discarded", "values": {}}], [()]),
        ([{"user_id": USER, "status": "draft", "values": {"mine": {"value": []}}}], []),
        ({}, []),
    ],
)
def test_argilla_as_it_writes_its_files(tmp_path, responses, expected):
    path = tmp_path / "records.json"
    path.write_text(json.dumps([{"id": "1", "fields": FIELDS, "responses": responses}]), "utf-8")
    found = read_argilla(path, NOW)
    assert found.records == [{"prompt": "Which?", "responses": ["a", "b"], "ranked": False}]
    assert [decision.ranks for decision in found.decisions] == expected
    assert all(decision.annotator == USER for decision in found.decisions)


def test_argilla_knows_annotators_by_uuids():
    assert user_id("ann") == user_id("ann") != user_id("bob")
    assert user_id(USER) == USER


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_spreadsheet_that_people_filled_in(tmp_path):
    answers = Answers([{"prompt": "=Q", "responses": ["a", "b", "c"], "ranked": False}], ["answers.jsonl:1"])
    path = tmp_path / "ranked.csv"
    write_spreadsheet(path, answers, [])
    rows = rows_of(path)
    assert [(row["answer"], row["response"], row["annotator"], row["rank"]) for row in rows] == [
        ("1", "a", "", ""),
        ("2", "b", "", ""),
        ("3", "c", "", ""),
    ]
    # With gaps, a comma, a word, semicolons between, fewer columns, and rows in another order.
    kept = ["prompt_id", "answer", "prompt", "response", "annotator", "rank"]
    for row, rank in zip(rows, ["5", "2,5", "invalid"], strict=True):
        row["annotator"], row["rank"] = "Ann", rank
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, kept, delimiter=";", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[::-1])
    found = read_spreadsheet(path, NOW)
    assert found.records == answers.records
    (decision,) = found.decisions
    assert (decision.annotator, decision.ranks, decision.decided_at) == ("Ann", (2, 1, None), NOW)
    assert (decision.order, decision.seconds) == ((), 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": "1"}, "ranked.csv:2: 'annotator' must name who gave the rank '1'"),
        (
            {"annotator": "Ann", "rank": "1"},
            "Ann must give every answer a rank, or call it invalid; missing for answer 2",
        ),
        ({"annotator": "Ann", "rank": "best"}, "'rank' must be a number, invalid, or skipped for all; got 'best'"),
        ({"annotator": "Ann", "rank": "0"}, "'rank' must be a number above 0"),
        ({"prompt": "another"}, "prompt and response must be those of the rows above"),
        ({"answer": "3"}, "must have the answers 1 to 2; got 2, 3"),
        ({"answer": "one"}, "'answer' must be a number; got 'one'"),
        ({"answer": "2"}, "prompt and response must be those of the rows above"),
    ],
)
def test_spreadsheets_that_say_nothing_sure_are_refused_with_their_line(tmp_path, changes, message):
    answers = Answers([{"prompt": "Q", "responses": ["a", "b"], "ranked": False}], ["answers.jsonl:1"])
    path = tmp_path / "ranked.csv"
    write_spreadsheet(path, answers, [])
    rows = rows_of(path)
    if "rank" in changes and changes.get("annotator") and changes["rank"] != "1":
        rows[1] |= {"annotator": "Ann", "rank": "1"}
    rows[0] |= changes
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(RecordError, match=message):
        read_spreadsheet(path, NOW)


@pytest.mark.parametrize(
    ("read", "record", "message"),
    [
        (read_argilla, {"fields": {"prompt": "Q", "a": "x", "b": "y"}}, "two fields whose names begin with response"),
        (read_argilla, {"fields": {"response_1": "x", "response_2": "y"}}, "one prompt beside the answers"),
        (
            read_argilla,
            {"fields": FIELDS, "responses": {"r": [{"value": ["response_2", "x"], "user_id": "u"}]}},
            "got x",
        ),
        (read_argilla, {"text": "x"}, "'fields' must be an object"),
        (read_label_studio, task({"best": ["mdn"], "ads": ["blog"], "_": ["wiki"]}), "Name all buckets, best first"),
        (read_label_studio, task({"rank": ["mdn", "wiki"]}), "missing are blog"),
        (read_label_studio, {"data": {"text": "x"}}, "one list of items with an 'id' to rank; got none"),
        (read_label_studio, {"data": {"items": ITEMS}}, "'prompt' beside the list"),
    ],
)
def test_records_that_cannot_be_read_are_refused_with_their_place(tmp_path, read, record, message):
    path = tmp_path / "file.json"
    path.write_text(json.dumps([record]), "utf-8")
    with pytest.raises(RecordError, match=message) as error:
        read(path, NOW)
    assert str(error.value).startswith(f"{path}:1")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [{"prompt": f"Question {number}?", "responses": ["=a", "b", "c"], "ranked": False} for number in range(3)]
    write_jsonl("answers.jsonl", records)
    return tmp_path


@pytest.mark.parametrize(("form", "suffix"), [("argilla", "json"), ("label-studio", "json"), ("csv", "csv")])
def test_commands_bring_decisions_from_one_folder_to_another(folder, form, suffix, capsys):
    table = [("ann", 1, (1, 3, 2)), ("ann", 2, (2, None, 1)), ("bob", 1, (3, 2, 1))]
    rows = [
        f"{n},{a},Question {n}?,{t},{who},{rank or 'invalid'}"
        for who, n, ranks in table
        for a, (t, rank) in enumerate(zip(["'=a", "b", "c"], ranks, strict=True), 1)
    ]
    (folder / "by-hand.csv").write_text("prompt_id,answer,prompt,response,annotator,rank\n" + "\n".join(rows), "utf-8")
    assert cli.main(["import-annotations", "by-hand.csv", "--form", "csv", "--answers", "answers.jsonl"]) == 0
    assert "answers.annotations.sqlite: 3 decisions taken over" in capsys.readouterr().out
    first = read_decisions(store_path("answers.jsonl"))
    assert [(one.annotator, one.line, one.ranks) for one in first] == [
        ("ann", n + 1, r) if w == "ann" else (w, n + 1, r) for w, n, r in [table[0], table[2], table[1]]
    ]

    words = ["export-annotations", "answers.jsonl", "--form", form, "--output", f"out.{suffix}"]
    assert cli.main(words) == 0
    assert (folder / "out.xml").exists() == (form == "label-studio")
    back = ["import-annotations", f"out.{suffix}", "--form", form, "--answers", "other.jsonl"]
    assert cli.main(back) == 0
    assert read_jsonl("other.jsonl") == read_jsonl("answers.jsonl")
    second = read_decisions(store_path("other.jsonl"))
    assert sorted((one.annotator, one.prompt, one.ranks) for one in second if one.ranks.count(None) == 0) == sorted(
        (one.annotator, one.prompt, one.ranks) for one in first if one.ranks.count(None) == 0
    )
    assert {(one.annotator, one.ranks) for one in second} == {(one.annotator, one.ranks) for one in first}
    # A second time adds nothing, and says so.
    capsys.readouterr()
    assert cli.main(back) == 0
    said = capsys.readouterr()
    assert "3 decisions left out" in said.err and ": 0 decisions taken over" in said.out
    assert read_decisions(store_path("other.jsonl")) == second


def test_decisions_on_other_texts_are_refused(folder, capsys):
    (folder / "by-hand.csv").write_text(
        "prompt_id,answer,prompt,response,annotator,rank\n1,1,Changed?,a,ann,1\n1,2,Changed?,b,ann,2\n", "utf-8"
    )
    assert cli.main(["import-annotations", "by-hand.csv", "--form", "csv", "--answers", "answers.jsonl"]) == 2
    assert "1 decisions are on prompts or answers that answers.jsonl does not hold" in capsys.readouterr().err
    assert not store_path("answers.jsonl").exists()
