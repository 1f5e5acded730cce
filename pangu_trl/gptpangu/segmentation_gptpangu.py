"""Chinese word segmentation, word for word what `jieba.cut` of jieba 0.42.1 gives.

The ids of GPTPangu are defined on jieba's words, so one changed word changes what the model reads. There are two
engines with the same result. The fast one takes the first step of jieba, the most probable path through the
dictionary, from the Rust package rjieba; the second step stays here, because rjieba's own differs from jieba's. The
other engine is all Python and serves where rjieba is missing, is another version, or fails a check at its first use.

Both have tables of their own: nothing that other code does to jieba or rjieba changes a word.
"""

import importlib
import importlib.metadata
import logging
import math
import re
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Protocol

from .jieba_tables_gptpangu import read_dictionary, read_markov_tables
from .single_characters_gptpangu import WordFinder, split_latin

logger = logging.getLogger(__name__)

# Only a block can hold words of several characters; outside, each character is a word, and so is "\r\n".
_BLOCK_OR_CHARACTER = re.compile(r"[\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+|\r\n|.", re.DOTALL)

_LONGEST_REMEMBERED_RUN = 16
_REMEMBERED_RUNS = 1 << 16

_TESTED_RJIEBA = "0.2.2"
# Characters that stand in no block of jieba but in one of rjieba, and lone surrogates, which rjieba refuses.
_OUTSIDE_JIEBA_BLOCKS = re.compile("[\u3400-\u4dbf\u9fd6-\u9fff\ud800-\udfff\uf900-\ufaff\U00020000-\U0002fa1f]")
# Words of jieba 0.42.1 that show a changed dictionary, total of frequencies, tie, pattern or table.
_CHECK = (
    "我 来到 北京 清华大学 ， 他 来到 了 网易 杭研 大厦 。",
    "招待饭 小猪 介面卡",
    "三格 李万庆 高元钧",
    "用票 鲜食 紧紧抓住",
    "类粘蛋白 所 交交 交",
    "在 一 三",
    "聯 繫 退 貨 遲 遲 不 給 辦 理",
    "侵华日军南京大屠杀遇难同胞纪念馆 龟龙麟凤",
    "在 2004 - 6 - 1 买 了 wpa2 - psk 和 C++ 2.1 . 0 版 ， 50% r . u . r AT&T T恤 和 B超",
    "中 㐀 国 鿕 豈 、 𠀀 \r\n １ Ａ 。 ▂ ▃",
)
# Two or more units that the dictionary left single, each behind a space; rjieba gives Latin letters and digits merged.
_RUN_OF_SINGLES = re.compile(r"(?: (?:[a-zA-Z0-9]+|[\u4E00-\u9FD5+#&._%\-])(?![^ ])){2,}")


def segment(text: str) -> list[str]:
    """Cuts a text into words, which joined are the text again.

    The first call of a process reads the tables, which processes forked later share: 0.2 to 0.4 seconds and 60 MB with
    rjieba, about a second and 80 MB without.

    Raises:
        RuntimeError: The data files of jieba 0.42.1 are not installed.
    """
    if not text:
        return []
    # The stand-in is a word by itself, as the space is.
    words = _load_segmenter().join(text.replace(" ", "\0")).split(" ")
    if " " not in text:
        return words
    ends = accumulate(map(len, words), initial=0)
    return [text[start:end] for start, end in pairwise(ends)]


def join_words(text: str) -> str:
    """Returns the words of a text that holds no space, joined by spaces; see `segment`."""
    return _load_segmenter().join(text)


class Segmenter(Protocol):
    """An engine; see `join_words`."""

    def join(self, text: str) -> str: ...


class PythonSegmenter:
    """Cuts text along the most probable path through a dictionary, then looks for words among the single characters.

    Args:
        weights: Log-probability of every word of the dictionary; None for a string that only begins words.
        unknown_weight: Log-probability of a character that is no word of the dictionary.
        word_finder: Cuts the characters that the dictionary leaves single.
    """

    def __init__(self, weights: dict[str, float | None], unknown_weight: float, word_finder: WordFinder) -> None:
        self._weights = weights
        self._unknown_weight = unknown_weight
        self._word_finder = word_finder
        # "C++" and a few more. A block of ASCII without them needs no dictionary.
        self._ascii_words = [word for word, weight in weights.items() if weight is not None and word.isascii()]
        self._cut_short_run = lru_cache(maxsize=_REMEMBERED_RUNS)(self._cut_run)

    def join(self, text: str) -> str:
        words: list[str] = []
        for piece in _BLOCK_OR_CHARACTER.findall(text):
            if len(piece) == 1 or piece == "\r\n":
                words.append(piece)
            elif piece.isascii() and not any(word in piece for word in self._ascii_words):
                words += split_latin(piece)
            else:
                self._add_block(piece, words)
        return " ".join(words)

    def _add_block(self, block: str, words: list[str]) -> None:
        word_ends = self._best_word_ends(block)
        start = run_start = 0
        while start < len(block):
            end = word_ends[start]
            if end - start > 1:
                self._add_run(block[run_start:start], words)
                words.append(block[start:end])
                run_start = end
            start = end
        self._add_run(block[run_start:], words)

    def _best_word_ends(self, block: str) -> list[int]:
        """Returns, for each position, where the word that starts there ends on the best path to the end."""
        weights = self._weights
        length = len(block)
        best_scores = [0.0] * (length + 1)
        best_ends = [0] * length
        for start in range(length - 1, -1, -1):
            best_score, best_end = -math.inf, 0
            for end in range(start + 1, length + 1):
                word = block[start:end]
                if word not in weights:
                    break
                weight = weights[word]
                if weight is not None:
                    score = weight + best_scores[end]
                    # On a tie jieba takes the longer word.
                    if score >= best_score:
                        best_score, best_end = score, end
            if not best_end:
                best_score, best_end = self._unknown_weight + best_scores[start + 1], start + 1
            best_scores[start], best_ends[start] = best_score, best_end
        return best_ends

    def _add_run(self, run: str, words: list[str]) -> None:
        if len(run) < 2:
            words += run
        elif len(run) <= _LONGEST_REMEMBERED_RUN:
            words += self._cut_short_run(run)
        else:
            words += self._cut_run(run)

    def _cut_run(self, run: str) -> list[str]:
        # A dictionary word whose best path was single characters stays cut.
        return list(run) if self._weights.get(run) is not None else self._word_finder.cut(run)


class RustSegmenter:
    """The same over the dictionary and the path search of rjieba 0.2.2.

    Args:
        jieba: A `rjieba.Jieba` of our own, to be changed by no one else.
        word_finder: Cuts the characters that the dictionary leaves single.
    """

    def __init__(self, jieba: Any, word_finder: WordFinder) -> None:
        # jieba counts a word that stands twice in its dictionary twice in the total of frequencies, rjieba once. The
        # difference of 3 goes to a word that no text can hold, its characters standing in no block.
        jieba.add_word("\ue000\ue001", 3, None)
        self._cut_by_dictionary = jieba.cut
        self._has_word = jieba.has_word
        self._word_finder = word_finder
        self._join_short_run = lru_cache(maxsize=_REMEMBERED_RUNS)(self._join_run)

    def join(self, text: str) -> str:
        if _OUTSIDE_JIEBA_BLOCKS.search(text):
            pieces = _BLOCK_OR_CHARACTER.findall(text)
            return " ".join(piece if _OUTSIDE_JIEBA_BLOCKS.match(piece) else self._join(piece) for piece in pieces)
        return self._join(text)

    def _join(self, text: str) -> str:
        joined = " " + " ".join(self._cut_by_dictionary(text, False))
        return _RUN_OF_SINGLES.sub(self._replace_run, joined)[1:]

    def _replace_run(self, found: re.Match) -> str:
        run = found[0]
        return self._join_short_run(run) if len(run) <= 2 * _LONGEST_REMEMBERED_RUN else self._join_run(run)

    def _join_run(self, spaced_run: str) -> str:
        run = spaced_run.replace(" ", "")
        # A dictionary word whose best path was single characters stays cut.
        return " " + " ".join(run if self._has_word(run) else self._word_finder.cut(run))


@lru_cache(maxsize=1)
def _load_segmenter() -> Segmenter:
    word_finder = WordFinder(*read_markov_tables())
    return _load_rust_segmenter(word_finder) or PythonSegmenter(*read_dictionary(), word_finder)


def _load_rust_segmenter(word_finder: WordFinder) -> RustSegmenter | None:
    """Returns the fast engine, or None, and logs why, if it cannot be trusted to give jieba's words."""
    remedy = f"GPTPangu's tokenizer takes its slower engine; for the fast one: pip install rjieba=={_TESTED_RJIEBA}"
    try:
        version = importlib.metadata.version("rjieba")
    except importlib.metadata.PackageNotFoundError:
        logger.info("rjieba is not installed. %s", remedy)
        return None
    if version != _TESTED_RJIEBA:
        logger.warning("rjieba %s was not tested to give the words of jieba 0.42.1. %s", version, remedy)
        return None
    try:
        segmenter = RustSegmenter(importlib.import_module("rjieba").Jieba(), word_finder)
        wrong = next((words for words in _CHECK if segmenter.join(words.replace(" ", "")) != words), None)
    except Exception as error:  # whatever a binary for another platform may raise
        logger.warning("rjieba %s does not work here (%r). %s", version, error, remedy)
        return None
    if wrong is not None:
        logger.warning("rjieba %s does not give the words of jieba 0.42.1 (%s). %s", version, wrong, remedy)
        return None
    return segmenter
