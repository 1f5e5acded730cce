"""Mixtures of several sources."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from pangu_trl.data import CardError, RecordError, load_records, write_jsonl
from pangu_trl.data.loading import place_of
from pangu_trl.data.mixtures import Mixture, Part


def mixture(folder: Path, parts: list[dict[str, Any]], name: str = "mix.md", **keys: Any) -> Path:
    block = {"kind": "text", "mix": parts} | keys
    (folder / name).write_text(f"---\npangu_trl: {json.dumps(block)}\n---\n", encoding="utf-8")
    return folder / name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in [("a", 4), ("b", 10)]:
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{number}"} for number in range(size)])
    return tmp_path


def of(*parts: Part, **keys: Any) -> Mixture:
    return Mixture(Path("mix.md"), "text", parts, **keys)


@pytest.mark.parametrize(
    ("parts", "records", "sizes", "counts"),
    [
        # 3 : 1 with 30 and 20 records: 30 and 10 are the most without taking one twice.
        ([Part("a", weight=3), Part("b", weight=1)], None, [30, 20], [30, 10]),
        # 3 : 1 with 30 and 5: the second gives out, so 15 and 5.
        ([Part("a", weight=0.75), Part("b", weight=0.25)], None, [30, 5], [15, 5]),
        # 100 records as 3.3 : 3.3 : 3.4 are 33, 33 and 34; as thirds, the left-over one goes to the first.
        ([Part("a", weight=3.3), Part("b", weight=3.3), Part("c", weight=3.4)], 100, [1, 1, 1], [33, 33, 34]),
        ([Part("a", weight=1), Part("b", weight=1), Part("c", weight=1)], 100, [1, 1, 1], [34, 33, 33]),
        ([Part("a"), Part("b", epochs=2.5), Part("c", epochs=0.1)], None, [7, 4, 20], [7, 10, 2]),
    ],
)
def test_weights_and_epochs_give_numbers_of_records(
    parts: list[Part], records: int | None, sizes: list[int], counts: list[int]
) -> None:
    assert of(*parts, records=records).counts(sizes) == counts
    assert len(of(*parts, records=records).order(sizes)) == sum(counts)


def test_every_pass_takes_every_record_before_one_comes_again() -> None:
    counted = Counter(of(Part("a", epochs=2.5), Part("b")).order([4, 3]))
    assert [counted[record] for record in range(4, 7)] == [1, 1, 1]
    assert sorted(counted[record] for record in range(4)) == [2, 2, 3, 3]


def test_mixture_is_loaded_in_an_order_that_its_seed_decides(folder: Path) -> None:
    parts = [{"source": "a.jsonl", "epochs": 2}, {"source": "b.jsonl", "epochs": 0.5}]
    first = load_records(mixture(folder, parts), "text")
    assert len(first) == 13
    assert Counter(text[0] for text in first["text"]) == {"a": 8, "b": 5}
    again = load_records(mixture(folder, parts, "other.md"), "text")
    assert list(again) == list(first)
    assert again._fingerprint == first._fingerprint
    other = load_records(mixture(folder, parts, seed=1), "text")
    assert list(other) != list(first)
    assert other._fingerprint != first._fingerprint
    # What is made of the two is not mistaken for each other.
    shout = [dataset.map(lambda row: {"text": row["text"].upper()}) for dataset in (first, other)]
    assert [[text.lower() for text in dataset["text"]] for dataset in shout] == [
        list(first["text"]),
        list(other["text"]),
    ]


def test_place_of_a_mixed_record_is_in_its_source(folder: Path) -> None:
    dataset = load_records(mixture(folder, [{"source": "a.jsonl"}, {"source": "b.jsonl"}]), "text")
    row = dataset["text"][:].index("b7")
    assert place_of(dataset, row) == f"{folder / 'b.jsonl'}:8"


def test_parts_may_be_cards_formats_and_folders(folder: Path) -> None:
    write_jsonl(folder / "d" / "train" / "alpaca.jsonl", [{"instruction": "问", "output": "答"}])
    write_jsonl(
        folder / "rows.jsonl",
        [{"q": [{"role": "user", "content": "甲"}], "completion": [{"role": "assistant", "content": "乙"}]}],
    )
    block = {"kind": "demonstration", "path": "json", "data_files": {"test": "rows.jsonl"}, "columns": {"prompt": "q"}}
    (folder / "card.md").write_text(f"---\npangu_trl: {json.dumps(block)}\n---\n", encoding="utf-8")
    parts = [{"source": "d", "format": "alpaca"}, {"source": "card.md", "split": "test"}]
    dataset = load_records(mixture(folder, parts, kind="demonstration"), "demonstration")
    assert sorted(row["prompt"][0]["content"] for row in dataset) == ["甲", "问"]
    assert len(load_records(mixture(folder, parts, kind="demonstration"), "prompt")) == 2


@pytest.mark.parametrize(
    ("parts", "keys", "message"),
    [
        ([], {}, "'pangu_trl.mix' must be a list of sources; got []"),
        (["a.jsonl"], {}, "'pangu_trl.mix[0]' must be a mapping with 'source'; got 'a.jsonl'"),
        (
            [{"source": "a.jsonl", "wieght": 1}],
            {},
            "'pangu_trl.mix[0].wieght' is not a key of a part; the keys are source,",
        ),
        ([{"source": "a.jsonl", "weight": 0}], {}, "'pangu_trl.mix[0].weight' must be a positive number; got 0"),
        ([{"source": "a.jsonl", "epochs": True}], {}, "'pangu_trl.mix[0].epochs' must be a positive number; got True"),
        (
            [{"source": "a.jsonl", "weight": 1, "epochs": 1}],
            {},
            "'pangu_trl.mix[0]' must have 'weight' or 'epochs', not both",
        ),
        (
            [{"source": "a.jsonl", "weight": 1}, {"source": "b.jsonl"}],
            {},
            "must give a 'weight' to every source or to none",
        ),
        (
            [{"source": "a.jsonl"}],
            {"records": 5},
            "'pangu_trl.records' must be a positive integer, and every source needs",
        ),
        ([{"source": "a.jsonl"}], {"seed": "x"}, "'pangu_trl.seed' must be an integer; got 'x'"),
        (
            [{"source": "a.jsonl"}],
            {"path": "json"},
            "'pangu_trl.path' is not a key of a mixture; the keys are kind, mix, records,",
        ),
        ([{"source": "mix.md"}], {}, "must not be a mixture itself"),
        ([{"source": "a.jsonl", "epochs": 0.01}], {}, "its weights and epochs give none"),
        (
            [{"source": "a.jsonl"}],
            {"kind": "prompt"},
            "'pangu_trl.kind' must be text to load text records; got 'prompt'",
        ),
    ],
)
def test_unusable_mixture_is_refused(folder: Path, parts: list, keys: dict, message: str) -> None:
    with pytest.raises(CardError) as caught:
        load_records(mixture(folder, parts, **keys), "text")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{folder / 'mix.md'}: ")


def test_text_and_messages_are_not_mixed(folder: Path) -> None:
    write_jsonl(folder / "p.jsonl", [{"prompt": "问"}])
    write_jsonl(folder / "q.jsonl", [{"prompt": [{"role": "user", "content": "问"}]}])
    with pytest.raises(RecordError, match=r"q.jsonl:1: 'prompt' must be text, as in .*p.jsonl:1; got messages"):
        load_records(mixture(folder, [{"source": "p.jsonl"}, {"source": "q.jsonl"}], kind="prompt"), "prompt")


def test_columns_of_one_part_are_none_in_the_other(folder: Path) -> None:
    write_jsonl(folder / "c.jsonl", [{"text": "c", "meta": {"k": 1}}])
    dataset = load_records(mixture(folder, [{"source": "a.jsonl", "epochs": 0.25}, {"source": "c.jsonl"}]), "text")
    assert sorted((row["text"][0], row["meta"]) for row in dataset) == [("a", None), ("c", {"k": 1})]
    assert isinstance(dataset, datasets.Dataset)
