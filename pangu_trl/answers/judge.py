"""Judges answers that were sampled before, and sums up what the judgements say.

A judge is anything that turns (prompts, completions) into scores: a Python function or a reward model.
"""

import copy
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pangu_trl.data.conversations import EncodingColumns
from pangu_trl.data.records import messages_text
from pangu_trl.models.reward_model import (
    ScoringError,
    encode_checked,
    load_reward_model,
    score_responses,
    share_prompts,
)

from .journal import Journal
from .python_scores import check_signature, python_scores
from .records import Answers, Record, Scores, first_occurrences, per_answer_columns
from .reward_service import RewardService, is_url
from .rewards import refuse_kind

# Batches of a reward model that are sorted by length together, and kept together as they come.
SORTED_BATCHES = 16

# Columns that a judge cannot get under their own names, which its call needs.
TAKEN_NAMES = ("prompts", "completions", "known_scores", "keep_scores")

# Files that call a judge's code, or import it.
_PASSED_FILES = (__file__, importlib.__file__)


@dataclass(frozen=True)
class Judge:
    """Scores completions, and refuses scores that are missing or no finite numbers.

    Attributes:
        name: What the user called it, for errors.
        score: `f(prompts, completions, **columns) -> list[float]`, higher is better.
        batch_size: Number of completions handed to `score` at a time; None hands over all.
        check: Takes what `score` takes, all of it before the first score, and raises what would fail later.
        form: What `score` gets, see `runs.judge_form`: prompts and completions as the records hold them, or as texts.
    """

    name: str
    score: Callable[..., Sequence[float]]
    batch_size: int | None = None
    check: Callable[..., None] | None = None
    form: str = "record"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        known_scores: Sequence[float] = (),
        keep_scores: Callable[[int, list[float]], None] | None = None,
        **columns: Sequence[Any],
    ) -> list[float]:
        """Scores N completions.

        Args:
            prompts: N prompts, one for each completion.
            completions: N completions.
            known_scores: Scores of the first completions, of an earlier call that was stopped.
            keep_scores: Gets the scores of each batch as they come, with the index of its first completion.
            **columns: Further columns of the records, N values each.

        Raises:
            ScoringError: If a score is missing or no finite number; its index is the completion's.
        """
        if self.form == "text":
            prompts, completions = list(map(messages_text, prompts)), list(map(messages_text, completions))
        if self.check is not None:
            self.check(prompts, completions, **columns)
        scores = list(known_scores)
        batch_size = self.batch_size or max(len(completions), 1)
        starts = range(len(scores), len(completions), batch_size)
        for start in tqdm(starts, desc="judging", disable=self.batch_size is None):
            batch = slice(start, start + batch_size)
            arguments = (prompts[batch], completions[batch], {name: values[batch] for name, values in columns.items()})
            # A judge may change what it gets, which others get too, and which is written to files.
            its_prompts, its_completions, its_columns = copy.deepcopy(arguments)
            returned = self.score(its_prompts, its_completions, **its_columns)
            new_scores = python_scores(f"judge {self.name}", returned, completions[batch], start)
            if keep_scores is not None:
                keep_scores(start, new_scores)
            scores += new_scores
        return scores


def load_judge(spec: str, batch_size: int, form: str = "record", **model_kwargs: Any) -> Judge:
    """Loads a judge from `path/to/file.py:function`, `package.module:function`, the address of a reward service, or a
    reward model's folder or hub id.

    Args:
        spec: Where the judge is.
        batch_size: Number of answers judged at a time.
        form: What a function gets, as in `Judge`; a model takes records.
        **model_kwargs: Passed on to `from_pretrained` of a reward model.

    Raises:
        ValueError: If there is no such function, its file cannot be run, it does not take `(prompts, completions,
            **columns)`, or the model is no trained reward model.
    """
    if names_function(spec) or is_url(spec):
        function = RewardService(spec) if is_url(spec) else load_reward_function(spec)
        refuse_kind(f"judge {spec}", function)
        return Judge(spec, function, batch_size, form=form)
    if spec.endswith(".py"):
        raise ValueError(f"judge {spec}: name the function that judges, as in {spec}:FUNCTION")
    if form != "record":
        raise ValueError(f"judge {spec}: is a model, which reads records; leave the judge's form {form!r} out")
    return judge_of_model(spec, *load_reward_model(spec, **model_kwargs), batch_size)


def names_function(spec: str) -> bool:
    """Whether a reward or judge is named as `path/to/file.py:function` or `package.module:function`."""
    return ":" in spec and not is_url(spec) and not Path(spec).is_dir()


def load_reward_function(spec: str) -> Callable[..., Any]:
    """Loads the function that `path/to/file.py:function` or `package.module:function` names, with its kind of reward.

    Raises:
        ValueError: As `load_judge`; and from the function itself, whatever goes wrong in it, with the line of its file.
    """
    module_spec, _, function_name = spec.rpartition(":")
    function = _load_function(module_spec, function_name)

    @functools.wraps(function)
    def reward(*answers: Any, **columns: Any) -> Any:
        with _users_code(spec):
            return function(*answers, **columns)

    return reward


def judge_of_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Judge:
    """A reward model as a judge; it checks that it can score all completions before it scores one."""
    share_prompts(model)

    def score(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        rows = EncodingColumns.of_rows(columns, len(prompts))
        return score_responses(model, tokenizer, prompts, completions, batch_size, columns=rows)

    def check(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> None:
        encode_checked(model, tokenizer, prompts, completions, EncodingColumns.of_rows(columns, len(prompts)))

    # Many batches at once: score_responses sorts by length before it makes them.
    return Judge(name, score, batch_size * SORTED_BATCHES, check)


def score_answers(judge: Judge, answers: Answers, journal: Journal | None = None, name: str = "scores") -> Scores:
    """Has every answer judged; the judge also gets the records' other columns.

    Equal answers to one prompt are judged once and share the score: a ranking with unequal scores for them would
    contradict itself. A column that holds K numbers or booleans for K answers (such as `finished`) is handed over
    answer by answer; any other value is repeated for each answer.

    Args:
        judge: The judge.
        answers: The records.
        journal: Keeps the scores as they come, and has those of a call that was stopped.
        name: Of these scores in the journal.

    Raises:
        ValueError: Naming line and answer, if the judge fails on it.
    """
    records = answers.records
    asked = [(row, index) for row, record in enumerate(records) for index in first_occurrences(record["responses"])]
    names = dict.fromkeys(name for record in records for name in record if name not in ("prompt", "responses"))
    refuse_taken_names(names)
    columns = {name: [_value_for(records[row], name, index) for row, index in asked] for name in names}
    prompts = [records[row]["prompt"] for row, _ in asked]
    completions = [records[row]["responses"][index] for row, index in asked]
    try:
        kept = {} if journal is None else journal_arguments(journal, name)
        scores = dict(zip(asked, judge(prompts, completions, **kept, **columns), strict=True))
    except ScoringError as error:
        row, index = asked[error.index]
        raise ValueError(f"{answers.places[row]}: 'responses[{index}]': {error}") from error
    return [
        [scores[row, record["responses"].index(response)] for response in record["responses"]]
        for row, record in enumerate(records)
    ]


def refuse_taken_names(names: Iterable[str]) -> None:
    """Raises ValueError if a column has the name of an argument of every judge."""
    taken = [name for name in names if name in TAKEN_NAMES]
    if taken:
        raise ValueError(
            f"the column {taken[0]!r} has the name of an argument that every judge gets; rename it in the records"
        )


def journal_arguments(journal: Journal, name: str) -> dict[str, Any]:
    """What a judge needs to go on with the scores of a journal and to keep its own there."""
    known: list[float] = []
    while (batch := journal.known.get(f"{name}/{len(known)}")) is not None:
        known += batch
    return {
        "known_scores": known,
        "keep_scores": lambda start, scores: journal.add({f"{name}/{start}": scores}),
    }


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
    # A judge that was a script once may call sys.exit.
    except (Exception, SystemExit) as error:
        # Behind our own frames and the importing ones comes the user's; the last may lie deep in a library.
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename[0] != "<" and frame.filename not in _PASSED_FILES]
        place = f" at {own[0].filename}:{own[0].lineno}" if own else ""
        raise ValueError(f"judge {name}: {type(error).__name__}: {error}{place}") from error


def _value_for(record: Record, name: str, index: int) -> Any:
    return record[name][index] if name in per_answer_columns(record) else record.get(name)
