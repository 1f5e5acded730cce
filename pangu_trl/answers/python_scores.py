"""What Python functions that score answers must take and give: one rule for PPO's rewards and every judge."""

import asyncio
import inspect
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from pangu_trl.data.records import is_finite_number
from pangu_trl.models.reward_model import ScoringError

# What a function gets by position, so that no column of the records may be called so.
OWN_ARGUMENTS = ("prompts", "completions")
_LONGEST_QUOTE = 200


def check_signature(name: str, function: Callable[..., Any]) -> None:
    """Refuses a function that does not take `(prompts, completions, **columns)`.

    Raises:
        ValueError: It would fail at its first call; the message says what it takes.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Some that are written in C do not tell.
        return
    parameters = signature.parameters.values()
    num_by_position = sum(parameter.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    kinds = {parameter.kind for parameter in parameters}
    takes_two = num_by_position >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds
    if not takes_two or inspect.Parameter.VAR_KEYWORD not in kinds:
        raise ValueError(
            f"{name} must take (prompts, completions, **columns), as the records' other columns are handed over too; "
            f"it takes {signature}"
        )


def check_needed_columns(name: str, function: Callable[..., Any], names: Iterable[str]) -> None:
    """Refuses a function that needs a column which the records do not have.

    Args:
        name: The function, for errors.
        function: Takes `(prompts, completions, **columns)`.
        names: Columns that it will get.

    Raises:
        ValueError: It would fail at its first call; the message names the columns.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return
    by_position = [parameter for parameter in parameters if parameter.kind <= parameter.POSITIONAL_OR_KEYWORD]
    needed = {
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter not in by_position[: len(OWN_ARGUMENTS)]
    }
    missing = sorted(needed - set(names))
    if missing:
        found = ", ".join(sorted(names)) or "none"
        raise ValueError(
            f"{name} needs the columns {', '.join(missing)}; the records have {found}. Add them to the data, or give "
            "the arguments a default"
        )


def check_columns(names: Iterable[str]) -> None:
    """Refuses columns whose names a function's own arguments have.

    Raises:
        ValueError: The message says which to rename.
    """
    taken = [name for name in OWN_ARGUMENTS if name in names]
    if taken:
        raise ValueError(
            f"the data has the column {taken[0]!r}, which is the name of an argument that every Python reward or judge "
            "gets; rename the column"
        )


def python_scores(name: str, returned: Any, completions: list[Any], start: int = 0) -> list[float]:
    """Takes N scores from what a function returned, or awaits them.

    Lists, tuples, NumPy arrays and tensors of N finite numbers (or N rows of one) are taken.

    Args:
        name: The function, for errors.
        returned: What it returned.
        completions: The N answers that it was to score.
        start: Place of the first answer among those of the caller.

    Raises:
        ScoringError: Naming function and answer, if a score is missing or no finite number.
    """
    if inspect.isawaitable(returned):
        returned = _awaited(returned)
    expected = len(completions)
    wanted = f"{name} must return a list of {expected} numbers for {expected} answers; got "
    if isinstance(returned, torch.Tensor):
        returned = returned.detach().cpu().double().numpy() if not returned.is_complex() else returned.numpy()
    if isinstance(returned, np.ndarray):
        if returned.shape not in ((expected,), (expected, 1)):
            raise ScoringError(f"{wanted}an array of shape {returned.shape}", start)
        returned = returned.reshape(-1).tolist()
    if not isinstance(returned, list | tuple):
        raise ScoringError(f"{wanted}{type(returned).__name__} {_quoted(returned)}", start)
    if len(returned) != expected:
        raise ScoringError(f"{wanted}{len(returned)} numbers", start)
    scores = []
    for index, (score, completion) in enumerate(zip(returned, completions, strict=True)):
        if not is_finite_number(score):
            raise ScoringError(
                f"{name} must return finite numbers; got {_quoted(score)} for the answer {_quoted(completion)}",
                start + index,
            )
        scores.append(float(score))
    return scores


def check_steps(name: str, steps: Any, texts: list[str]) -> None:
    """Refuses what a stepwise reward returned, unless it is `[(end, score), ...]` in order for each of N answers.

    Args:
        name: The function, for errors.
        steps: What it returned.
        texts: The N answers.

    Raises:
        ScoringError: Naming function and answer.
    """
    if not isinstance(steps, list | tuple) or len(steps) != len(texts):
        found = f"{len(steps)} entries" if isinstance(steps, list | tuple) else type(steps).__name__
        raise ScoringError(
            f"{name} must return a list of {len(texts)} lists of steps for {len(texts)} answers; got {found}", 0
        )
    for index, (of_answer, text) in enumerate(zip(steps, texts, strict=True)):
        last = 0
        for step in of_answer:
            is_pair = isinstance(step, list | tuple) and len(step) == 2
            if not is_pair or not isinstance(step[0], int) or not is_finite_number(step[1]):
                raise ScoringError(
                    f"{name}: a step of answer {index} must be (end, score), a number of characters and a finite "
                    f"number; got {_quoted(step)}",
                    index,
                )
            if not last < step[0] <= len(text):
                raise ScoringError(
                    f"{name}: the steps of answer {index} must end one after the other, at 1 to {len(text)} "
                    f"characters; got {step[0]} after {last}",
                    index,
                )
            last = step[0]


def _awaited(returned: Any) -> Any:
    async def wait() -> Any:
        return await returned

    # A loop may run in this thread already, as in a notebook.
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, wait()).result()


def _quoted(value: Any) -> str:
    quote = repr(value)
    return quote if len(quote) <= _LONGEST_QUOTE else f"{quote[:_LONGEST_QUOTE]}..."
