"""Judges answers that were sampled before, and sums up what the judgements say.

A judge is anything that turns (prompts, completions) into scores: a Python function or a reward model.
"""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from pangu_trl.data.records import messages_text
from pangu_trl.models.reward_model import ScoringError, load_reward_model, score_responses

from .python_scores import check_columns, check_signature, python_scores
from .records import Answers, Record, Scores, first_occurrences, per_answer_columns

# Files that call a judge's code, or import it.
_PASSED_FILES = (__file__, importlib.__file__)


@dataclass(frozen=True)
class Judge:
    """Scores completions, and refuses scores that are missing or no finite numbers.

    Attributes:
        name: What the user called it, for errors.
        score: `f(prompts, completions, **columns) -> list[float]`, higher is better.
        batch_size: Number of completions handed to `score` at a time; None hands over all.
        form: What `score` gets, see `runs.judge_form`: prompts and completions as the records hold them, or as texts.
    """

    name: str
    score: Callable[..., Sequence[float]]
    batch_size: int | None = None
    form: str = "record"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """Scores N completions.

        Args:
            prompts: N prompts, one for each completion.
            completions: N completions.
            **columns: Further columns of the records, N values each.

        Raises:
            ScoringError: If a score is missing or no finite number; its index is the completion's.
        """
        if self.form == "text":
            prompts, completions = list(map(messages_text, prompts)), list(map(messages_text, completions))
        scores: list[float] = []
        batch_size = self.batch_size or max(len(completions), 1)
        for start in tqdm(range(0, len(completions), batch_size), desc="judging", disable=self.batch_size is None):
            batch = slice(start, start + batch_size)
            batch_columns = {name: values[batch] for name, values in columns.items()}
            returned = self.score(prompts[batch], completions[batch], **batch_columns)
            scores += python_scores(f"judge {self.name}", returned, completions[batch], start)
        return scores


def load_judge(spec: str, batch_size: int, form: str = "record", **model_kwargs: Any) -> Judge:
    """Loads a judge from `path/to/file.py:function`, `package.module:function`, or a reward model's folder or hub id.

    Args:
        spec: Where the judge is.
        batch_size: Number of answers judged at a time.
        form: What a function gets, as in `Judge`; a model takes records.
        **model_kwargs: Passed on to `from_pretrained` of a reward model.

    Raises:
        ValueError: If there is no such function, its file cannot be run, it does not take `(prompts, completions,
            **columns)`, or the model is no trained reward model.
    """
    if ":" in spec and not Path(spec).is_dir():
        module_spec, _, function_name = spec.rpartition(":")
        function = _load_function(module_spec, function_name)

        def judge(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> Sequence[float]:
            with _users_code(spec):
                return function(prompts, completions, **columns)

        return Judge(spec, judge, batch_size, form)
    if spec.endswith(".py"):
        raise ValueError(f"judge {spec}: name the function that judges, as in {spec}:FUNCTION")
    if form != "record":
        raise ValueError(f"judge {spec}: is a model, which reads records; leave the judge's form {form!r} out")
    model, tokenizer = load_reward_model(spec, **model_kwargs)

    def score(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        return score_responses(model, tokenizer, prompts, completions, batch_size, show_progress=True)

    # All at once: score_responses sorts by length before it makes batches.
    return Judge(spec, score)


def score_answers(judge: Judge, answers: Answers) -> Scores:
    """Has every answer judged; the judge also gets the records' other columns.

    Equal answers to one prompt are judged once and share the score: a ranking with unequal scores for them would
    contradict itself. A column that holds K numbers or booleans for K answers (such as `finished`) is handed over
    answer by answer; any other value is repeated for each answer.

    Raises:
        ValueError: Naming line and answer, if the judge fails on it.
    """
    records = answers.records
    asked = [(row, index) for row, record in enumerate(records) for index in first_occurrences(record["responses"])]
    names = dict.fromkeys(name for record in records for name in record if name not in ("prompt", "responses"))
    check_columns(names)
    columns = {name: [_value_for(records[row], name, index) for row, index in asked] for name in names}
    prompts = [records[row]["prompt"] for row, _ in asked]
    completions = [records[row]["responses"][index] for row, index in asked]
    try:
        scores = dict(zip(asked, judge(prompts, completions, **columns), strict=True))
    except ScoringError as error:
        row, index = asked[error.index]
        raise ValueError(f"{answers.places[row]}: 'responses[{index}]': {error}") from error
    return [
        [scores[row, record["responses"].index(response)] for response in record["responses"]]
        for row, record in enumerate(records)
    ]


def _load_function(module_spec: str, function_name: str) -> Callable[..., Sequence[float]]:
    module = _import_file(Path(module_spec)) if module_spec.endswith(".py") else _import_module(module_spec)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = sorted(name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_")
        raise ValueError(f"judge {module_spec}: no function {function_name!r}; it has {', '.join(functions) or 'none'}")
    check_signature(f"judge {module_spec}:{function_name}", function)
    return function


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"judge {path}: there is no such file")
    name = f"pangu_trl_judge_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and Path(loaded.__file__).samefile(path):
        # A judge may hold a model, or processes, that it should not start again for every command of a program.
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up here.
    sys.modules[name] = module
    try:
        with _users_code(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if not name:
        raise ValueError("judge: name the module before the colon, as in path/to/file.py:FUNCTION")
    try:
        with _users_code(name):
            return importlib.import_module(name)
    except ValueError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise ValueError(
                f"{error}; install the package it is in, or give a file as path/to/file.py:FUNCTION"
            ) from error
        raise


@contextmanager
def _users_code(name: str) -> Iterator[None]:
    """Says in one line what went wrong in a judge, and at which line of its file."""
    try:
        yield
    except Exception as error:
        # Behind our own frames and the importing ones comes the user's; the last may lie deep in a library.
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename[0] != "<" and frame.filename not in _PASSED_FILES]
        place = f" at {own[0].filename}:{own[0].lineno}" if own else ""
        raise ValueError(f"judge {name}: {type(error).__name__}: {error}{place}") from error


def _value_for(record: Record, name: str, index: int) -> Any:
    return record[name][index] if name in per_answer_columns(record) else record.get(name)
