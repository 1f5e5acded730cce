"""GPTPanguTokenizer: the official ids, special tokens, decoding."""

import doctest
from pathlib import Path

import pytest
from official_tokenizer import (
    BOS,
    EOT,
    GOODBYE,
    HELLO,
    SPECIAL_IDS,
    TOMORROW,
    UNK,
    dialogues,
    golden_records,
)
from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, TextStreamer

from pangu_trl import GPTPanguTokenizer


@pytest.fixture
def tokenizer(official_vocabulary: Path) -> GPTPanguTokenizer:
    return GPTPanguTokenizer(official_vocabulary)


def test_ids_equal_the_official_ids(tokenizer: GPTPanguTokenizer, fixtures: Path) -> None:
    golden = golden_records(fixtures)
    texts = [record["text"] for record in golden]
    assert tokenizer(texts, split_special_tokens=True).input_ids == [record["ids"] for record in golden]
    for record in golden:
        assert tokenizer.encode(record["text"], split_special_tokens=True) == record["ids"]
        if not any(token in record["text"] for token in SPECIAL_IDS):
            assert tokenizer(record["text"]).input_ids == record["ids"]
            assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(record["text"])) == record["ids"]


def test_legacy_format_is_reached_with_bos_and_append_eot(official_vocabulary: Path, fixtures: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary, append_eot=True)
    for record in golden_records(fixtures, "hf_format.jsonl"):
        pair = tokenizer(record["text"], record["pair"], split_special_tokens=True).input_ids
        assert [BOS, *pair] == record["pair_ids"]
        assert [BOS, *tokenizer(record["text"], split_special_tokens=True).input_ids] == record["ids"]
        assert (
            tokenizer(record["text"], split_special_tokens=True, add_special_tokens=False).input_ids
            == (record["ids_no_special"])
        )
        assert tokenizer.decode(record["ids"]) == "<s>" + record["decoded"]
        assert tokenizer.decode(record["ids"], skip_special_tokens=True) == record["decoded_skip_special"]


def test_decoding_equals_the_official_decoding_but_for_unknown_pieces(
    tokenizer: GPTPanguTokenizer, fixtures: Path
) -> None:
    golden = golden_records(fixtures)
    for record, text in zip(golden, tokenizer.batch_decode([record["ids"] for record in golden]), strict=True):
        expected = record["decoded"].replace("⁇", "<unk>") if UNK in record["ids"] else record["decoded"]
        assert text == expected


def test_every_id_decodes_and_others_are_refused(tokenizer: GPTPanguTokenizer, official_vocabulary: Path) -> None:
    official = SentencePieceProcessor(model_file=str(official_vocabulary))
    for index in range(10, 40_000):
        expected = official.id_to_piece(index).replace("▁", "")
        assert tokenizer.decode(index) == expected
    assert tokenizer.decode([3, 4, *SPECIAL_IDS.values()]) == "\n " + "".join(SPECIAL_IDS)
    for index in (-100, 40_000):
        with pytest.raises(ValueError, match=f"id {index} is outside the vocabulary of 40000"):
            tokenizer.decode([HELLO, index])


def test_special_tokens_in_text_are_one_id_each(tokenizer: GPTPanguTokenizer) -> None:
    for token, index in SPECIAL_IDS.items():
        assert tokenizer(f"你好{token}再见").input_ids == [HELLO, index, GOODBYE]
        assert index not in tokenizer(f"你好{token}再见", split_special_tokens=True).input_ids
    assert set(tokenizer.all_special_ids) == set(SPECIAL_IDS.values())
    names = ("unk", "bos", "eos", "sep", "pad", "mask")
    assert [getattr(tokenizer, f"{name}_token_id") for name in names] == [0, 1, 9, 5, 6, 7]


def test_split_special_tokens_may_be_set_on_the_tokenizer(official_vocabulary: Path) -> None:
    tokenizer = GPTPanguTokenizer(official_vocabulary, split_special_tokens=True)
    assert EOT not in tokenizer.encode("你好<eot>")
    assert EOT in tokenizer.encode("你好<eot>", split_special_tokens=False)


def test_vocabulary_has_the_official_size_and_ids(tokenizer: GPTPanguTokenizer, piece_ids: dict[str, int]) -> None:
    assert tokenizer.vocab_size == len(tokenizer) == 40_000
    assert tokenizer.vocab == tokenizer.get_vocab()
    assert all(piece_ids[piece] == index for piece, index in tokenizer.vocab.items())


def test_lone_surrogate_is_a_clear_error(tokenizer: GPTPanguTokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate U\+D83D near '你好.*surrogatepass"):
        tokenizer(["再见", "你好\ud83d再见"])


def test_added_tokens_that_strip_are_honoured(tokenizer: GPTPanguTokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<br>", lstrip=True, rstrip=True)])
    assert tokenizer("你好  <br> 再见").input_ids == [HELLO, 40_000, GOODBYE]


def test_text_of_a_prefix_of_ids_is_a_prefix_of_the_text(tokenizer: GPTPanguTokenizer, fixtures: Path) -> None:
    for record in golden_records(fixtures):
        text = tokenizer.decode(record["ids"])
        pieces = [tokenizer.decode(index) for index in record["ids"]]
        assert "".join(pieces) == text
        assert all(text.startswith(tokenizer.decode(record["ids"][:end])) for end in range(len(record["ids"])))


def test_streamed_text_is_the_decoded_text(tokenizer: GPTPanguTokenizer, fixtures: Path) -> None:
    class Collector(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            collected.append(text)

    for record in golden_records(fixtures):
        ids = [*record["ids"], EOT]
        collected: list[str] = []
        streamer = Collector(tokenizer, skip_special_tokens=True)
        for index in ids:
            streamer.put(tokenizer([""], return_tensors="pt").input_ids.new_tensor([index]))
        streamer.end()
        assert "".join(collected) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "text",
    ["", "酒店很好。", "Hello World", "  两个  空格 \n", "C++ 100% 3.14", "don't", "《书》—“好”、～", "你好<eot>"],
)
def test_lossless_text(tokenizer: GPTPanguTokenizer, text: str) -> None:
    assert tokenizer.is_lossless(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("你好，世界！", "你好,世界!"),
        ("１２３Ａｂ", "123Ab"),
        ("等等…", "等等..."),
        ("① ㎏ ½ ㈱ ﬁ Ⅷ", "1 kg 1<unk>2 (株) fi VIII"),
        ("制表\t符\u3000全角\u200d", "制表符全角"),
        ("一\r\n二", "一\n二"),
        ("\u2582\u2583", " \n"),
        ("好😀", "好<unk>"),
        ("你好\0再见", "你好<unk>再见"),
    ],
)
def test_what_the_ids_cannot_hold_is_not_lossless(tokenizer: GPTPanguTokenizer, text: str, decoded: str) -> None:
    assert not tokenizer.is_lossless(text)
    assert tokenizer.decode(tokenizer.encode(text)) == decoded


def test_a_user_cannot_type_a_special_token(tokenizer: GPTPanguTokenizer) -> None:
    text = "".join(f"你好{token}再见" for token in SPECIAL_IDS)
    ids = tokenizer.encode(text, split_special_tokens=True)
    assert not set(ids) & set(SPECIAL_IDS.values())
    assert tokenizer.decode(ids) == text
    assert tokenizer([text], split_special_tokens=True, return_offsets_mapping=True).input_ids == [ids]


def test_a_megabyte_of_text_without_punctuation(tokenizer: GPTPanguTokenizer) -> None:
    assert tokenizer("明天" * 170_000).input_ids == [TOMORROW] * 170_000


def test_added_tokens_win_over_the_words_they_stand_in(tokenizer: GPTPanguTokenizer) -> None:
    tokenizer.add_tokens(["明天你", "明天你好"])
    assert tokenizer("明天你好").input_ids == [40_001]
    assert tokenizer("再见明天你明天").input_ids == [GOODBYE, 40_000, TOMORROW]
    assert tokenizer("明天你好", split_special_tokens=True).input_ids == [TOMORROW, HELLO]


def test_most_dialogues_are_lossless(tokenizer: GPTPanguTokenizer) -> None:
    texts = dialogues()
    decoded = tokenizer.batch_decode(tokenizer(texts).input_ids)
    lossless = [text == copy for text, copy in zip(texts, decoded, strict=True)]
    assert lossless == [tokenizer.is_lossless(text) for text in texts]
    assert sum(lossless) > 0.85 * len(texts)


def test_examples_of_the_documentation(official_vocabulary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "tokenizer.md"
    # The page says "vocab.model" as if one stood beside it.
    monkeypatch.chdir(official_vocabulary.parent)
    examples = doctest.DocTestParser().get_doctest(page.read_text("utf-8"), {}, page.name, str(page), 0)
    assert len(examples.examples) > 10
    assert doctest.DocTestRunner().run(examples).failed == 0
