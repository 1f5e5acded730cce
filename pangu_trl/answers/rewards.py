"""What kinds of Python rewards there are beside the plain one, and how a reward is named in a recipe.

A plain reward is `f(prompts, completions, **columns) -> one score an answer`. Two decorators mark others:

    @groupwise     f(prompt, completions, **columns) -> scores: all K answers to ONE prompt, which are judged together
    @stepwise      f(prompts, completions, **columns) -> for each answer [(end, score), ...]: a process reward
"""

from collections.abc import Callable
from typing import Any

GROUPWISE, STEPWISE = "groupwise", "stepwise"


def groupwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a reward that compares the K answers to a prompt: it gets one prompt, K answers, and one value a column."""
    function.reward_kind = GROUPWISE
    return function


def stepwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a process reward: for each answer the steps `(end, score)`, in order.

    `end` is the number of characters of the answer's text up to and including the step; the score goes to the token
    that completes it.
    """
    function.reward_kind = STEPWISE
    return function


def reward_kind(function: Any) -> str | None:
    """`groupwise` or `stepwise`, or None for a plain reward."""
    return getattr(function, "reward_kind", None)


def refuse_kind(name: str, function: Any) -> None:
    """Refuses a marked reward where answers come one by one.

    Raises:
        ValueError: It is groupwise or stepwise.
    """
    kind = reward_kind(function)
    if kind is not None:
        raise ValueError(f"{name}: is a {kind} reward, which only PPO's reward_model can be; give one score an answer")
