"""Texts that are nearly the same, found by MinHash (Broder, 1997): a few numbers a text instead of the text itself."""

import importlib.util
from collections.abc import Sequence

import numpy as np

NUM_HASHES = 64
# Texts meet where one of 16 groups of 4 hashes is equal: at a similarity of 0.8 all but one of 5,000 pairs.
BANDS = 16
SHINGLE = 5
BATCH = 1000
SEED = 1

_BASE = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def is_available() -> bool:
    """Whether rensa, which computes the hashes, is installed."""
    return importlib.util.find_spec("rensa") is not None


class NearDuplicates:
    """Collects texts, and counts those that are nearly an earlier one.

    Similarity is the share of common character 5-grams among all of two texts (Jaccard), white space left out. It is
    estimated with 64 hashes, with a standard error of 0.05 around 0.8.

    Args:
        threshold: Smallest similarity that counts.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self.threshold = threshold
        self._waiting: list[str] = []
        self._digests: list[np.ndarray] = []

    def add(self, text: str) -> None:
        """Takes one more text; white space does not count."""
        self._waiting.append("".join(text.split()))
        if len(self._waiting) == BATCH:
            self._flush()

    def digests(self) -> np.ndarray:
        """The hashes of all texts so far, (N, 64)."""
        self._flush()
        if len(self._digests) != 1:
            # One copy of what is the most memory of all.
            self._digests = [np.concatenate([np.zeros((0, NUM_HASHES), dtype=np.uint32), *self._digests])]
        return self._digests[0]

    def are_near(self, others: "NearDuplicates | None" = None) -> np.ndarray:
        """Tells for each text whether it is nearly one of the others, or, without others, one before it; (N,)."""
        own = self.digests()
        before = own[:0] if others is None else others.digests()
        digests = own if others is None else np.concatenate([before, own])
        near = np.zeros(len(digests), dtype=bool)
        for band in np.split(digests, BANDS, axis=1):
            key = np.zeros(len(digests), dtype=np.uint64)
            for column in band.T:
                key = (key ^ column.astype(np.uint64)) * _MIX
            # Stable: of equal keys the earliest text comes first.
            order = np.argsort(key, kind="stable")
            is_first = np.ones(len(order), dtype=bool)
            is_first[1:] = key[order][1:] != key[order][:-1]
            starts = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
            # The others are compared with, not searched.
            met = ~is_first & (order >= len(before))
            if others is not None:
                met &= starts < len(before)
            later, first = order[met], starts[met]
            for start in range(0, len(later), 100_000):
                pair = slice(start, start + 100_000)
                similarity = (digests[later[pair]] == digests[first[pair]]).mean(axis=1)
                near[later[pair][similarity >= self.threshold]] = True
        return near[len(before) :]

    def _flush(self) -> None:
        if self._waiting:
            self._digests.append(_digests_of(self._waiting))
            self._waiting = []


def _digests_of(texts: Sequence[str]) -> np.ndarray:
    import rensa

    characters = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32) for text in texts]
    # Texts shorter than a shingle are one shingle.
    counts = [max(len(row) - SHINGLE + 1, 1) for row in characters]
    padded = [np.pad(row, (0, max(SHINGLE - len(row), 0))) for row in characters]
    hashes = np.concatenate([_shingle_hashes(row) for row in padded])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, NUM_HASHES, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def _shingle_hashes(characters: np.ndarray) -> np.ndarray:
    length = len(characters) - SHINGLE + 1
    hashes = np.zeros(length, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashes = hashes * _BASE + characters[offset : offset + length].astype(np.uint64)
    # Spread over all bits: MinHash takes the smallest.
    hashes ^= hashes >> np.uint64(29)
    return hashes * _MIX
