"""The segmenter gives jieba's words whatever else happens to jieba or rjieba, and falls back where rjieba fails."""

import logging
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jieba
import pytest
import rjieba

from pangu_trl.gptpangu import jieba_tables_gptpangu, segmentation_gptpangu
from pangu_trl.gptpangu.segmentation_gptpangu import PythonSegmenter, RustSegmenter, segment
from pangu_trl.gptpangu.single_characters_gptpangu import WordFinder

SENTENCE = "我来到北京清华大学"
WORDS = ["我", "来到", "北京", "清华大学"]


def test_words_joined_are_the_text_again() -> None:
    for text in ("", " ", "  我来到 北京\n", "\0 \0", "a b\r\nc\u2582 \u3000", SENTENCE):
        assert "".join(segment(text)) == text
    assert segment("我来到 北京 \r\n") == ["我", "来到", " ", "北京", " ", "\r\n"]


def test_long_unpunctuated_runs_equal_those_of_jieba(engines, oracle: jieba.Tokenizer) -> None:
    generator = random.Random(20241)
    rare = "".join(chr(generator.randint(0x4E00, 0x9FD5)) for _ in range(10_000))
    for text in ("鼋" * 10_000, rare, "a1." * 5_000 + rare[:2_000]):
        expected = oracle.lcut(text)
        for engine in engines.values():
            assert engine.join(text).split(" ") == expected


@pytest.mark.parametrize("unit", ["鼋", "中文", "a1.", "-", "𠀀", "\0"])
def test_a_megabyte_without_punctuation_is_cut(engines, unit: str) -> None:
    # Quadratic time would need hours. The ends of the text must not matter to its middle.
    text = unit * (1_000_000 // len(unit.encode()))
    joined = {name: engine.join(text) for name, engine in engines.items()}
    assert joined["rust"] == joined["python"]
    assert joined["rust"].replace(" ", "") == text


def test_lone_surrogates_do_not_stop_either_engine(engines, oracle: jieba.Tokenizer) -> None:
    text = "来到\ud83d北京\udc00"
    for engine in engines.values():
        assert engine.join(text).split(" ") == oracle.lcut(text) == ["来到", "\ud83d", "北京", "\udc00"]


def test_longer_word_wins_a_tie() -> None:
    # Both paths weigh -3: 甲 + 乙 = -1 - 2, 甲乙 = -3.
    segmenter = PythonSegmenter({"甲": -1.0, "乙": -2.0, "甲乙": -3.0}, -9.0, word_finder=None)
    assert segmenter.join("甲乙") == "甲乙"


def test_more_probable_path_wins() -> None:
    # 甲乙 + 丙 = -3 - 9 (丙 is unknown) against 甲 + 乙丙 = -1 - 4.
    segmenter = PythonSegmenter({"甲": -1.0, "乙": None, "甲乙": -3.0, "乙丙": -4.0}, -9.0, word_finder=None)
    assert segmenter.join("甲乙丙") == "甲 乙丙"


@pytest.mark.parametrize(
    ("emission", "words"),
    [
        # Of two characters the model can say "BE" or "SS": log-probabilities 0 + emissions on either path, a tie.
        # jieba takes the larger state letter at the end, and S > E.
        ({"B": -1.0, "M": -1.0, "E": -1.0, "S": -1.0}, ["甲", "乙"]),
        ({"B": -1.0, "M": -1.0, "E": -0.5, "S": -1.0}, ["甲乙"]),
    ],
)
def test_a_tie_of_the_markov_model_goes_to_single_characters(emission: dict[str, float], words: list[str]) -> None:
    moves = {"B": "ME", "M": "ME", "E": "BS", "S": "BS"}
    finder = WordFinder(
        {"B": 0.0, "M": -3.14e100, "E": -3.14e100, "S": 0.0},
        {state: dict.fromkeys(following, 0.0) for state, following in moves.items()},
        {state: {"甲": -1.0, "乙": value} for state, value in emission.items()},
    )
    assert finder.cut("甲乙") == words


def test_total_of_frequencies_equals_that_of_jieba(oracle: jieba.Tokenizer) -> None:
    """rjieba shows its total in what it suggests for a word of n equal parts: frequency ** n / total ** (n - 1)."""
    private = rjieba.Jieba()
    RustSegmenter(private, word_finder=None)
    frequency = 10**9
    private.add_word("\ue002", frequency, None)
    total = oracle.total + frequency
    # At five parts, one count more or less changes the suggestion by 3.
    assert private.suggest_freq("\ue002" * 5) == frequency**5 // total**4 + 1
    assert frequency**5 // (total + 1) ** 4 < frequency**5 // total**4 < frequency**5 // (total - 1) ** 4


def test_rust_engine_is_the_one_in_use() -> None:
    assert isinstance(segmentation_gptpangu._load_segmenter(), RustSegmenter)


def test_missing_rjieba_falls_back(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing(name: str) -> str:
        raise segmentation_gptpangu.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(segmentation_gptpangu.importlib.metadata, "version", missing)
    choose_engine = segmentation_gptpangu._load_segmenter.__wrapped__
    with caplog.at_level(logging.INFO):
        engine = choose_engine()
    assert isinstance(engine, PythonSegmenter)
    assert engine.join(SENTENCE).split(" ") == WORDS
    assert "rjieba is not installed" in caplog.text and "pip install rjieba==0.2.2" in caplog.text


def test_untested_rjieba_is_not_used(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(segmentation_gptpangu.importlib.metadata, "version", lambda name: "0.9.9")
    assert segmentation_gptpangu._load_rust_segmenter(word_finder=None) is None
    assert "rjieba 0.9.9 was not tested" in caplog.text


class ForgetfulJieba:
    """A rjieba without the frequencies of its dictionary: every character is a word."""

    def add_word(self, word: str, frequency: int, tag: None) -> None: ...

    def has_word(self, word: str) -> bool:
        return False

    def cut(self, text: str, hmm: bool) -> list[str]:
        return list(text)


class CrashingJieba(ForgetfulJieba):
    def cut(self, text: str, hmm: bool) -> list[str]:
        raise OSError("illegal instruction")


@pytest.mark.parametrize(
    ("binary", "message"),
    [
        (ForgetfulJieba, "does not give the words of jieba 0.42.1 (我 来到 北京 清华大学"),
        (CrashingJieba, "does not work here (OSError('illegal instruction'))"),
        (None, "does not work here (AttributeError("),
    ],
)
def test_misbehaving_rjieba_is_not_used(monkeypatch, caplog, binary: type | None, message: str) -> None:
    module = SimpleNamespace() if binary is None else SimpleNamespace(Jieba=binary)
    monkeypatch.setitem(sys.modules, "rjieba", module)
    word_finder = WordFinder(*jieba_tables_gptpangu.read_markov_tables())
    assert segmentation_gptpangu._load_rust_segmenter(word_finder) is None
    assert message in caplog.text and "pip install rjieba==0.2.2" in caplog.text


def test_check_lines_are_words_of_jieba(oracle: jieba.Tokenizer) -> None:
    for words in segmentation_gptpangu._CHECK:
        assert words == " ".join(oracle.cut(words.replace(" ", "")))


def test_neither_imports_jieba_nor_writes_a_cache_nor_needs_pangu_trl(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    for module in ("segmentation", "single_characters", "jieba_tables"):
        shutil.copy(Path(segmentation_gptpangu.__file__).parent / f"{module}_gptpangu.py", package)
    script = (
        "import sys; from package.segmentation_gptpangu import segment; "
        f"assert segment({SENTENCE!r}) == {WORDS!r}; assert 'jieba' not in sys.modules"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert not list(temporary.iterdir())


def test_words_added_to_jieba_or_rjieba_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jieba.dt, "tmp_dir", str(tmp_path))
    text = "他来到了网易杭研大厦"
    words = segment(text)
    jieba.add_word("网易杭研大厦", 10**6)
    rjieba.add_word("网易杭研大厦", 10**6, None)
    try:
        assert "网易杭研大厦" in jieba.lcut(text)
        assert "网易杭研大厦" in rjieba.cut(text)
        assert segment(text) == words
    finally:
        jieba.del_word("网易杭研大厦")
        rjieba.add_word("网易杭研大厦", 0, None)


def test_another_dictionary_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dict.txt").write_text("网易杭研大厦 3 n\n", "utf-8")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(jieba_tables_gptpangu.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(RuntimeError, match=r"dict\.txt .*pip install jieba==0\.42\.1"):
        jieba_tables_gptpangu.read_dictionary()


def test_missing_jieba_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jieba_tables_gptpangu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"not installed.*pip install jieba==0\.42\.1"):
        jieba_tables_gptpangu.read_markov_tables()


def test_a_word_that_stands_twice_counts_twice_in_the_total() -> None:
    # Total 2 + 3 + 5 = 10 with the last frequency of 甲 in force: 甲 3/10, 乙丙 5/10, 乙 only begins 乙丙.
    weights, unknown_weight = jieba_tables_gptpangu.parse_dictionary("甲 2 n\n甲 3 n\n乙丙 5 n\n")
    assert weights == {"甲": pytest.approx(-1.2039728), "乙": None, "乙丙": pytest.approx(-0.6931472)}
    assert unknown_weight == pytest.approx(-2.3025851)
