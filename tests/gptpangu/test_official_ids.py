"""Both engines give the official words and ids on real text, golden text and random text; jieba itself is the judge."""

import json
from pathlib import Path

import jieba
import pytest
from official_tokenizer import (
    OfficialTokenizer,
    dialogues,
    official_vocabulary_path,
    random_texts,
    reviews,
)

from pangu_trl import GPTPanguTokenizer
from pangu_trl.gptpangu import segmentation_gptpangu
from pangu_trl.gptpangu.segmentation_gptpangu import segment


@pytest.fixture(scope="module")
def official(oracle: jieba.Tokenizer) -> OfficialTokenizer:
    return OfficialTokenizer(oracle.lcut)


@pytest.fixture(params=["rust", "python"])
def tokenizer(request, engines, monkeypatch: pytest.MonkeyPatch) -> GPTPanguTokenizer:
    """The tokenizer with its special tokens off, as the official one has them, over either engine."""
    monkeypatch.setattr(segmentation_gptpangu, "_load_segmenter", lambda: engines[request.param])
    return GPTPanguTokenizer(official_vocabulary_path(), split_special_tokens=True)


def assert_ids_are_official(tokenizer: GPTPanguTokenizer, official: OfficialTokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert ids == official.encode(text), repr(text)


def test_golden_words_and_ids(tokenizer: GPTPanguTokenizer, fixtures: Path) -> None:
    lines = (fixtures / "tokenizer" / "golden.jsonl").read_text("utf-8").splitlines()
    golden = [json.loads(line) for line in lines]
    assert len(golden) == 150
    assert tokenizer([record["text"] for record in golden]).input_ids == [record["ids"] for record in golden]
    for record in golden:
        assert segment(record["text"]) == record["words"]
        assert tokenizer(record["text"]).input_ids == record["ids"]


def test_ids_of_dialogues(tokenizer: GPTPanguTokenizer, official: OfficialTokenizer) -> None:
    texts = dialogues()
    assert len(texts) > 2_000
    assert_ids_are_official(tokenizer, official, texts)


def test_ids_of_a_sample_of_reviews(tokenizer: GPTPanguTokenizer, official: OfficialTokenizer) -> None:
    assert_ids_are_official(tokenizer, official, reviews()[::20])


def test_words_and_ids_of_20_000_random_texts(
    engines, official_ids_of_random_texts: tuple[list[str], list[list[str]], list[list[int]]], monkeypatch
) -> None:
    texts, words, ids = official_ids_of_random_texts
    for engine in engines.values():
        monkeypatch.setattr(segmentation_gptpangu, "_load_segmenter", lambda engine=engine: engine)
        assert [segment(text) for text in texts] == words
        assert GPTPanguTokenizer(official_vocabulary_path(), split_special_tokens=True)(texts).input_ids == ids


@pytest.fixture(scope="module")
def official_ids_of_random_texts(oracle, official) -> tuple[list[str], list[list[str]], list[list[int]]]:
    texts = list(random_texts(20240, 20_000, oracle))
    return texts, [oracle.lcut(text) for text in texts], [official.encode(text) for text in texts]


@pytest.mark.slow
def test_ids_of_all_reviews(tokenizer: GPTPanguTokenizer, official: OfficialTokenizer) -> None:
    texts = reviews()
    assert len(texts) > 35_000
    assert_ids_are_official(tokenizer, official, texts)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ids_of_200_000_random_texts(
    tokenizer: GPTPanguTokenizer, official: OfficialTokenizer, oracle: jieba.Tokenizer, seed: int
) -> None:
    assert_ids_are_official(tokenizer, official, list(random_texts(seed, 20_000, oracle)))


@pytest.mark.slow
def test_every_word_of_the_dictionary_alone_and_doubled(engines, oracle: jieba.Tokenizer) -> None:
    words = [word for word, frequency in oracle.FREQ.items() if frequency]
    assert len(words) == 349_045
    for text in (text for word in words for text in (word, word * 2)):
        expected = " ".join(oracle.cut(text))
        for name, engine in engines.items():
            assert engine.join(text) == expected, (name, text)
