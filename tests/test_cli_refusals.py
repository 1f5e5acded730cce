"""What commands refuse before they load a model or a judge."""

import json
from pathlib import Path

import pytest

from pangu_trl.cli import main


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("answers.jsonl").write_text(json.dumps({"prompt": "p", "responses": ["a", "b"]}) + "\n")


@pytest.mark.parametrize(
    ("output", "message"),
    [("folder", "folder: must be a file; got a folder"), ("file/o.jsonl", "file/o.jsonl: cannot be written, as ")],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(output, message, capsys):
    Path("folder").mkdir()
    Path("file").write_text("precious")
    # The judge does not exist: whoever looks for it first complains of that.
    command = ["score", "answers.jsonl", "--judge", "absent.py:f", "--output", output, "--overwrite"]
    assert main(command) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert Path("file").read_text() == "precious"


def test_evaluation_refuses_a_column_that_is_not_there_and_a_gap_that_is_no_number(capsys):
    assert main(["evaluate", "answers.jsonl", "--score-column", "taste"]) == 2
    assert "answers.jsonl: no record has the column 'taste'" in capsys.readouterr().err
    for gap in ("nan", "-1", "x"):
        with pytest.raises(SystemExit):
            main(["evaluate", "answers.jsonl", "--min-score-gap", gap])
        assert f"--min-score-gap: must be a number, 0 or greater; got '{gap}'" in capsys.readouterr().err


def test_interrupting_a_command_is_no_traceback(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("pangu_trl.commands.evaluate.run", interrupted)
    assert main(["evaluate", "answers.jsonl"]) == 130
    assert capsys.readouterr().err == "pangu-trl evaluate: interrupted\n"


def test_a_file_of_another_kind_is_not_looked_up_on_the_hub(capsys):
    Path("prompts.docx").write_text("p")
    assert main(["sample", "--model", "absent", "--prompts", "prompts.docx", "--output", "o.jsonl"]) == 2
    assert "prompts.docx: a file of records must end in" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_refused_by_its_folder(policy, capsys):
    policy.save_pretrained("model")
    Path("prompts.jsonl").write_text('{"prompt": "p"}\n')
    assert main(["sample", "--model", "model", "--prompts", "prompts.jsonl", "--output", "o.jsonl"]) == 2
    assert "model: no tokenizer can be loaded from it; save the model's tokenizer there" in capsys.readouterr().err


def test_texts_for_a_vocabulary_are_utf8_or_refused_by_line(capsys):
    Path("texts.txt").write_bytes("你好\n".encode() + "世界".encode("gb18030"))
    for source, message in (("texts.txt", "texts.txt:2: must be UTF-8"), ("absent.txt", "absent.txt: no such file")):
        assert main(["train-tokenizer", source, "--vocab-size", "20", "--output", "tokenizer"]) == 2
        assert f"error: {message}" in capsys.readouterr().err
