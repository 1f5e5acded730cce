"""The second step of jieba's segmentation: what the dictionary leaves as single characters becomes words.

Runs of single Han characters are cut by a hidden Markov model, numbers and Latin letters by one pattern. Where it
differs from jieba: the model runs in linear time (jieba's copies whole paths, quadratic on long text without
punctuation). Scores are the same float64 sums in the same order, so that ties fall the same way.
"""

import re

_HAN_RUN = re.compile(r"([\u4E00-\u9FD5]+)")
_LATIN_OR_NUMBER = re.compile(r"([a-zA-Z0-9]+(?:\.[0-9]+)?%?)")

# jieba's log of zero. It swallows every other term of a sum, and ties arise from that: the value is part of the result.
_LOG_ZERO = -3.14e100

_STATES = "BMES"
_BEGIN, _MIDDLE, _END, _SINGLE = range(4)


def split_latin(text: str) -> list[str]:
    """Splits text without Han characters around what stays together: letters and digits, "3.14", "50%"."""
    return [part for part in _LATIN_OR_NUMBER.split(text) if part]


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
        self._emission = tuple(emission[state] for state in _STATES)

    def cut(self, run: str) -> list[str]:
        """Cuts a run of characters, each of which may stand in a word of jieba, into words."""
        words: list[str] = []
        for index, part in enumerate(_HAN_RUN.split(run)):
            words += self._find(part) if index % 2 else split_latin(part)
        return words

    def _find(self, run: str) -> list[str]:
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
        # One row for each character, with a column for each state.
        emissions = zip(*([table.get(it, _LOG_ZERO) for it in run] for table in self._emission), strict=True)
        begin, middle, end, single = (
            first + emitted for first, emitted in zip(self._start, next(emissions), strict=True)
        )
        previous_states = []
        for emit_begin, emit_middle, emit_end, emit_single in emissions:
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
