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
_UNSEEN = (_LOG_ZERO,) * len(_STATES)


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
        # The only moves that a word allows.
        self._moves = tuple(transition[move[0]][move[1]] for move in ("BM", "BE", "MM", "ME", "EB", "ES", "SB", "SS"))
        characters = {character for probabilities in emission.values() for character in probabilities}
        self._emission = {
            character: tuple(emission[state].get(character, _LOG_ZERO) for state in _STATES) for character in characters
        }

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
        b_m, b_e, m_m, m_e, e_b, e_s, s_b, s_s = self._moves
        emission_of = self._emission.get
        emit_begin, emit_middle, emit_end, emit_single = emission_of(run[0], _UNSEEN)
        begin, middle, end, single = (
            self._start[_BEGIN] + emit_begin,
            self._start[_MIDDLE] + emit_middle,
            self._start[_END] + emit_end,
            self._start[_SINGLE] + emit_single,
        )
        previous_states = []
        for character in run[1:]:
            emit_begin, emit_middle, emit_end, emit_single = emission_of(character, _UNSEEN)
            # Compared after adding the emission, as jieba does: the addition may round a difference away.
            from_single, from_end = single + s_b + emit_begin, end + e_b + emit_begin
            next_begin, before_begin = (from_single, _SINGLE) if from_single >= from_end else (from_end, _END)
            from_middle, from_begin = middle + m_m + emit_middle, begin + b_m + emit_middle
            next_middle, before_middle = (from_middle, _MIDDLE) if from_middle >= from_begin else (from_begin, _BEGIN)
            from_middle, from_begin = middle + m_e + emit_end, begin + b_e + emit_end
            next_end, before_end = (from_middle, _MIDDLE) if from_middle >= from_begin else (from_begin, _BEGIN)
            from_single, from_end = single + s_s + emit_single, end + e_s + emit_single
            single, before_single = (from_single, _SINGLE) if from_single >= from_end else (from_end, _END)
            begin, middle, end = next_begin, next_middle, next_end
            previous_states.append((before_begin, before_middle, before_end, before_single))
        return (_SINGLE if single >= end else _END), previous_states
