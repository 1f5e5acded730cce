"""A reward for mathematics: whether the answer's last expression is the record's solution, by the library math-verify.

reward_model: pangu_trl.answers.math_answers:math_reward
"""

import threading
from collections.abc import Sequence
from typing import Any

from pangu_trl.data.records import messages_text

SOLUTION_COLUMNS = ("solution", "answer")
# To read an expression, and to compare two; one that takes longer is no match.
SECONDS_EACH = 5


def math_reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
    """1.0 for each answer whose final expression equals that of the column `solution` (or `answer`), else 0.0.

    LaTeX and plain numbers are read (`\\boxed{}` first), and compared as mathematics: 1/2 is 0.5.

    Raises:
        ValueError: math-verify is not installed, the records have no such column, or a solution holds no expression.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ValueError("math_reward needs the library math-verify: pip install 'pangu_trl[math]'") from error
    name = next((name for name in SOLUTION_COLUMNS if name in columns), None)
    if name is None:
        raise ValueError(
            f"math_reward needs a column {' or '.join(SOLUTION_COLUMNS)} beside the prompts; they have "
            f"{', '.join(columns) or 'none'}"
        )
    # Its timeouts are signals, which only the main thread gets.
    seconds = SECONDS_EACH if threading.current_thread() is threading.main_thread() else None
    scores = []
    for solution, completion in zip(columns[name], completions, strict=True):
        truth = parse(_as_math(str(solution)), parsing_timeout=seconds)
        if not truth:
            raise ValueError(f"math_reward: the column {name!r} holds {solution!r}, in which there is no expression")
        found = parse(messages_text(completion), parsing_timeout=seconds)
        scores.append(float(verify(truth, found, timeout_seconds=seconds)))
    return scores


def _as_math(solution: str) -> str:
    """Bare LaTeX as math-verify wants it, in dollars."""
    return solution if "$" in solution or "\\boxed" in solution else f"${solution}$"
