"""Figures that every stage reads alike: variety, and who wins."""

import pytest
import torch

from pangu_trl.answers.records import Answers
from pangu_trl.answers.summary import distinct_ngrams, summarise_answers, win_share


def test_a_tie_is_half_a_win():
    # Higher, equal, lower, higher: (1 + 0.5 + 0 + 1) / 4.
    scores, rivals = torch.tensor([2.0, 1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert win_share(scores - rivals).tolist() == [1.0, 0.5, 0.0, 1.0]


def test_distinct_ngrams_by_hand():
    # Unigrams 1 2 1 1: 2 of 4 differ. Bigrams 12 21 | none of the single token: 2 of 2.
    assert distinct_ngrams([[1, 2, 1], [1]], 1) == 0.5
    assert distinct_ngrams([[1, 2, 1], [1]], 2) == 1.0
    assert distinct_ngrams([[1]], 2) == 0.0


@pytest.mark.parametrize(
    "texts, unigrams, bigrams",
    [
        # The cat the dog | the cat: the, cat, dog of 6; the cat, cat the, the dog of 4.
        (["The cat the dog", "the cat"], 3 / 6, 3 / 4),
        # Punctuation goes with its word.
        (["Go. go"], 1.0, 1.0),
        # Han by characters: 好 好 吃 ， 好 吃 has 好 吃 ， of 6 and 好好 好吃 吃， ，好 of 5.
        (["好好吃，好吃"], 3 / 6, 4 / 5),
        # GPT 很 好 | GPT 好.
        (["GPT很好", "GPT 好"], 3 / 5, 1.0),
        (["ขขก"], 2 / 3, 1.0),
    ],
)
def test_words_are_counted_and_characters_where_there_are_none(texts, unigrams, bigrams):
    found = summarise_answers(Answers([{"prompt": "p", "responses": texts}], ["answers.jsonl:1"]))
    assert (found["distinct/1"], found["distinct/2"]) == (pytest.approx(unigrams), pytest.approx(bigrams))
