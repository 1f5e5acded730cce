"""Training a vocabulary: the official rules and first ids on one's own text, from Python and the command line."""

import csv
import gzip
import json
import re
from itertools import product
from pathlib import Path

import pytest
from datasets import Dataset
from official_tokenizer import UNK
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from pangu_trl import GPTPanguTokenizer, cli
from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

SUBJECTS = ["房间", "服务", "酒店", "早餐", "位置", "价格", "电脑", "屏幕", "这本书", "包装"]
REMARKS = ["很好", "不错", "太差了", "一般", "让人满意", "有点贵", "非常糟糕", "物有所值"]
REVIEWS = [
    f"{subject}{remark}，{other}也{remark}{'。！'[index % 3 : index % 3 + 1]}"
    for index, (subject, other, remark) in enumerate(product(SUBJECTS, SUBJECTS, REMARKS))
] + [*SUBJECTS, *REMARKS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPTPanguTokenizer]:
    folder = tmp_path_factory.mktemp("vocabulary") / "trained"
    return folder, train_vocabulary(iter(REVIEWS), folder, vocab_size=70, num_threads=1)


def test_trained_vocabulary_has_the_official_first_ids(trained: tuple[Path, GPTPanguTokenizer]) -> None:
    folder, tokenizer = trained
    model = SentencePieceProcessor(model_file=str(folder / "vocab.model"))
    pieces = ["<unk>", "<s>", "</s>", "▃", "▂", "<sep>", "<pad>", "<mask>", "<eod>", "<eot>"]
    assert [model.id_to_piece(index) for index in range(10)] == pieces
    assert [model.is_control(index) for index in range(10)] == [index in (1, 2) for index in range(10)]
    assert model.get_piece_size() == len(tokenizer) == 70
    assert model.encode("１Ａ…", out_type=str) == model.encode("1A...", out_type=str)


def test_trained_tokenizer_loads_and_round_trips(trained: tuple[Path, GPTPanguTokenizer]) -> None:
    folder, tokenizer = trained
    loaded = AutoTokenizer.from_pretrained(folder)
    text = "房间很好, 早餐\n让人满意<sep>酒店不错!<eot>"
    ids = loaded(text).input_ids
    assert ids == tokenizer(text).input_ids
    assert loaded.decode(ids) == text
    assert UNK not in ids
    # Whole words, after the border that segmentation puts before each, became pieces.
    assert {"▁不错", "▁满意", "▁物有所值"} <= set(loaded.vocab)


def test_training_is_deterministic(trained: tuple[Path, GPTPanguTokenizer], tmp_path: Path) -> None:
    train_vocabulary(REVIEWS, tmp_path / "again", vocab_size=70, num_threads=1)
    assert (tmp_path / "again" / "vocab.model").read_bytes() == (trained[0] / "vocab.model").read_bytes()


def test_training_drops_neither_long_lines_nor_lines_with_the_trainers_own_mark(tmp_path: Path) -> None:
    rare = ["孔雀" * 2_000, "熊猫\u2585" * 20]
    vocabulary = train_vocabulary(REVIEWS + rare, tmp_path, vocab_size=72, num_threads=1).vocab
    assert any("孔" in piece for piece in vocabulary)
    assert any("熊" in piece for piece in vocabulary)


def test_small_vocabulary_keeps_room_for_words(tmp_path: Path) -> None:
    # 48 common characters and 60 that stand once: at the official coverage they would take more than all 75 pieces.
    rare = {chr(0x5000 + index) for index in range(60)}
    vocabulary = train_vocabulary([*REVIEWS, *sorted(rare)], tmp_path, vocab_size=75, num_threads=1).vocab
    characters = {piece.replace("▁", "") for piece in vocabulary} & rare
    assert len(characters) <= 0.75 * 75 - 48 + 1
    assert "▁物有所值" in vocabulary


@pytest.mark.parametrize(
    ("texts", "vocab_size", "error", "message"),
    [
        ([], 100, ValueError, "expected text to train a vocabulary on, got 0 texts"),
        ([" \n", ""], 100, ValueError, "got 2 texts without a visible character"),
        ("房间很好", 100, TypeError, r"pass \[text\]"),
        (["房间", None], 100, TypeError, r"texts\[1\] must be a string, got NoneType"),
        (["房间", "很\ud83d好"], 100, ValueError, r"texts\[1\]: lone surrogate U\+D83D"),
        (REVIEWS, 4000, ValueError, r"4000 pieces on 818 texts .* vocab_size of at most \d+"),
        (REVIEWS, 20, ValueError, r"20 pieces on 818 texts .* vocab_size of at least \d+"),
    ],
)
def test_training_errors_say_what_to_do(
    texts: object, vocab_size: int, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train_vocabulary(texts, tmp_path / "new", vocab_size, num_threads=1)
    assert not (tmp_path / "new").exists()


def test_training_overwrites_no_tokenizer(trained: tuple[Path, GPTPanguTokenizer]) -> None:
    with pytest.raises(FileExistsError, match=r"vocab\.model exists"):
        train_vocabulary(REVIEWS, trained[0], vocab_size=70)


def train_by_command(folder: Path, *sources: Path, vocab_size: int = 70) -> int:
    options = ["--output", str(folder), "--vocab-size", str(vocab_size), "--num-threads", "1"]
    return cli.main(["train-tokenizer", *map(str, sources), *options])


def test_command_trains_the_same_vocabulary_from_lines_and_records(
    trained: tuple[Path, GPTPanguTokenizer], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lines, records, card = tmp_path / "lines.txt", tmp_path / "records.jsonl", tmp_path / "card.md"
    lines.write_text("\n".join(REVIEWS[:800]) + "\n\n", "utf-8")
    answers = [{"role": "assistant", "content": REVIEWS[804]}]
    rows = [
        {"prompt": REVIEWS[800], "responses": REVIEWS[801:803], "scores": [1.0, 0.0]},
        {"prompt": [{"role": "user", "content": REVIEWS[803]}], "completion": answers},
        {"text": REVIEWS[805], "url": "not text to learn"},
    ]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "rest.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in REVIEWS[806:]), "utf-8")
    card.write_text("---\npangu_trl: {kind: text, path: json, data_files: {train: rest.jsonl}}\n---\n", "utf-8")
    assert train_by_command(tmp_path / "by_command", lines, records, card) == 0
    characters = sum(map(len, REVIEWS))
    assert f"70 pieces from {len(REVIEWS)} texts of {characters} characters" in capsys.readouterr().out
    assert (tmp_path / "by_command" / "vocab.model").read_bytes() == (trained[0] / "vocab.model").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "by_command").eos_token_id == 9


def test_command_reads_what_the_other_commands_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    parts = [REVIEWS[start : start + 150] for start in range(0, 750, 150)]
    folder = tmp_path / "folder"
    folder.mkdir()
    with gzip.open(folder / "1.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in parts[0])
    with (folder / "2.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in parts[1])])
    Dataset.from_dict({"text": parts[2]}).to_parquet(folder / "3.parquet")
    turns = [{"instruction": one, "output": two} for one, two in zip(parts[3][::2], parts[3][1::2], strict=True)]
    (tmp_path / "alpaca.json").write_text(json.dumps(turns), "utf-8")
    card = "---\npangu_trl: {kind: demonstration, path: json, format: alpaca, data_files: alpaca.json}\n---\n"
    (tmp_path / "alpaca.md").write_text(card, "utf-8")
    (tmp_path / "rest.txt").write_text("\n".join([*parts[4], *REVIEWS[750:]]), "utf-8")
    (tmp_path / "mix.md").write_text("---\npangu_trl: {kind: text, mix: [{source: rest.txt}]}\n---\n", "utf-8")
    assert train_by_command(tmp_path / "by_command", folder, tmp_path / "alpaca.md", tmp_path / "mix.md") == 0
    found = capsys.readouterr().out
    assert f"70 pieces from {len(REVIEWS)} texts of {sum(map(len, REVIEWS))} characters" in found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.csv", "房间", r"texts.csv: must hold a header and a row for each record; the file is empty"),
        ("texts.doc", "房间", "texts.doc: a file of records must end in"),
        ("body.csv", "body\n房间", r"body.csv:2: must hold text in one of text, prompt, .* got 'body'"),
        ("texts.txt", "房间很干净", "cannot train a vocabulary of 70 pieces on 1 texts of 5 characters"),
        ("texts.jsonl", '{"body": "房间"}', "texts.jsonl:1: must hold text in one of text, prompt, .* got 'body'"),
        ("missing.txt", None, "missing.txt"),
    ],
)
def test_command_explains_in_one_line_what_it_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    assert train_by_command(tmp_path / "new", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "new").exists()
