"""`pangu-trl check-data`: all faults at once, and figures counted by hand."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pangu_trl import GPTPanguTokenizer
from pangu_trl.cli import main
from pangu_trl.data.checking import CheckOptions, check_source
from pangu_trl.data.preferences import Preferences


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, *rows: Any) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    Path(name).write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogatepass")
    return name


def ranking(prompt: str, *best_first: str) -> dict[str, Any]:
    return {"prompt": prompt, "responses": list(best_first)}


def check(source: str, **options: Any) -> tuple[dict[str, Any], list[str]]:
    faults: list[str] = []
    picture = check_source(source, CheckOptions(near_duplicates=False, **options), faults.append)
    assert picture.num_faults == len(faults)
    return picture.figures, faults


FAULTS = [
    ("not json", "must be one JSON object; Expecting value at column 1"),
    ("[1]", "must be one JSON object"),
    ('{"prompt": "a", "prompt": "b", "completion": "c"}', "'prompt' must occur once in an object; got it twice"),
    ({"completion": "c"}, "'prompt' must be present"),
    ({"prompt": "", "completion": "c"}, "'prompt' must be text that is not empty"),
    ({"prompt": 3, "completion": "c"}, "'prompt' must be text that is not empty; got 3"),
    ({"prompt": "a", "completion": None}, "'completion' must be present"),
    ({"prompt": "a", "completion": " "}, "'completion' must be text that is not empty"),
    ({"prompt": "a", "completion": ["c"]}, "'completion[0]' must be a message with 'role' and 'content'"),
    ('{"prompt": "a", "completion": "\\ud800"}', "must be valid Unicode; got a lone surrogate"),
    ({"prompt": [], "completion": "c"}, "'prompt' must be text or at least one message"),
    ({"prompt": [{"role": "bot", "content": "a"}], "completion": "c"}, "'prompt[0].role' must be one of system"),
    ({"prompt": [{"role": "user"}], "completion": "c"}, "'prompt[0]' must be a message with 'role' and 'content'"),
    (
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "c"}]},
        "'prompt' must be text, as in rows.jsonl:1; got messages",
    ),
]


def test_every_fault_is_named_by_line_in_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    good = {"prompt": "a", "completion": "c"}
    write("rows.jsonl", good, *(row for row, _ in FAULTS), good)
    assert main(["check-data", "rows.jsonl", "--no-near-duplicates"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for line, (number, (_, message)) in zip(lines, enumerate(FAULTS, start=2), strict=False):
        assert line.startswith(f"rows.jsonl:{number}: {message}"), line
    assert lines[len(FAULTS)] == f"rows.jsonl: {len(FAULTS)} faults in records of the kind demonstration"


def test_json_holds_faults_and_figures_and_the_exit_code_is_0_without_faults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("rows.jsonl", {"text": "ab"}, {"text": "abcd"}, {"text": "ab"})
    assert main(["check-data", "rows.jsonl", "--json", "--no-near-duplicates"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["faults"], found["records"], found["duplicate_records"]) == ("text", [], 3, 1)
    assert found["length"] == {"min": 2, "median": 2.0, "p95": 3.8, "max": 4, "mean": 8 / 3, "unit": "characters"}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('{"text": "a"}\n', ["--max-length", "3"], "--max-length counts tokens"),
        ('{"question": "a"}\n', [], "rows.jsonl:1: the kind of record cannot be told from its fields question"),
        ('{"messages": []}\n', [], "rows.jsonl:1: its fields messages are those of the public format messages; say so"),
        ('{"messages": []}\n', ["--format", "mesages"], "got 'mesages' (did you mean messages?)"),
        (
            '{"messages": []}\n',
            ["--format", "messages", "--kind", "text"],
            "demonstration or ranking or prompt; got 't",
        ),
        ("", [], "no record can be read, so the kind cannot be told"),
        ('{"text": "a"}\n', ["--against", "absent.jsonl"], "absent.jsonl: no such file"),
        ('{"text": "a"}\n', ["--model", "absent"], "loaded from it; there is no such folder, nor that Hub id"),
    ],
)
def test_misuse_is_told_apart_from_faults(
    content: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.jsonl").write_text(content, encoding="utf-8")
    assert main(["check-data", "rows.jsonl", "--no-near-duplicates", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("source", ["absent.jsonl", "folder.jsonl", "absent.md", "broken.md"])
def test_a_source_that_cannot_be_read_is_a_fault(source: str) -> None:
    Path("folder.jsonl").mkdir()
    Path("broken.md").write_text("# no header", encoding="utf-8")
    figures, faults = check(source, kind="prompt")
    assert figures["records"] == 0 and len(faults) == 1 and faults[0].startswith(source)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]


@pytest.mark.parametrize(
    ("name", "row", "kind"),
    [
        ("messages", {"messages": turns("a", "b")}, "demonstration"),
        ("messages", {"messages": turns("a", "b", "c")}, "prompt"),
        ("messages", {"chosen": turns("a", "b"), "rejected": turns("a", "c")}, "ranking"),
        ("alpaca", {"instruction": "a", "input": "", "output": "b"}, "demonstration"),
        ("alpaca", {"instruction": "a", "chosen": "b", "rejected": "c"}, "ranking"),
        ("nectar", {"prompt": "\n\nHuman: a", "answers": [{"answer": x, "rank": ord(x)} for x in "bc"]}, "ranking"),
    ],
)
def test_public_formats_are_read_as_the_kind_that_their_rows_give(
    name: str, row: dict[str, Any], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("rows.jsonl", row, row, {"other": 1})
    command = ["check-data", "rows.jsonl", "--format", name, "--json", "--no-near-duplicates"]
    # OTHER has the format of DATA.
    assert main([*command, "--against", write("other.jsonl", row)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["records"], found["duplicate_records"], found["in_other"]["records"]) == (
        kind,
        2,
        1,
        2,
    )
    (fault,) = found["faults"]
    assert fault.startswith(f"rows.jsonl:3: as {name} the row must have some of")


def test_a_format_is_for_what_is_no_card(capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", {"messages": turns("a", "b")})
    block = {"kind": "demonstration", "path": "json", "format": "messages", "data_files": "rows.jsonl"}
    Path("card.md").write_text(f"---\npangu_trl: {json.dumps(block)}\n---\n")
    command = ["check-data", "--format", "messages", "--no-near-duplicates"]
    assert main([*command, "card.md"]) == 2
    assert "card.md: a card names its format itself" in capsys.readouterr().err
    assert main([*command, "rows.jsonl", "--against", "card.md"]) == 0


def test_rankings_are_counted_by_hand() -> None:
    tied = {"prompt": "t", "responses": ["x", "yy"], "scores": [1, 1]}
    rows = [
        # Told both ways; the second record says so of the ends of an order of three.
        ranking("contradictory", "a", "bb", "ccc"), ranking("contradictory", "ccc", "a"),
        # Round: a before b before c before a.
        ranking("cyclic", "a", "b"), ranking("cyclic", "b", "c"), ranking("cyclic", "c", "a"),
        ranking("agreed", "a", "b"), ranking("agreed", "b", "c"),
        tied,
    ]  # fmt: skip
    figures, faults = check(write("rows.jsonl", *rows))
    assert faults == []
    assert figures["repeated_prompts"] == 1 + 2 + 1
    assert figures["preferences"] == {
        "answers_per_prompt": {"2": 7, "3": 1},
        "pairs": 3 + 7,
        "tied_pairs": 1,
        "rankings_all_tied": 1,
        "prompts_with_contradictory_rankings": 1,
        "prompts_with_cyclic_rankings": 1,
        # a-bb, a-ccc and bb-ccc to the shorter, ccc-a to the longer; all others are equally long.
        "longer_answer_is_better": 1 / 4,
        "pairs_of_unequal_length": 4,
    }


def test_no_rankings_conflict_in_nothing() -> None:
    assert Preferences().count_conflicts() == (0, 0)


def test_lengths_in_tokens_and_what_would_be_left_out(tokenizer: GPTPanguTokenizer) -> None:
    texts = ["酒店很好", "酒店很好房间不好", "酒店"]
    write("rows.jsonl", *({"prompt": "酒店", "completion": text} for text in texts))
    prompt = len(tokenizer.encode("酒店"))
    # With the end of the answer.
    lengths = [prompt + len(tokenizer.encode(text)) + 1 for text in texts]
    figures, faults = check("rows.jsonl", tokenizer=tokenizer, max_length=lengths[0])
    assert faults == []
    assert (figures["length"]["min"], figures["length"]["max"]) == (lengths[2], lengths[1])
    assert figures["left_out_by_max_length"] == 1
    _, faults = check("rows.jsonl", tokenizer=tokenizer, max_length=prompt)
    assert len(faults) == 3 and faults[1].startswith("rows.jsonl:2: the prompt must leave room for an answer within")


def test_what_a_template_refuses_is_a_fault_of_its_line(tokenizer: GPTPanguTokenizer) -> None:
    rows = [{"prompt": [{"role": role, "content": "酒店"}]} for role in ("user", "tool", "user")]
    _, faults = check(write("rows.jsonl", *rows), tokenizer=tokenizer)
    assert len(faults) == 1
    assert faults[0].startswith("rows.jsonl:2: the chat template refuses 'prompt[0]', a message of the role 'tool'")


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_special_tokens_in_texts_are_counted(with_tokenizer: bool, tokenizer: GPTPanguTokenizer) -> None:
    rows = [{"prompt": "a<eot>b<eot>", "completion": "c<sep>d"}, {"prompt": "a", "completion": "b"}]
    figures, _ = check(write("rows.jsonl", *rows), tokenizer=tokenizer if with_tokenizer else None)
    assert figures["special_tokens_in_text"] == {"<eot>": 2, "<sep>": 1}
    assert figures["records_with_special_tokens"] == 1


def test_overlap_with_held_out_records() -> None:
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in (("a", "b"), ("a", "c"), ("d", "e"))]
    write("train.jsonl", *rows)
    figures, _ = check("train.jsonl", against=write("eval.jsonl", {"prompt": "a", "completion": "c", "id": 1}))
    assert figures["in_other"] == {"other": "eval.jsonl", "records": 1, "prompts": 2, "near_records": None}


def test_messages_of_conversations_are_counted() -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    rows = [{"prompt": turns[:1], "completion": turns[1:]}, {"prompt": turns[:1], "completion": turns[1:2]}]
    figures, faults = check(write("rows.jsonl", *rows))
    assert faults == [] and figures["messages_per_record"] == {"2": 1, "4": 1}


def test_near_duplicates_are_found_and_others_are_not() -> None:
    pytest.importorskip("rensa")
    from pangu_trl.data.near_duplicates import NearDuplicates

    story = "".join(chr(0x4E00 + index * 7 % 3000) for index in range(400))
    other = "".join(chr(0x4E00 + index * 11 % 3000) for index in range(400))
    texts = NearDuplicates()
    # One of 400 characters changed touches 5 of 396 shingles: similarity 391 / 401.
    for text in (
        story,
        other,
        story[:200] + "X" + story[201:],
        f" {other[:50]}\n{other[50:]}",
        other[:100],
        "ab",
        "ab",
    ):
        texts.add(text)
    assert texts.are_near().tolist() == [False, False, True, True, False, False, True]
    held_out = NearDuplicates()
    held_out.add(story)
    assert texts.are_near(held_out).tolist() == [True, False, True, False, False, False, False]


def put(name: str, content: str | bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return name


def card(block: dict[str, Any], name: str = "card.md") -> str:
    return put(name, f"---\npangu_trl: {json.dumps({'kind': 'text'} | block, ensure_ascii=False)}\n---\n")


GOOD = '{"text": "好"}\n'


def mixed_folder() -> str:
    put("d/1.jsonl", GOOD + "{broken\n" + GOOD)
    put("d/2.parquet", b"PAR1 and no more")
    put("d/3.jsonl.gz", gzip.compress((GOOD * 500).encode())[:-9])
    put("d/4.csv", "text\n好\na,b\n")
    put("d/5.jsonl", "")
    put("d/6.txt", "好\n")
    return "d"


def mixture() -> str:
    put("a.jsonl", GOOD + "{broken\n" + GOOD)
    return card({"mix": [{"source": "a.jsonl"}, {"source": "absent.jsonl"}, {"source": put("b.jsonl", GOOD)}]})


# The source, the number of good records, and how each fault begins and what is in it.
SOURCES: dict[str, tuple[Any, int, list[tuple[str, str]]]] = {
    "packed lines": (
        lambda: put("a.jsonl.gz", gzip.compress((GOOD + "{broken\n" + GOOD + "[1]\n" + GOOD).encode())),
        3,
        [("a.jsonl.gz:2: ", "must be one JSON object"), ("a.jsonl.gz:4: ", "must be one JSON object")],
    ),
    "lines of bytes that are no text": (
        lambda: put("a.txt", "好\n".encode() + b"\xff\n" + "好\n".encode() + b"\xfe\n"),
        2,
        [("a.txt:2: ", "must be UTF-8; got the byte 0xff"), ("a.txt:4: ", "must be UTF-8")],
    ),
    "lines called .json": (
        lambda: put("a.json", GOOD + '{"text": NaN}\n' + GOOD),
        2,
        [("a.json:2: ", "numbers must be finite")],
    ),
    "a list with elements that are no objects": (
        lambda: put("a.json", f"[{GOOD}, 1, {GOOD}, null]"),
        2,
        [("a.json:2 (record 1): ", "got 1"), ("a.json:3 (record 3): ", "got null")],
    ),
    "a list that breaks off": (
        lambda: put("a.json", f"[{GOOD}, {GOOD}"),
        2,
        [("a.json:3: ", "What stands behind it in the file was not read.")],
    ),
    "csv": (
        lambda: put(
            "a.csv", 'text,id\n好,1\n好\n好,2\n"x"y,3\n好,4,5\n'.encode() + b"\xff,6\n" + "好,7\n好\n".encode()
        ),
        3,
        [
            ("a.csv:3: ", "must have 2 values, as the header has; got 1"),
            ("a.csv:5: ", "must be a row of csv"),
            ("a.csv:6: ", "must have 2 values, as the header has; got 3"),
            ("a.csv:7: ", "must be UTF-8"),
            ("a.csv:9: ", "must have 2 values, as the header has; got 1"),
        ],
    ),
    "a folder of files of all kinds": (
        mixed_folder,
        # The damage of 3 shows at its end, and may hide its last records.
        None,
        [
            ("d/1.jsonl:2: ", "must be one JSON object"),
            ("d/2.parquet: ", "must be a whole Parquet file"),
            ("d/3.jsonl.gz: ", "must be a whole .gz file"),
            ("d/4.csv:3: ", "must have 1 values"),
            ("d/5.jsonl: ", "the file is empty"),
        ],
    ),
    "a card whose columns some rows lack": (
        lambda: card(
            {
                "path": "json",
                "data_files": put("a.jsonl", '{"t": "好"}\n{"u": 1}\n{"t": "好"}\n{}\n'),
                "columns": {"text": "t"},
            }
        ),
        2,
        [("a.jsonl:2: 't' ", "there is only u"), ("a.jsonl:4: 't' ", "an empty object")],
    ),
    "a card with types": (
        lambda: card(
            {
                "path": "csv",
                "data_files": put("a.csv", "text,n\n好,1\n好,x\n好,2\n好,y\n"),
                "types": {"n": "integer"},
            }
        ),
        2,
        [("a.csv:3: 'n' ", "must be an integer"), ("a.csv:5: 'n' ", "must be an integer")],
    ),
    "a card of a public format": (
        lambda: card(
            {
                "kind": "demonstration",
                "path": "json",
                "format": "alpaca",
                "data_files": put(
                    "a.jsonl",
                    '{"instruction": "一", "output": "二"}\n{"instruction": 1, "output": "二"}\n{"x": 1}\n'
                    '{"instruction": "一", "output": "三"}\n',
                ),
            }
        ),
        2,
        [("a.jsonl:2: as alpaca ", "'instruction' must be text"), ("a.jsonl:3: as alpaca ", "the row must have some")],
    ),
    "trees": (
        lambda: card(
            {
                "kind": "prompt",
                "path": "json",
                "format": "oasst",
                "data_files": put(
                    "a.jsonl",
                    '{"prompt": {"text": "一", "role": "prompter"}}\n{"prompt": {"text": "一", "role": "king"}}\n'
                    '{"other": 1}\n{"prompt": {"text": "二", "role": "prompter"}}\n',
                ),
            }
        ),
        2,
        [("a.jsonl:2: as oasst ", "'role' must be"), ("a.jsonl:3: as oasst ", "the row must have 'prompt'")],
    ),
    "a mixture": (
        mixture,
        3,
        [("/a.jsonl:2: ", "must be one JSON object"), ("card.md: ", "absent.jsonl")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_every_fault_of_every_kind_of_source_is_named_in_one_run(name: str) -> None:
    build, num_records, expected = SOURCES[name]
    source = build()
    kind = {"a card of a public format": "demonstration", "trees": "prompt"}.get(name, "text")
    figures, faults = check(source, kind=kind)
    assert len(faults) == len(expected), faults
    for fault, (start, part) in zip(faults, expected, strict=True):
        assert fault.removeprefix(str(Path.cwd())).startswith(start) or fault.startswith(str(Path.cwd() / start)), fault
        assert part in fault
    if num_records is not None:
        assert figures["records"] == num_records


def test_repeats_are_counted_over_all_files_and_against_another_source() -> None:
    put("d/1.jsonl", '{"prompt": "一", "completion": "a"}\n{"prompt": "一", "completion": "b"}\n')
    put("d/2.jsonl", '{"prompt": "一", "completion": "a"}\n{"prompt": "二", "completion": "a"}\n')
    put("held.jsonl", '{"prompt": "一", "completion": "a"}\n{"prompt": "三", "completion": "a"}\n')
    figures, _ = check("d", against="held.jsonl")
    assert (figures["records"], figures["duplicate_records"], figures["repeated_prompts"]) == (4, 1, 2)
    assert (figures["in_other"]["records"], figures["in_other"]["prompts"]) == (2, 3)
