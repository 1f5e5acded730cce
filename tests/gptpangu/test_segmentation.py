"""The segmenter gives the words of jieba 0.42.1, whatever the text and whatever else happens to jieba."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jieba
import pytest

from pangu_trl.gptpangu import segmentation_gptpangu
from pangu_trl.gptpangu.segmentation_gptpangu import Segmenter, segment

ASCII = "abcXYZ0189.%+#&_- ,/<>'C#c++AT&T"
ODD = "\r\n\t\u3000\u00a0\u200b\u0301①ﬁ½１Ａ，。《》…—·鿕\u9fd6㐀豈𠀀😀👨\u200d👩あア한\u2582\u2583\u0000\ufffd"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> jieba.Tokenizer:
    """jieba itself, with its cache file in a private folder."""
    jieba.setLogLevel("ERROR")
    tokenizer = jieba.Tokenizer()
    tokenizer.tmp_dir = str(tmp_path_factory.mktemp("jieba"))
    tokenizer.initialize()
    return tokenizer


def test_words_equal_the_golden_words(fixtures: Path) -> None:
    lines = (fixtures / "tokenizer" / "golden.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 150
    for line in map(json.loads, lines):
        assert segment(line["text"]) == line["words"]


def random_text(generator: random.Random, words: list[str], rare_words: list[str]) -> str:
    """Draws a short text of dictionary words, words of equal rarity (ties), any Han characters, ASCII, odd Unicode."""
    sources = (
        lambda: generator.choice(words),
        lambda: generator.choice(rare_words),
        lambda: "".join(chr(generator.randint(0x4E00, 0x9FD5)) for _ in range(generator.randint(1, 6))),
        lambda: generator.choice(words)[0] * generator.randint(1, 4),
        lambda: "".join(generator.choices(ASCII, k=generator.randint(1, 6))),
        lambda: generator.choice(ODD),
    )
    return "".join(generator.choice(sources)() for _ in range(generator.randint(1, 7)))


def test_words_equal_those_of_jieba_on_random_texts(oracle: jieba.Tokenizer) -> None:
    generator = random.Random(20240)
    words = sorted(word for word, frequency in oracle.FREQ.items() if frequency)
    rare_words = [word for word in words if oracle.FREQ[word] <= 5]
    for _ in range(20_000):
        text = random_text(generator, words, rare_words)
        assert segment(text) == oracle.lcut(text), repr(text)


def test_words_equal_those_of_jieba_on_long_unpunctuated_runs(oracle: jieba.Tokenizer) -> None:
    generator = random.Random(20241)
    rare = "".join(chr(generator.randint(0x4E00, 0x9FD5)) for _ in range(10_000))
    for text in ("鼋" * 20_000, rare, "a1." * 5_000 + rare[:2_000]):
        assert segment(text) == oracle.lcut(text)


def test_longer_word_wins_a_tie() -> None:
    # Both paths weigh -3: 甲 + 乙 = -1 - 2, 甲乙 = -3.
    segmenter = Segmenter({"甲": -1.0, "乙": -2.0, "甲乙": -3.0}, -9.0, word_finder=None)
    assert segmenter.segment("甲乙") == ["甲乙"]


def test_more_probable_path_wins() -> None:
    # 甲乙 + 丙 = -3 - 9 (丙 is unknown) against 甲 + 乙丙 = -1 - 4.
    segmenter = Segmenter({"甲": -1.0, "乙": None, "甲乙": -3.0, "乙丙": -4.0}, -9.0, word_finder=None)
    assert segmenter.segment("甲乙丙") == ["甲", "乙丙"]


def test_neither_imports_jieba_nor_writes_a_cache(tmp_path: Path) -> None:
    folder = Path(segmentation_gptpangu.__file__).parent
    script = (
        "import sys; from segmentation_gptpangu import segment; "
        "assert segment('我来到北京清华大学') == ['我', '来到', '北京', '清华大学']; assert 'jieba' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_words_added_to_jieba_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jieba.dt, "tmp_dir", str(tmp_path))
    text = "他来到了网易杭研大厦"
    words = segment(text)
    jieba.add_word("网易杭研大厦", 10**6)
    try:
        assert "网易杭研大厦" in jieba.lcut(text)
        assert segment(text) == words
    finally:
        jieba.del_word("网易杭研大厦")


def test_another_dictionary_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dict.txt").write_text("网易杭研大厦 3 n\n", "utf-8")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(segmentation_gptpangu.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(RuntimeError, match=r"dict\.txt .*pip install jieba==0\.42\.1"):
        segmentation_gptpangu._read_data_files()


def test_missing_jieba_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_gptpangu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"not installed.*pip install jieba==0\.42\.1"):
        segmentation_gptpangu._read_data_files()
