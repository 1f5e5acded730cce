"""What a call of GPTPanguTokenizer returns: padding, truncation, pairs, words, offsets, masks."""

from itertools import product
from pathlib import Path

import pytest
import torch
from official_tokenizer import COMMA, EOT, GOODBYE, HELLO, PAD, SEP, TOMORROW, dialogues, golden_records

from pangu_trl import GPTPanguTokenizer


@pytest.fixture
def tokenizer(official_vocabulary: Path) -> GPTPanguTokenizer:
    return GPTPanguTokenizer(official_vocabulary)


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[HELLO, PAD, PAD, PAD], [GOODBYE, COMMA, TOMORROW, PAD]], [[1, 0, 0, 0], [1, 1, 1, 0]]),
        ("left", [[PAD, PAD, PAD, HELLO], [PAD, GOODBYE, COMMA, TOMORROW]], [[0, 0, 0, 1], [0, 1, 1, 1]]),
    ],
)
def test_padding_to_a_multiple_on_either_side(
    tokenizer: GPTPanguTokenizer, side: str, ids: list[list[int]], mask: list[list[int]]
) -> None:
    batch = tokenizer(
        ["你好", "再见，明天"], padding=True, pad_to_multiple_of=4, padding_side=side, return_tensors="pt"
    )
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch.input_ids, torch.tensor(ids))
    assert torch.equal(batch.attention_mask, torch.tensor(mask))


def test_padding_to_max_length_truncates_only_if_asked(tokenizer: GPTPanguTokenizer) -> None:
    options = {"padding": "max_length", "max_length": 2}
    assert tokenizer("你好", **options).input_ids == [HELLO, PAD]
    assert tokenizer("再见，明天", truncation=False, **options).input_ids == [GOODBYE, COMMA, TOMORROW]
    assert tokenizer("再见，明天", truncation=True, **options).input_ids == [GOODBYE, COMMA]
    tokenizer.truncation_side = "left"
    assert tokenizer("再见，明天", truncation=True, **options).input_ids == [COMMA, TOMORROW]


def test_truncation_keeps_room_for_eot(official_vocabulary: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary, append_eot=True)
    assert tokenizer("再见，明天", truncation=True, max_length=3).input_ids == [GOODBYE, COMMA, EOT]
    assert tokenizer("再见，明天", truncation=True, max_length=1).input_ids == [EOT]
    tokenizer.truncation_side = "left"
    assert tokenizer("再见，明天", truncation=True, max_length=3).input_ids == [COMMA, TOMORROW, EOT]
    assert tokenizer("再见，明天", truncation=True, max_length=1).input_ids == [EOT]


def test_empty_batch_and_empty_text(tokenizer: GPTPanguTokenizer) -> None:
    assert dict(tokenizer([], padding=True)) == {"input_ids": [], "attention_mask": []}
    assert dict(tokenizer("")) == {"input_ids": [], "attention_mask": []}
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("append_eot", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("truncation", [False, "longest_first", "only_first", "only_second"])
def test_rows_equal_those_of_the_stock_path(
    tokenizer: GPTPanguTokenizer, fixtures: Path, append_eot: bool, side: str, truncation: bool | str
) -> None:
    tokenizer.append_eot, tokenizer.truncation_side = append_eot, side
    # Cutting a pair on the left, the stock path forgets a second text without tokens, and its <sep> with it.
    texts = [record["text"] for record in golden_records(fixtures) if record["ids"]]
    words = [text.split("，") for text in texts]
    inputs = [((texts,), {}), ((texts, texts[::-1]), {}), ((list(zip(texts, texts[::-1], strict=True)),), {})]
    inputs += [((words,), {"is_split_into_words": True}), ((words, words[::-1]), {"is_split_into_words": True})]
    options = {
        "padding": True, "truncation": truncation, "max_length": 9 if truncation else None, "padding_side": side,
        "return_token_type_ids": True, "return_special_tokens_mask": True,
    }  # fmt: skip
    for (arguments, kind), added in product(inputs, [True, False]):
        fast = tokenizer(*arguments, add_special_tokens=added, **kind, **options)
        stock = tokenizer(*arguments, add_special_tokens=added, return_length=True, **kind, **options)
        stock.pop("length")
        assert dict(fast) == dict(stock)


def test_truncation_of_a_pair_takes_from_the_longer_text_first(tokenizer: GPTPanguTokenizer) -> None:
    first, second = [HELLO, COMMA, GOODBYE, COMMA, TOMORROW], [TOMORROW, COMMA]
    for max_length, expected in {
        8: [*first, SEP, *second],
        7: [*first[:4], SEP, *second],
        5: [*first[:2], SEP, *second],
        # Both equally long; an odd token more goes from the second.
        4: [*first[:2], SEP, *second[:1]],
        3: [*first[:1], SEP, *second[:1]],
        1: [SEP],
    }.items():
        encoding = tokenizer("你好，再见，明天", "明天，", truncation=True, max_length=max_length)
        assert encoding.input_ids == expected


def test_pairs_and_pretokenized_words(tokenizer: GPTPanguTokenizer) -> None:
    encoding = tokenizer(["你好"], ["再见"], return_token_type_ids=True, return_special_tokens_mask=True)
    assert encoding.input_ids == [[HELLO, SEP, GOODBYE]]
    assert encoding.special_tokens_mask == [[0, 1, 0]]
    assert encoding.token_type_ids == [[0, 1, 1]]
    assert tokenizer([("你好", "再见")]).input_ids == [[HELLO, SEP, GOODBYE]]
    words = tokenizer([["你好", "再见"], [], ["明天"]], is_split_into_words=True, padding=True)
    assert words.input_ids == [[HELLO, GOODBYE], [PAD, PAD], [TOMORROW, PAD]]
    assert tokenizer(["你好", "再见"], is_split_into_words=True).input_ids == [HELLO, GOODBYE]


def test_ids_pass_through_and_unfit_batches_are_refused(tokenizer: GPTPanguTokenizer) -> None:
    assert tokenizer([HELLO, GOODBYE]).input_ids == [HELLO, GOODBYE]
    with pytest.raises(ValueError, match="batch of the same length"):
        tokenizer(["你好", "再见"], ["明天"])
    with pytest.raises(ValueError, match="must be a string"):
        tokenizer([None])


def test_offsets_name_the_characters_of_each_token(tokenizer: GPTPanguTokenizer) -> None:
    text = "你好 再见<eot>…A\t明天"
    encoding = tokenizer(text, return_offsets_mapping=True)
    assert encoding.input_ids == tokenizer(text).input_ids
    surfaces = [text[start:end] for start, end in encoding.offset_mapping]
    # The space is two pieces, the first a mere word border that stands for nothing; the tab has no piece of its own.
    assert surfaces == ["你好", "", " ", "再见", "<eot>", "…", "A", "\t明天"]
    padded = tokenizer([text], return_offsets_mapping=True, padding="max_length", max_length=9, truncation=True)
    assert padded.offset_mapping[0] == [*encoding.offset_mapping, (0, 0)]
    with pytest.raises(NotImplementedError, match="return_overflowing_tokens"):
        tokenizer(text, return_offsets_mapping=True, return_overflowing_tokens=True)


def test_offsets_of_lossless_text_cut_it_into_the_text_of_each_token(tokenizer: GPTPanguTokenizer) -> None:
    texts = [text for text in dialogues() if tokenizer.is_lossless(text)]
    assert len(texts) > 1_500
    encoding = tokenizer(texts, return_offsets_mapping=True)
    assert encoding.input_ids == tokenizer(texts).input_ids
    for text, ids, spans in zip(texts, encoding.input_ids, encoding.offset_mapping, strict=True):
        assert [text[start:end] for start, end in spans] == [tokenizer.decode(index) for index in ids]


def test_offsets_of_a_pair_of_words_survive_truncation_and_padding(official_vocabulary: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary, append_eot=True)
    options = {"is_split_into_words": True, "return_offsets_mapping": True}
    padding = {"padding": "max_length", "max_length": 8, "padding_side": "left"}
    encoding = tokenizer(["明天，", "你好"], ["再见", "明天"], **padding, **options)
    assert encoding.input_ids == [PAD, TOMORROW, COMMA, HELLO, SEP, GOODBYE, TOMORROW, EOT]
    assert encoding.offset_mapping == [(0, 0), (0, 2), (2, 3), (0, 2), (0, 0), (0, 2), (0, 2), (0, 0)]
    assert encoding.sequence_ids() == [None, 0, 0, 0, None, 1, 1, None]
    assert encoding.word_ids() == [None, 0, 0, 1, None, 0, 1, None]
    tokenizer.truncation_side = "left"
    encoding = tokenizer([["明天，", "你好"]], [["再见", "明天"]], truncation=True, max_length=5, **options)
    assert encoding.input_ids == [[COMMA, HELLO, SEP, TOMORROW, EOT]]
    assert encoding.offset_mapping == [[(2, 3), (0, 2), (0, 0), (0, 2), (0, 0)]]
    assert encoding.word_ids() == [0, 1, None, 1, None]


def test_characters_and_tokens_find_each_other(tokenizer: GPTPanguTokenizer) -> None:
    encoding = tokenizer(["你好\t再见"], ["明天"], return_offsets_mapping=True)
    assert encoding.input_ids == [[HELLO, GOODBYE, SEP, TOMORROW]]
    assert [encoding.char_to_token(0, index) for index in range(6)] == [0, 0, 1, 1, 1, None]
    assert encoding.char_to_token(0, 1, sequence_index=1) == 3
    assert tuple(encoding.token_to_chars(0, 1)) == (2, 5)
    assert encoding.token_to_chars(0, 2) is None


def test_columns_are_those_asked_for(tokenizer: GPTPanguTokenizer) -> None:
    assert set(tokenizer("你好")) == {"input_ids", "attention_mask"}
    assert set(tokenizer("你好", return_attention_mask=False)) == {"input_ids"}
    tokenizer.model_input_names = ["input_ids"]
    assert set(tokenizer("你好", return_offsets_mapping=True)) == {"input_ids", "offset_mapping"}
