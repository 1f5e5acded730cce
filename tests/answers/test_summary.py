"""Figures that every stage reads alike: variety, and who wins."""

import torch

from pangu_trl.answers.summary import distinct_ngrams, win_share


def test_a_tie_is_half_a_win():
    # Higher, equal, lower, higher: (1 + 0.5 + 0 + 1) / 4.
    scores, rivals = torch.tensor([2.0, 1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert win_share(scores - rivals).tolist() == [1.0, 0.5, 0.0, 1.0]


def test_distinct_ngrams_by_hand():
    # Unigrams 1 2 1 1: 2 of 4 differ. Bigrams 12 21 | none of the single token: 2 of 2.
    assert distinct_ngrams([[1, 2, 1], [1]], 1) == 0.5
    assert distinct_ngrams([[1, 2, 1], [1]], 2) == 1.0
    assert distinct_ngrams([[1]], 2) == 0.0
    # Texts by their characters: a b a b has the bigrams ab, ba, ab.
    assert distinct_ngrams(["abab"], 2) == 2 / 3
