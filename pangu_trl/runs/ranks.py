"""What one rank does for all of them."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


def on_main_process(function: Callable[[], Result]) -> Result:
    """Has the main process call a function, and gives every rank its result.

    Every rank must call it. A ValueError or OSError is raised on every rank too, so that none waits for the others.
    """
    state = PartialState()
    answer: list = [None, None]
    if state.is_main_process:
        try:
            answer[0] = function()
        except (ValueError, OSError) as error:
            answer[1] = error
    if state.num_processes > 1:
        broadcast_object_list(answer)
    result, error = answer
    if error is not None:
        raise error
    return result
