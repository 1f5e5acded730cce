"""Results of a long command: kept as they come, gone on with, never mixed with others."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from pangu_trl.answers.journal import Journal, fingerprint
from pangu_trl.cli import main
from pangu_trl.runs.record import fingerprint_of_model

JUDGE = """
import os
calls = open("calls.txt", "a")

def length(prompts, completions, **columns):
    if os.path.exists("stop"):
        if os.path.getsize("calls.txt"):
            raise KeyboardInterrupt
    calls.write("x" * len(completions) + "\\n")
    calls.flush()
    return [float(len(text)) for text in completions]
"""


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE, encoding="utf-8")
    rows = [{"prompt": f"p{row}", "responses": ["a", "bb" * (row + 1)]} for row in range(3)]
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = [{"prompt": f"p{row}", "completion": "a" * (row + 1)} for row in range(4)]
    Path("sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


COMMANDS = {
    "score": ["score", "answers.jsonl"],
    "best-of-n": ["best-of-n", "answers.jsonl"],
    "evaluate": ["evaluate", "answers.jsonl", "--against", "answers.jsonl"],
    "score-sft": ["score-sft", "sft.jsonl"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_call_goes_on_where_the_first_was_stopped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*COMMANDS[name], "--judge", "judge.py:length", "--batch-size", "2"]
    sys.modules.pop("pangu_trl_judge_judge", None)
    assert main([*command, "--output", "whole"]) == 0
    num_batches = len(Path("calls.txt").read_text().splitlines())
    os.truncate("calls.txt", 0)
    Path("stop").touch()
    assert main([*command, "--output", "out"]) == 130
    assert not Path("out").exists() and Path("out.partial").exists()
    Path("stop").unlink()
    # Other options may not go on with it; the same ones judge only what is left.
    assert main([*command, "--batch-size", "3", "--output", "out"]) == 2
    assert "batch_size 2, now 3. Give the same options to go on with it" in capsys.readouterr().err
    assert main([*command, "--output", "out"]) == 0
    assert "goes on where an earlier call was stopped" in capsys.readouterr().err
    assert len(Path("calls.txt").read_text().splitlines()) == num_batches
    assert Path("out").read_text() == Path("whole").read_text()
    assert not Path("out.partial").exists()


def test_other_options_start_afresh_with_overwrite_and_where_nothing_was_kept(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    with Journal(output, {"seed": 1}) as journal:
        pass
    assert not journal.path.exists()
    with Journal(output, {"seed": 1}) as journal:
        journal.add({"0": 1.5})
    with pytest.raises(ValueError, match="seed 1, now 2"):
        Journal(output, {"seed": 2})
    with Journal(output, {"seed": 2}, starts_afresh=True) as journal:
        assert journal.known == {}
        journal.add({"1": 2.5})
    with Journal(output, {"seed": 2}) as journal:
        assert journal.known == {"1": 2.5}


def test_a_line_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    with Journal(tmp_path / "o", {}) as journal:
        journal.add({"0": 1.5})
    with journal.path.open("ab") as file:
        file.write(b'{"1": 2')
    with Journal(tmp_path / "o", {}) as journal:
        assert journal.known == {"0": 1.5}
        journal.add({"1": 3.5})
    assert journal.path.read_text().splitlines() == ["{}", '{"0": 1.5}', '{"1": 3.5}']


def test_two_calls_at_once_are_told_apart(tmp_path: Path) -> None:
    with Journal(tmp_path / "o", {}):
        with pytest.raises(ValueError, match="another call is writing it"):
            Journal(tmp_path / "o", {})


def test_what_is_written_beside_a_model_makes_no_other_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(str(tmp_path)), fingerprint_of_model(str(tmp_path))
    for name in ("_report.html", "_run_log.json", "README.md"):
        (tmp_path / name).write_text("{}")
    assert (fingerprint(str(tmp_path)), fingerprint_of_model(str(tmp_path))) == before
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert fingerprint(str(tmp_path)) != before[0] and fingerprint_of_model(str(tmp_path)) != before[1]


def test_a_judge_or_records_that_changed_are_no_longer_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules.pop("pangu_trl_judge_judge", None)
    Path("stop").touch()
    command = ["score", "answers.jsonl", "--judge", "judge.py:length", "--batch-size", "2", "--output", "out"]
    assert main(command) == 130
    Path("judge.py").write_text(JUDGE + "\n# other\n", encoding="utf-8")
    assert main(command) == 2
    assert "files of judge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("device", "device: is a link, which is never replaced"),
        ("pipe", "pipe: is no regular file, which is never replaced"),
        ("/dev/null", "/dev/null: is no regular file"),
        ("/proc/none.jsonl", "/proc/none.jsonl: cannot be written, as nothing may be written in /proc"),
        ("/proc/self/x/y.jsonl", "cannot be written, as nothing may be written in /proc"),
        ("folder", "folder: must be a file; got a folder"),
        ("judge.py/o.jsonl", "judge.py/o.jsonl: cannot be written, as "),
        ("x" * 300, "is too long; choose a shorter one"),
    ],
)
@pytest.mark.parametrize("name", ["sample", "score", "evaluate", "best-of-n", "score-sft"])
def test_what_cannot_be_written_is_refused_before_the_work(
    name: str, output: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    os.symlink("/dev/stdout", "device")
    os.mkfifo("pipe")
    # The models and judges do not exist: whoever looks for them first complains of that.
    sample = ["sample", "--model", "absent", "--prompts", "sft.jsonl"]
    command = sample if name == "sample" else [*COMMANDS[name], "--judge", "absent.py:f"]
    assert main([*command, "--output", output, "--overwrite"]) == 2
    assert message in capsys.readouterr().err
    assert Path("device").is_symlink() and Path("pipe").is_fifo()


@pytest.mark.parametrize("name", ["score", "best-of-n"])
def test_a_column_that_json_cannot_hold_is_refused_before_the_work(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("answers.jsonl").write_text('{"prompt": "p", "responses": ["a", "b"], "w": NaN}\n', encoding="utf-8")
    assert main([*COMMANDS[name], "--judge", "absent.py:f", "--output", "o"]) == 2
    assert "answers.jsonl:1: " in capsys.readouterr().err


@pytest.mark.parametrize("column", ["prompts", "completions"])
def test_a_column_with_the_name_of_a_judges_argument_is_refused(
    column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "p", "responses": ["a", "b"], column: 1}
    Path("answers.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert main([*COMMANDS["score"], "--judge", "judge.py:length", "--output", "o"]) == 2
    assert f"the column '{column}' has the name of an argument that every judge gets" in capsys.readouterr().err


def test_a_console_without_the_characters_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    written, said = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(said, encoding="ascii", errors="strict"))
    sys.modules.pop("pangu_trl_judge_judge", None)
    assert main([*COMMANDS["score"], "--judge", "judge.py:length", "--output", "答案"]) == 0
    assert Path("答案").is_file()
    assert main(["score", "缺.jsonl", "--judge", "absent.py:f", "--output", "o"]) == 2
    sys.stdout.flush()
    sys.stderr.flush()
    assert written.getvalue().startswith(b"\\u7b54\\u6848: 3 prompts")
    assert b"\\u7f3a.jsonl: no such file" in said.getvalue()
