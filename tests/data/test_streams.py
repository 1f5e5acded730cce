"""Records as a stream: what the source holds, pass after pass, with what is too long left out and counted."""

import json
import logging
from itertools import islice
from pathlib import Path

import datasets
import pytest

from pangu_trl.data import load_records, tokenize_demonstrations, tokenize_prompts
from pangu_trl.data.cards import CardError
from pangu_trl.data.records import RecordError
from pangu_trl.data.streams import PLACE_COLUMN, as_stream, fingerprint_of_stream, read_whole, stream_records


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def first(stream, count: int) -> list[dict]:
    return list(islice(stream, count))


def test_a_stream_holds_the_records_with_their_places(tmp_path):
    records = [{"prompt": "一", "extra": {"a": 1}}, {"prompt": "二", "extra": {"b": None}}, {"prompt": "三"}]
    file = write(tmp_path / "a.jsonl", *records)
    places = [f"{file}:{line}" for line in (1, 2, 3)]
    expected = [record | {PLACE_COLUMN: place} for record, place in zip(records, places, strict=True)]
    assert list(stream_records(file, "prompt")) == expected
    own = list(stream_records(file, "prompt", special_tokens_in_text="keep"))
    assert [row["special_tokens_in_text"] for row in own] == ["keep"] * 3


def test_a_record_that_does_not_fit_is_named_when_it_is_met(tmp_path):
    file = write(tmp_path / "a.jsonl", {"prompt": "一"}, {"prompt": ""})
    rows = iter(stream_records(file, "prompt"))
    assert next(rows)["prompt"] == "一"
    with pytest.raises(RecordError, match=r"a\.jsonl:2: 'prompt' must be text"):
        next(rows)


def test_every_pass_is_shuffled_in_another_order_by_the_seed(tmp_path):
    file = write(tmp_path / "a.jsonl", *({"text": str(number)} for number in range(20)))

    def order(seed: int, epoch: int) -> list[int]:
        stream = stream_records(file, "text", seed=seed, buffer_size=8)
        stream.set_epoch(epoch)
        return [int(row["text"]) for row in stream]

    orders = [order(1, 0), order(1, 1), order(2, 0)]
    assert order(1, 0) == orders[0]
    assert all(sorted(found) == list(range(20)) for found in orders)
    assert len({tuple(found) for found in orders} | {tuple(range(20))}) == 4
    # Eight at a time: the last record cannot come first.
    assert all(found.index(19) > 3 for found in orders)


def test_token_ids_go_round_and_are_those_of_the_records_in_memory(tmp_path, tokenizer, reviews):
    file = write(tmp_path / "a.jsonl", *reviews)
    whole = tokenize_demonstrations(load_records(file, "demonstration"), tokenizer, 128)
    stream = tokenize_demonstrations(stream_records(file, "demonstration"), tokenizer, 128)
    assert first(stream, 30) == [*whole, *whole, *whole][:30]
    # A second reading begins again.
    assert first(stream, 2) == list(whole.select([0, 1]))
    assert stream.encoded_stream.describe().startswith("2 demonstrations read")


def test_token_ids_of_every_pass_have_an_order_of_their_own(tokenizer):
    records = [{"prompt": "好" * length} for length in range(1, 13)]
    shuffled = as_stream(lambda: iter(records)).shuffle(seed=1, buffer_size=12)
    lengths = [len(row["prompt"]) for row in first(tokenize_prompts(shuffled, tokenizer, 40), 24)]
    assert sorted(lengths[:12]) == sorted(lengths[12:]) == list(range(1, 13))
    assert lengths[:12] != lengths[12:]


def test_what_is_too_long_is_left_out_counted_and_said(tmp_path, tokenizer, caplog):
    lengths = [3, 30, 4, 31, 32, 5]
    records = [{"prompt": "好" * length, "completion": "好"} for length in lengths]
    file = write(tmp_path / "a.jsonl", *records)
    ids = [len(tokenizer("好" * length)["input_ids"]) for length in lengths]
    # Room for the three short ones; of the last of the long ones not even the prompt fits.
    assert sorted(ids)[2] + 4 <= 16 < sorted(ids)[3]
    stream = tokenize_demonstrations(stream_records(file, "demonstration"), tokenizer, sorted(ids)[3] + 1)
    with caplog.at_level(logging.INFO, logger="pangu_trl"):
        rows = first(stream, 7)
    kept = [ids[0], ids[2], ids[5]]
    assert [row["completion_mask"].count(0) for row in rows] == [*kept, *kept, kept[0]]
    # Two whole passes, and the first record of a third one.
    assert stream.encoded_stream.describe() == "13 demonstrations read from the stream; 6 left out as too long"
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.split(" demonstrations")[0] for message in warned] == ["1", "2", "4"]
    assert f"{file}:2: " in warned[0]
    passes = [record.getMessage() for record in caplog.records if "is complete" in record.getMessage()]
    assert passes[0] == (
        "Pass 1 over the stream is complete: 6 demonstrations read from the stream; 3 left out as too long."
    )


def test_a_prompt_without_room_is_left_out_of_a_stream_and_refused_in_memory(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", {"prompt": "好" * 40, "id": 1}, {"prompt": "好", "id": 2, "tags": ["a"]})
    with pytest.raises(ValueError, match=r"row 0 \(.*a\.jsonl:1\): the prompt must have at most"):
        tokenize_prompts(load_records(file, "prompt"), tokenizer, 20)
    rows = first(tokenize_prompts(stream_records(file, "prompt"), tokenizer, 20), 2)
    assert rows == [
        {"prompt": "好", "id": 2, "tags": ["a"], "prompt_input_ids": tokenizer("好")["input_ids"]} for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("records", "refusal"),
    [
        ([], "the file is empty"),
        ([{"prompt": "好" * 40, "completion": "好"}], "must hold demonstrations that fit; of 1 in one pass none does"),
    ],
)
def test_a_stream_with_nothing_to_learn_from_ends_in_an_error(tmp_path, tokenizer, records, refusal):
    file = write(tmp_path / "a.jsonl", *records)
    with pytest.raises(ValueError, match=refusal):
        first(tokenize_demonstrations(stream_records(file, "demonstration"), tokenizer, 16), 1)


def test_an_empty_generator_ends_in_an_error(tokenizer):
    with pytest.raises(ValueError, match="the stream must hold prompts; there is none"):
        first(tokenize_prompts(as_stream(lambda: iter([])), tokenizer, 16), 1)


def test_an_error_of_encoding_names_the_place_whatever_the_order(tmp_path, tokenizer):
    fine = [{"prompt": f"好{number}", "special_tokens_in_text": "refuse"} for number in range(5)]
    file = write(tmp_path / "a.jsonl", *fine, {"prompt": "a<eot>", "special_tokens_in_text": "refuse"})
    stream = tokenize_prompts(stream_records(file, "prompt", seed=3, buffer_size=10), tokenizer, 20)
    with pytest.raises(ValueError, match=r"^\S*a\.jsonl:6: the texts must not hold special tokens"):
        first(stream, 6)


def test_columns_are_those_of_the_first_record(tokenizer):
    # Of prompts further columns go on to reward functions, which get one list for each.
    lacking = as_stream(lambda: iter([{"prompt": "一", "id": 1}, {"prompt": "二"}]))
    assert [row["id"] for row in first(tokenize_prompts(lacking, tokenizer, 20), 2)] == [1, None]
    more = as_stream(lambda: iter([{"prompt": "一"}, {"prompt": "二", "id": 1}]))
    with pytest.raises(RecordError, match=r"record 1 of the stream: the columns .* which has no id"):
        first(tokenize_prompts(more, tokenizer, 20), 2)


def test_typed_special_tokens_are_counted_and_their_first_place_is_said(tmp_path, tokenizer, caplog):
    file = write(tmp_path / "a.jsonl", {"prompt": "一"}, {"prompt": "<eot>a<sep>"}, {"prompt": "<eot>"})
    stream = tokenize_prompts(stream_records(file, "prompt"), tokenizer, 40)
    with caplog.at_level(logging.WARNING, logger="pangu_trl"):
        first(stream, 3)
    # Letters that the vocabulary lacks, encoded one text at a time.
    ids = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in ("一", "<eot>a<sep>", "<eot>")]
    unknown = [text_ids.count(tokenizer.unk_token_id) for text_ids in ids]
    assert unknown[0] == 0 < unknown[2]
    assert stream.encoded_stream.describe().endswith(
        f"; 3 special tokens stood in the texts of 2; {sum(unknown)} tokens of 2 are unknown to the tokenizer"
    )
    # Each kind is said once, at its first place.
    assert [record.getMessage().count(f"{file}:2") for record in caplog.records] == [1, 1]


def mixture(folder: Path, *parts: str, more: str = "") -> Path:
    (folder / "mix.md").write_text(f"---\npangu_trl:\n  kind: text\n  mix: [{', '.join(parts)}]\n{more}---\n", "utf-8")
    return folder / "mix.md"


def test_a_mixture_is_drawn_by_weight_and_its_parts_begin_again(tmp_path):
    write(tmp_path / "a.jsonl", {"text": "a0"}, {"text": "a1"}, {"text": "a2"})
    write(tmp_path / "b.jsonl", {"text": "b0"}, {"text": "b1"})
    card = mixture(tmp_path, "{source: a.jsonl, weight: 3}", "{source: b.jsonl, weight: 1}", more="  seed: 5\n")
    texts = [row["text"] for row in first(stream_records(card, "text"), 1000)]
    of_a = [text for text in texts if text[0] == "a"]
    of_b = [text for text in texts if text[0] == "b"]
    # Binomial: 750 +- 14.
    assert 690 < len(of_a) < 810
    assert of_a[:7] == ["a0", "a1", "a2", "a0", "a1", "a2", "a0"]
    assert of_b[:3] == ["b0", "b1", "b0"]
    assert [row["text"] for row in first(stream_records(card, "text"), 1000)] == texts
    other = mixture(tmp_path, "{source: a.jsonl, weight: 3}", "{source: b.jsonl, weight: 1}", more="  seed: 6\n")
    assert [row["text"] for row in first(stream_records(other, "text"), 1000)] != texts


@pytest.mark.parametrize(
    ("parts", "more", "refusal"),
    [
        (["{source: a.jsonl}", "{source: b.jsonl, epochs: 2}"], "", r"mix\.md: 'pangu_trl\.mix' must give a 'weight'"),
        (
            ["{source: a.jsonl, weight: 1}", "{source: b.jsonl, weight: 2}"],
            "  records: 5\n",
            r"'pangu_trl\.records' has no effect in a stream.*set max_steps",
        ),
    ],
)
def test_a_mixture_that_counts_records_cannot_stream(tmp_path, parts, more, refusal):
    write(tmp_path / "a.jsonl", {"text": "a"})
    write(tmp_path / "b.jsonl", {"text": "b"})
    with pytest.raises(CardError, match=refusal):
        stream_records(mixture(tmp_path, *parts, more=more), "text")


def test_a_stream_that_is_read_whole_keeps_objects_as_they_are():
    records = [{"text": "a", "meta": {"a": 1}}, {"text": "b", "meta": {"b": [2.5]}}]
    assert list(read_whole(as_stream(lambda: iter(records)), "text", "eval")) == records
    with pytest.raises(RecordError, match="eval record 0: 'text' must be present"):
        read_whole(as_stream(lambda: iter([{"prompt": "a"}])), "text", "eval")
    with pytest.raises(RecordError, match="the eval stream must hold records"):
        read_whole(as_stream(lambda: iter([])), "text", "eval")


def test_the_fingerprint_tells_another_source_order_or_seed(tmp_path, caplog):
    file = write(tmp_path / "a.jsonl", *({"text": str(number)} for number in range(300)))
    prints = [
        fingerprint_of_stream(stream_records(file, "text", seed=seed, buffer_size=buffer))
        for seed, buffer in ((1, 0), (1, 10), (2, 10))
    ]
    assert len(set(prints)) == 3
    assert fingerprint_of_stream(stream_records(file, "text", seed=2, buffer_size=10)) == prints[2]


def test_a_dataset_of_the_hub_that_streams_is_taken_as_it_is(tokenizer):
    records = [{"prompt": "一"}, {"prompt": "二"}]
    stream = datasets.Dataset.from_list(records).to_iterable_dataset(num_shards=2)
    rows = first(tokenize_prompts(stream, tokenizer, 20), 3)
    assert [row["prompt"] for row in rows] == ["一", "二", "一"]
