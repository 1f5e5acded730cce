"""`--special-tokens-in-text` holds in every command that reads texts with a model's tokenizer."""

import json
from pathlib import Path

import pytest

from pangu_trl.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch, reward_model, tokenizer) -> Path:
    """Records whose second line spells an end of sequence, and a reward model, in the working folder."""
    monkeypatch.chdir(tmp_path)
    reward_model.save_pretrained("judge")
    tokenizer.save_pretrained("judge")
    texts = ["酒店很好", "酒店<eot>很好"]
    write("answers.jsonl", [{"prompt": text, "responses": ["好", "不好"], "ranked": False} for text in texts])
    write("rankings.jsonl", [{"prompt": text, "responses": ["好", "不好"]} for text in texts])
    write("demonstrations.jsonl", [{"prompt": text, "completion": "好"} for text in texts])
    return tmp_path


def write(name: str, records: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


COMMANDS = {
    "score": "score answers.jsonl --judge judge --output out",
    "evaluate": "evaluate answers.jsonl --judge judge --output out",
    "best-of-n": "best-of-n answers.jsonl --judge judge --output out",
    "score-sft": "score-sft demonstrations.jsonl --judge judge --output out",
    "evaluate-reward": "evaluate-reward judge --data rankings.jsonl --output out",
    "check-data": "check-data demonstrations.jsonl --model judge --no-near-duplicates",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_option_wins_over_what_the_records_say(folder, command, capsys) -> None:
    words = COMMANDS[command].split()
    assert main([*words, "--special-tokens-in-text", "refuse"]) != 0
    said = "".join(capsys.readouterr())
    # The place of the record, and the token.
    assert ".jsonl:2" in said and "must not hold special tokens" in said and "<eot>" in said
    assert main([*words, "--special-tokens-in-text", "split"]) == 0


def test_split_and_keep_give_other_scores_and_go_with_the_records(folder) -> None:
    written = {}
    for mode in ("split", "keep"):
        assert (
            main(["score", "answers.jsonl", "--judge", "judge", "--output", mode, "--special-tokens-in-text", mode])
            == 0
        )
        written[mode] = [json.loads(line) for line in Path(mode).read_text("utf-8").splitlines()]
        assert [record["special_tokens_in_text"] for record in written[mode]] == [mode, mode]
    # The other record has another length, so that the batch may be rounded differently.
    assert written["split"][0]["scores"] == pytest.approx(written["keep"][0]["scores"], rel=1e-5)
    assert written["split"][1]["scores"] != written["keep"][1]["scores"]
