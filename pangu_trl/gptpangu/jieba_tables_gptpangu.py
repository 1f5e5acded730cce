"""The data of jieba 0.42.1: its dictionary and the tables of its hidden Markov model.

Read from the files of the installed package, which is never imported: `jieba.add_word` elsewhere in the process cannot
reach these tables, nor can the `jieba.cache` file that any user of the machine may plant in the temporary directory.
"""

import hashlib
import importlib.util
import math
import pickle
from pathlib import Path
from typing import Any

_SHA256 = {
    "dict.txt": "7197c3211ddd98962b036cdf40324d1ea2bfaa12bd028e68faa70111a88e12a8",
    "finalseg/prob_start.p": "dfd45976dd4f8f2bc12535a680a178bf9e75eaa38bdfdcb844469e54468d6245",
    "finalseg/prob_trans.p": "ea7f50162ffa01db4973c7a8120b3c0233fbc5819fc0d617513535f1f2c7fedc",
    "finalseg/prob_emit.p": "1e1d1d835b0c77d234acaa6afa23a13ffce597a295be0d7a1ece6a0d440dcf08",
}
_REMEDY = "GPTPangu's token ids are defined on its words: pip install jieba==0.42.1"


def read_markov_tables() -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Returns the log-probabilities of the states at the start, after each state, and of each state's characters.

    Raises:
        RuntimeError: The data files of jieba 0.42.1 are not installed.
    """
    start, transition, emission = (_unpickle(f"finalseg/prob_{name}.p") for name in ("start", "trans", "emit"))
    return start, transition, emission


def read_dictionary() -> tuple[dict[str, float | None], float]:
    """Returns the log-probability of each word (None for what only begins words), and of an unknown character.

    Raises:
        RuntimeError: The data files of jieba 0.42.1 are not installed.
    """
    return parse_dictionary(_read("dict.txt").decode("utf-8"))


def parse_dictionary(text: str) -> tuple[dict[str, float | None], float]:
    """Returns what `read_dictionary` does, from lines "word frequency part-of-speech"."""
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


def _unpickle(name: str) -> Any:
    # Safe here: the digests admit exactly the published tables, plain dicts of floats.
    return pickle.loads(_read(name))


def _read(name: str) -> bytes:
    spec = importlib.util.find_spec("jieba")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"The data files of jieba 0.42.1 are needed, but jieba is not installed. {_REMEDY}")
    path = Path(spec.origin).parent / name
    content = path.read_bytes() if path.is_file() else b""
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256[name]:
        raise RuntimeError(f"{path} is missing or not that of jieba 0.42.1 (SHA-256 {found}). {_REMEDY}")
    return content
