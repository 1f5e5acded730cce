"""What Python functions that score answers may return, and what is refused by name of function and answer."""

import asyncio
import functools
import math
from decimal import Decimal

import numpy as np
import pytest
import torch

from pangu_trl.answers.python_scores import check_needed_columns, check_signature, python_scores
from pangu_trl.models.reward_model import ScoringError

ANSWERS = ["one", "two"]


async def later(value):
    await asyncio.sleep(0)
    return value


TAKEN = {
    "list": [1.5, -2.0],
    "tuple of a float and an int": (1.5, -2),
    "numpy": np.array([1.5, -2.0], dtype=np.float32),
    "numpy scalars": [np.float32(1.5), np.int64(-2)],
    "numpy, a row each": np.array([[1.5], [-2.0]]),
    "numpy of objects": np.array([1.5, -2.0], dtype=object),
    "tensor that asks for gradients": torch.tensor([1.5, -2.0], requires_grad=True),
    "tensor in bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "tensor, a row each": torch.tensor([[1.5], [-2.0]]),
    "tensors of one number": [torch.tensor(1.5), torch.tensor([-2.0])],
    "decimals": [Decimal("1.5"), Decimal("-2")],
}


@pytest.mark.parametrize("returned", TAKEN.values(), ids=TAKEN)
def test_numbers_are_taken_in_any_form(returned):
    assert python_scores("f", returned, ANSWERS) == [1.5, -2.0]


def test_truths_count_as_one_and_zero():
    assert python_scores("f", [True, np.False_], ANSWERS) == [1.0, 0.0]


def test_coroutines_are_awaited_also_within_a_running_loop():
    assert python_scores("f", later([1.5, -2.0]), ANSWERS) == [1.5, -2.0]

    async def in_a_notebook():
        return python_scores("f", later(np.array([[1.5], [-2.0]])), ANSWERS)

    assert asyncio.run(in_a_notebook()) == [1.5, -2.0]


# What was returned, what the message says, and the place of the answer that it is about.
REFUSED = {
    "nothing": (None, "f must return a list of 2 numbers for 2 answers; got NoneType None", 0),
    "a single float": (1.0, "list of 2 numbers for 2 answers; got float 1.0", 0),
    "a number too few": ([1.0], "list of 2 numbers for 2 answers; got 1 numbers", 0),
    "a number too many": ([1.0] * 3, "got 3 numbers", 0),
    "an array of another shape": (np.ones((1, 2)), r"got an array of shape \(1, 2\)", 0),
    "a tensor of no dimension": (torch.tensor(1.0), r"got an array of shape \(\)", 0),
    "a generator": ((1.0 for _ in ANSWERS), "got generator", 0),
    "a dict": ({"score": 1.0}, "got dict {'score': 1.0}", 0),
    "a text": ("12", "got str '12'", 0),
    "None for one answer": ([1.0, None], "must return finite numbers; got None for the answer 'two'", 1),
    "NaN": (np.array([1.0, math.nan]), "must return finite numbers; got nan for the answer 'two'", 1),
    "infinity": (torch.tensor([-math.inf, 1.0]), "got -inf for the answer 'one'", 0),
    "words": (["1.0", 1.0], "got '1.0' for the answer 'one'", 0),
    "what a pipeline gives": ([{"label": "GOOD", "score": 0.9}] * 2, "got {'label': 'GOOD', .* the answer 'one'", 0),
    "complex numbers": (np.array([1.0, 2j]), r"got \(1\+0j\) for the answer 'one'", 0),
    "a row each in lists": ([[1.0], [2.0]], r"got \[1.0\] for the answer 'one'", 0),
    "what a masked array leaves out": (
        np.ma.masked_array([1.0, 2.0], [False, True]),
        "got None for the answer 'two'",
        1,
    ),
    "a number beyond float": ([10**400, 1.0], r"got 1000.*\.\.\. for the answer 'one'", 0),
}


@pytest.mark.parametrize(("returned", "message", "index"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_named_with_function_and_answer(returned, message, index):
    with pytest.raises(ScoringError, match=message) as failure:
        python_scores("f", returned, ANSWERS, start=10)
    assert failure.value.index == 10 + index


class Judge:
    def __call__(self, prompts, completions, **columns): ...

    def good(self, prompts, completions, **columns): ...

    def lacks_columns(self, prompts, completions): ...


def with_scale(scale, prompts, completions, topic, *, level, **columns): ...


@pytest.mark.parametrize("function", [Judge(), Judge().good, functools.partial(with_scale, 2.0), len.__call__], ids=str)
def test_functions_in_any_form_are_taken(function):
    check_signature("f", function)


@pytest.mark.parametrize("function", [Judge, Judge().lacks_columns, lambda *, prompts, completions, **columns: []])
def test_a_function_that_would_fail_at_its_first_call_is_refused(function):
    with pytest.raises(ValueError, match=r"f must take \(prompts, completions, \*\*columns\).*it takes \("):
        check_signature("f", function)


def test_columns_that_a_function_needs_are_named():
    function = functools.partial(with_scale, 2.0)
    check_needed_columns("f", function, ["topic", "level", "more"])
    with pytest.raises(ValueError, match="f needs the columns level, topic; the records have more"):
        check_needed_columns("f", function, ["more"])
    check_needed_columns("f", Judge(), [])
