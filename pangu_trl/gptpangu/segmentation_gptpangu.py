"""Chinese word segmentation, word for word what `jieba.cut` of jieba 0.42.1 gives.

The ids of GPTPangu are defined on jieba's words, so one changed word changes what the model reads. This module owns its
tables: it reads the data files of the installed jieba and never imports it. `jieba.add_word` elsewhere in the process
cannot reach it, nor can the `jieba.cache` file that any user of the machine may plant in the temporary directory.

Where it differs from jieba: the hidden Markov model runs in linear time (jieba's copies whole paths, quadratic on long
text without punctuation), and short runs that went through it are remembered. Scores are the same float64 sums in the
same order, so that ties fall the same way.
"""

import hashlib
import importlib.util
import math
import pickle
import re
from functools import lru_cache
from pathlib import Path

_DICTIONARY = "dict.txt"
_START, _TRANSITION, _EMISSION = (f"finalseg/prob_{name}.p" for name in ("start", "trans", "emit"))
_SHA256 = {
    _DICTIONARY: "7197c3211ddd98962b036cdf40324d1ea2bfaa12bd028e68faa70111a88e12a8",
    _START: "dfd45976dd4f8f2bc12535a680a178bf9e75eaa38bdfdcb844469e54468d6245",
    _TRANSITION: "ea7f50162ffa01db4973c7a8120b3c0233fbc5819fc0d617513535f1f2c7fedc",
    _EMISSION: "1e1d1d835b0c77d234acaa6afa23a13ffce597a295be0d7a1ece6a0d440dcf08",
}

# Only a block can hold words of several characters; outside, each character is a word, and so is "\r\n".
_BLOCK_OR_CHARACTER = re.compile(r"[\u4E00-\u9FD5a-zA-Z0-9+#&._%\-]+|\r\n|.", re.DOTALL)
_HAN_RUN = re.compile(r"([\u4E00-\u9FD5]+)")
_LATIN_OR_NUMBER = re.compile(r"([a-zA-Z0-9]+(?:\.[0-9]+)?%?)")

# jieba's log of zero. It swallows every other term of a sum, and ties arise from that: the value is part of the result.
_LOG_ZERO = -3.14e100

_STATES = "BMES"
_BEGIN, _MIDDLE, _END, _SINGLE = range(4)

_LONGEST_REMEMBERED_RUN = 16
_REMEMBERED_RUNS = 1 << 16


def segment(text: str) -> list[str]:
    """Cuts a text into words, which joined are the text again.

    The first call of a process reads the dictionary: about a second and 80 MB, which processes forked later share.

    Raises:
        RuntimeError: The data files of jieba 0.42.1 are not installed.
    """
    return _load_segmenter().segment(text)


class WordFinder:
    """Finds words that no dictionary holds, by a hidden Markov model of the position of a character in its word.

    The states are B (begin), M (middle), E (end) and S (single). The tables hold natural logarithms of probabilities.

    Args:
        start: Probability of each state at the first character.
        transition: Probability of each state after each state.
        emission: Probability of each character in each state.
    """

    def __init__(
        self,
        start: dict[str, float],
        transition: dict[str, dict[str, float]],
        emission: dict[str, dict[str, float]],
    ) -> None:
        self._start = tuple(start[state] for state in _STATES)
        self._transition = transition
        characters = {character for probabilities in emission.values() for character in probabilities}
        self._emission = {
            character: tuple(emission[state].get(character, _LOG_ZERO) for state in _STATES) for character in characters
        }

    def find(self, run: str) -> list[str]:
        """Cuts a non-empty run of Han characters into its most probable words."""
        state, previous_states = self._trace(run)
        words = []
        end = len(run)
        for position in range(len(run) - 1, 0, -1):
            state = previous_states[position - 1][state]
            if state in (_END, _SINGLE):
                words.append(run[position:end])
                end = position
        words.append(run[:end])
        words.reverse()
        return words

    def _trace(self, run: str) -> tuple[int, list[tuple[int, int, int, int]]]:
        """Returns the best last state and, for each later character, the best previous state of each of its states.

        jieba takes the maximum of (sum, state letter): on a tie S beats E and M beats B.
        """
        b_m, b_e = self._transition["B"]["M"], self._transition["B"]["E"]
        m_m, m_e = self._transition["M"]["M"], self._transition["M"]["E"]
        e_b, e_s = self._transition["E"]["B"], self._transition["E"]["S"]
        s_b, s_s = self._transition["S"]["B"], self._transition["S"]["S"]
        unseen = (_LOG_ZERO,) * len(_STATES)
        emissions = [self._emission.get(character, unseen) for character in run]
        begin, middle, end, single = (first + emitted for first, emitted in zip(self._start, emissions[0], strict=True))
        previous_states = []
        for emit_begin, emit_middle, emit_end, emit_single in emissions[1:]:
            # Compared after adding the emission, as jieba does: the addition may round a difference away.
            single_begin, end_begin = single + s_b + emit_begin, end + e_b + emit_begin
            middle_middle, begin_middle = middle + m_m + emit_middle, begin + b_m + emit_middle
            middle_end, begin_end = middle + m_e + emit_end, begin + b_e + emit_end
            single_single, end_single = single + s_s + emit_single, end + e_s + emit_single
            begin, before_begin = (single_begin, _SINGLE) if single_begin >= end_begin else (end_begin, _END)
            middle, before_middle = (
                (middle_middle, _MIDDLE) if middle_middle >= begin_middle else (begin_middle, _BEGIN)
            )
            end, before_end = (middle_end, _MIDDLE) if middle_end >= begin_end else (begin_end, _BEGIN)
            single, before_single = (single_single, _SINGLE) if single_single >= end_single else (end_single, _END)
            previous_states.append((before_begin, before_middle, before_end, before_single))
        return (_SINGLE if single >= end else _END), previous_states


class Segmenter:
    """Cuts text along the most probable path through a dictionary, then looks for words among the single characters.

    Args:
        weights: Log-probability of every word of the dictionary; None for a string that only begins words.
        unknown_weight: Log-probability of a character that is no word of the dictionary.
        word_finder: Cuts the Han characters that the dictionary leaves single.
    """

    def __init__(self, weights: dict[str, float | None], unknown_weight: float, word_finder: WordFinder) -> None:
        self._weights = weights
        self._unknown_weight = unknown_weight
        self._word_finder = word_finder
        # "C++" and a few more. A block of ASCII without them needs no dictionary.
        self._ascii_words = [word for word, weight in weights.items() if weight is not None and word.isascii()]
        self._cut_short_run = lru_cache(maxsize=_REMEMBERED_RUNS)(self._cut_run)

    def segment(self, text: str) -> list[str]:
        """Cuts a text into words, which joined are the text again."""
        words: list[str] = []
        for piece in _BLOCK_OR_CHARACTER.findall(text):
            if len(piece) == 1 or piece == "\r\n":
                words.append(piece)
            elif piece.isascii() and not any(word in piece for word in self._ascii_words):
                words += _split_latin(piece)
            else:
                self._add_block(piece, words)
        return words

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
        if self._weights.get(run) is not None:
            return list(run)
        words: list[str] = []
        for index, part in enumerate(_HAN_RUN.split(run)):
            words += self._word_finder.find(part) if index % 2 else _split_latin(part)
        return words


def _split_latin(text: str) -> list[str]:
    """Splits text without Han characters around what stays together: letters and digits, "3.14", "50%"."""
    return [part for part in _LATIN_OR_NUMBER.split(text) if part]


@lru_cache(maxsize=1)
def _load_segmenter() -> Segmenter:
    data = _read_data_files()
    # Unpickling is safe here: the digests admit exactly the published tables, plain dicts of floats.
    word_finder = WordFinder(*(pickle.loads(data[name]) for name in (_START, _TRANSITION, _EMISSION)))
    return Segmenter(*_parse_dictionary(data[_DICTIONARY].decode("utf-8")), word_finder)


def _read_data_files() -> dict[str, bytes]:
    remedy = "GPTPangu's token ids are defined on its words: pip install jieba==0.42.1"
    spec = importlib.util.find_spec("jieba")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"The dictionary of jieba 0.42.1 is needed, but jieba is not installed. {remedy}")
    folder = Path(spec.origin).parent
    data = {}
    for name, expected in _SHA256.items():
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise RuntimeError(f"{path} is missing or not that of jieba 0.42.1 (SHA-256 {found}). {remedy}")
        data[name] = content
    return data


def _parse_dictionary(text: str) -> tuple[dict[str, float | None], float]:
    """Returns the weights and the weight of an unknown character, from lines "word frequency part-of-speech"."""
    frequencies: dict[str, int] = {}
    total = 0
    for line in text.rstrip("\n").split("\n"):
        word, frequency, _ = line.split(" ")
        frequencies[word] = int(frequency)
        # A word that stands twice counts twice in the total, as in jieba.
        total += int(frequency)
    log_total = math.log(total)
    weights: dict[str, float | None] = {
        word: math.log(frequency) - log_total for word, frequency in frequencies.items()
    }
    for word in frequencies:
        for length in range(len(word) - 1, 0, -1):
            weights.setdefault(word[:length], None)
    return weights, math.log(1) - log_total
