"""Loading canonical records from every kind of source."""

import json
import logging
from pathlib import Path

import datasets
import pytest

from pangu_trl.data import CardError, RecordError, load_records, write_jsonl
from pangu_trl.data.loading import place_of

QUESTION = [{"role": "user", "content": "你好吗？"}]
ANSWERS = [[{"role": "assistant", "content": "我很好。"}], [{"role": "assistant", "content": "不好。"}]]


def write_card(folder: Path, kind: str, rows: list[dict], columns: dict[str, str] | None = None) -> Path:
    write_jsonl(folder / "rows.jsonl", rows, overwrite=True)
    block = {"kind": kind, "path": "json", "data_files": {"train": "rows.jsonl"}, "columns": columns or {}}
    card = folder / "card.md"
    card.write_text(f"---\npangu_trl: {json.dumps(block, ensure_ascii=False)}\n---\n", encoding="utf-8")
    return card


def test_jsonl_becomes_canonical_records_with_every_column(tmp_path: Path) -> None:
    file = tmp_path / "rankings.jsonl"
    rows = [
        {"prompt": "问", "responses": ["甲", "乙", "丙"]},
        {"prompt": "2020-01-01", "chosen": "1", "rejected": "null", "来源": {"id": 3}},
    ]
    write_jsonl(file, rows)
    dataset = load_records(file, "ranking")
    assert list(dataset) == [
        {"prompt": "问", "responses": ["甲", "乙", "丙"], "scores": [2.0, 1.0, 0.0], "来源": None},
        {"prompt": "2020-01-01", "responses": ["1", "null"], "scores": [1.0, 0.0], "来源": {"id": 3}},
    ]


@pytest.mark.parametrize("through_card", [False, True])
def test_messages_survive(tmp_path: Path, through_card: bool) -> None:
    rows = [{"prompt": QUESTION, "responses": ANSWERS, "scores": [1.0, 0.5]}]
    card = write_card(tmp_path, "ranking", rows)
    assert list(load_records(card if through_card else tmp_path / "rows.jsonl", "ranking")) == rows


@pytest.mark.parametrize("kind", ["demonstration", "ranking"])
def test_demonstrations_and_rankings_serve_as_prompts(tmp_path: Path, kind: str) -> None:
    row = {"prompt": "问", "completion": "答", "responses": ["甲", "乙"], "scores": [1.0, 0.0]}
    card = write_card(tmp_path, kind, [row])
    assert list(load_records(card, "prompt")) == [row]
    assert list(load_records(tmp_path / "rows.jsonl", "prompt")) == [row]


def test_folders_of_splits_are_the_splits(tmp_path: Path) -> None:
    for split, texts in [("train", ["一", "二"]), ("test", ["三"])]:
        (tmp_path / "folder" / split).mkdir(parents=True)
        datasets.Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "folder" / split / "rows.parquet")
    folder = tmp_path / "folder"
    assert list(load_records(folder, "text")) == [{"text": "一"}, {"text": "二"}]
    assert list(load_records(str(folder), "text", split="test")) == [{"text": "三"}]
    with pytest.raises(RecordError, match="the split must be one of train, test; got 'validation'"):
        load_records(folder, "text", split="validation")


def test_bad_line_of_jsonl_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "一"}\n\n{"prompt": ""}\n', encoding="utf-8")
    with pytest.raises(RecordError) as caught:
        load_records(file, "prompt")
    assert str(caught.value) == f"{file}:3: 'prompt' must be text that is not empty; got '' (str)."


def test_bad_row_of_a_card_and_of_a_folder_is_named(tmp_path: Path) -> None:
    card = write_card(tmp_path, "prompt", [{"题": "一"}, {"题": " "}], {"prompt": "题"})
    with pytest.raises(RecordError) as caught:
        load_records(card, "prompt")
    assert str(caught.value) == f"{tmp_path / 'rows.jsonl'}:2: 'prompt' must be text that is not empty; got ' ' (str)."

    folder = tmp_path / "folder"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ["一", None]}).to_parquet(folder / "train.parquet")
    with pytest.raises(RecordError) as caught:
        load_records(folder, "text")
    assert str(caught.value).startswith(
        f"{folder / 'train.parquet'} row 1: 'text' must be present; the record has no field at all"
    )


def test_places_of_rows_are_those_of_the_source(tmp_path: Path) -> None:
    card = write_card(tmp_path, "prompt", [{"题": "一"}, {"题": "二"}], {"prompt": "题"})
    file = tmp_path / "prompts.jsonl"
    file.write_text('\n{"prompt": "一"}\n\n{"prompt": "二"}\n', encoding="utf-8")
    assert place_of(load_records(file, "prompt"), 1) == f"{file}:4"
    dataset = load_records(card, "prompt")
    assert place_of(dataset, 1) == f"{tmp_path / 'rows.jsonl'}:2"
    assert place_of(dataset.select([1]), 0) is None


def test_text_and_messages_in_one_source_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"prompt": "问"}, {"prompt": QUESTION}])
    with pytest.raises(RecordError) as caught:
        load_records(file, "prompt")
    assert str(caught.value).startswith(f"{file}:2: 'prompt' must be text, as in {file}:1; got messages.")


def test_extra_column_of_two_types_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"text": "一", "id": 1}, {"text": "二", "id": "b"}])
    with pytest.raises(RecordError) as caught:
        load_records(file, "text")
    assert str(caught.value).startswith(
        f"{file}:2: 'id' must be an integer, as in {file}:1; got text. A column has one"
    )


def test_card_of_another_kind_is_refused(tmp_path: Path) -> None:
    card = write_card(tmp_path, "ranking", [{"prompt": "问", "responses": ["甲", "乙"]}])
    with pytest.raises(CardError) as caught:
        load_records(card, "demonstration")
    assert str(caught.value) == (
        f"{card}: 'pangu_trl.kind' must be demonstration to load demonstration records; got 'ranking'."
    )


def test_unknown_kind_and_unknown_split_of_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"text": "一"}])
    with pytest.raises(RecordError, match="must be one of demonstration, ranking, prompt, text; got 'rlhf'"):
        load_records(file, "rlhf")
    with pytest.raises(RecordError, match="must be 'train', the whole file; got 'test'"):
        load_records(file, "text", split="test")


def test_column_that_a_mapped_field_replaces_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    card = write_card(tmp_path, "prompt", [{"prompt": "旧", "meta": {"q": "新"}}], {"prompt": "meta.q"})
    with caplog.at_level(logging.INFO, logger="pangu_trl"):
        assert list(load_records(card, "prompt")) == [{"prompt": "新", "meta": {"q": "新"}}]
    assert f"{card}: the source's own column 'prompt' gives way to 'meta.q'." in caplog.messages


def test_numbers_of_answers_and_of_tied_groups_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "rankings.jsonl"
    triple = {"prompt": "问", "responses": ["甲", "乙", "丙"], "scores": [1, 1, 1]}
    pair = {"prompt": "问", "responses": ["甲", "乙"], "scores": [1, 0]}
    write_jsonl(file, [triple, pair, pair, triple | {"scores": [1, 1, 2]}, triple])
    with caplog.at_level(logging.INFO, logger="pangu_trl"):
        load_records(file, "ranking")
    assert (
        f"{file}[train]: 5 ranking records (answers per prompt: records = 2: 2, 3: 3); "
        "all answers tied, nothing to learn: 2" in caplog.messages
    )


def test_cache_follows_the_content_not_the_name(tmp_path: Path) -> None:
    file, copy = tmp_path / "rows.jsonl", tmp_path / "copy.jsonl"
    write_jsonl(file, [{"text": "一"}])
    write_jsonl(copy, [{"text": "一"}])
    first = load_records(file, "text")
    assert load_records(copy, "text").cache_files == first.cache_files != []
    write_jsonl(file, [{"text": "二"}], overwrite=True)
    assert list(load_records(file, "text")) == [{"text": "二"}]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """What is computed from the records, tokenising above all, is found again by it, or would be taken for others'."""
    file = tmp_path / "rows.jsonl"

    def fingerprints() -> tuple[str, str]:
        dataset = load_records(file, "prompt")
        return dataset._fingerprint, dataset.map(_shout)._fingerprint

    write_jsonl(file, [{"prompt": "一", "来源": 1}, {"prompt": "二", "来源": 2}])
    first = fingerprints()
    assert fingerprints() == first
    # Another text, another order, another value of a column that the kind does not know, another name of it.
    for rows in (
        [{"prompt": "一", "来源": 1}, {"prompt": "三", "来源": 2}],
        [{"prompt": "二", "来源": 2}, {"prompt": "一", "来源": 1}],
        [{"prompt": "一", "来源": 1}, {"prompt": "二", "来源": 3}],
        [{"prompt": "一", "出处": 1}, {"prompt": "二", "出处": 2}],
    ):
        write_jsonl(file, rows, overwrite=True)
        assert not set(fingerprints()) & set(first), rows


def _shout(row: dict) -> dict:
    return {"prompt": row["prompt"] + "！"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sets/tran.jsonl", " (did you mean sets/train.jsonl?)"),
        ("set/train.jsonl", " (did you mean sets/train.jsonl?)"),
        ("set/other.jsonl", " (did you mean sets?)"),
        # They end alike, and are not near.
        ("sets/nosuch.jsonl", ""),
        ("sets/card.md", ""),
        # A file is no folder that others could lie in.
        ("sets/train.json/a/b", ""),
    ],
)
def test_a_misspelt_path_is_told_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "sets" / "train.jsonl", [{"prompt": "a"}])
    with pytest.raises(OSError) as refused:
        load_records(name, "prompt")
    assert f"(looked for {tmp_path / name}){hint}" in str(refused.value)
    assert ("did you mean" in str(refused.value)) == bool(hint)
