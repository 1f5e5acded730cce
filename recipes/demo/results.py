"""Reads what a run of the demo left behind: its figures, logs and samples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pangu_trl.data.jsonl import read_numbered_jsonl

LOGGED_STAGES = ("sft", "reward", "ppo")
# Answers with the annotator's scores and the reward model's.
RANKINGS = "rankings.test"


class MissingResult(Exception):
    """Something the run did not write, such as a metric of a stage that was skipped; the message names it."""


@dataclass(frozen=True)
class RunResults:
    """Figures, logs and samples of one run; whatever the run did not write is absent.

    Attributes:
        summary: Content of `summary.json`.
        log_histories: What the trainer logged, by stage.
        samples: Records with `prompt`, `responses` and the annotator's `scores`, by file name in `samples/`;
            prompts and responses as texts.
        policy_before: File of the answers before PPO.
    """

    summary: dict
    log_histories: dict[str, list[dict]]
    samples: dict[str, list[dict]]
    policy_before: str

    def figure(self, *keys: str) -> float:
        """Number in the summary under the nested keys, such as `("ppo", "kl")`."""
        value = self.summary
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, int | float):
            raise MissingResult(f"summary.json has no number '{'.'.join(keys)}'")
        return value

    def series(self, stage: str, metric: str) -> tuple[list[int], list[float]]:
        """Steps at which a stage logged a metric, and its values."""
        entries = [entry for entry in self.log_histories.get(stage, []) if entry.get(metric) is not None]
        if not entries:
            raise MissingResult(f"{stage}/trainer_state.json has no '{metric}'")
        return [entry["step"] for entry in entries], [entry[metric] for entry in entries]

    def records(self, name: str) -> list[dict]:
        """Records of `samples/<name>.jsonl`, at least one."""
        if not self.samples.get(name):
            raise MissingResult(f"samples/{name}.jsonl is missing or empty")
        return self.samples[name]

    def best_and_worst(self) -> dict[str, list[float]]:
        """Scores of the reward model for the best and the worst answer of each prompt, by the judge; ties left out."""
        best, worst = [], []
        for record in self.records(RANKINGS):
            if "reward_scores" not in record:
                raise MissingResult("samples/rankings.test.jsonl has no 'reward_scores'")
            ranked = sorted(zip(record["scores"], record["reward_scores"], strict=True))
            if ranked[0][0] < ranked[-1][0]:
                worst.append(ranked[0][1])
                best.append(ranked[-1][1])
        if not best:
            raise MissingResult("samples/rankings.test.jsonl has no prompt whose answers differ in score")
        return {"worst answer": worst, "best answer": best}

    def judgements(self) -> dict[str, list[float]]:
        """The judge's scores of all answers before and after PPO."""
        return {
            label: [score for record in self.records(name) for score in record["scores"]]
            for name, label in {self.policy_before: "before PPO", "ppo": "after PPO"}.items()
        }


def read_results(run_dir: Path, judged: Sequence[str], policy_before: str) -> RunResults:
    """Reads a run's folder.

    Args:
        run_dir: The folder.
        judged: Files of answers with the judge's scores in the column `judge`. They keep the empty ones, which a
            ranking may not hold.
        policy_before: That of the answers before PPO.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is not what it should be; the message says file, line and what to do.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no such folder; expected that of a demo run, as `make demo` writes it.")
    return RunResults(
        summary=_read_json(run_dir / "summary.json"),
        log_histories={stage: read_log_history(run_dir / stage) for stage in LOGGED_STAGES},
        samples={
            name: _read_samples(run_dir / "samples" / f"{name}.jsonl", column)
            for name, column in (dict.fromkeys(judged, "judge") | {RANKINGS: "scores"}).items()
        },
        policy_before=policy_before,
    )


def read_log_history(stage_dir: Path) -> list[dict]:
    """Reads what a stage's trainer logged, one dict per log; empty if the stage did not run."""
    path = stage_dir / "trainer_state.json"
    history = _read_json(path).get("log_history", [])
    if not isinstance(history, list):
        raise ValueError(f"{path}: 'log_history' must be a list; got a {type(history).__name__}. Run the stage again.")
    return history


def logged(history: list[dict], key: str) -> list[float]:
    """All values that a stage logged under a name, in their order."""
    return [entry[key] for entry in history if key in entry]


def before_and_after(history: list[dict], key: str, name: str | None = None) -> dict[str, float]:
    """First and last value that a stage logged under a name, called by that or another name."""
    values, name = logged(history, key), name or key
    return {f"{name}_before": values[0], f"{name}_after": values[-1]}


def _read_json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: must be JSON; {error}. Was the run interrupted? Run the stage again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a dict; got a {type(content).__name__}. Run the stage again.")
    return content


def _read_samples(path: Path, score_column: str) -> list[dict]:
    if not path.exists() or path.stat().st_size == 0:
        return []
    return [_checked_sample(record, score_column, f"{path}:{number}") for number, record in read_numbered_jsonl(path)]


def _checked_sample(record: dict, score_column: str, where: str) -> dict:
    prompt = _as_text(record.get("prompt"))
    if prompt is None:
        raise ValueError(f"{where}: 'prompt' must be a text; got {record.get('prompt')!r}. Sample again.")
    responses = record.get("responses")
    if isinstance(responses, list):
        # Of messages the page shows the texts; what is neither stays, and is refused below.
        texts = [_as_text(response) for response in responses]
        responses = [own if text is None else text for own, text in zip(responses, texts, strict=True)]
        record = record | {"responses": responses}
    num_responses = len(responses or [])
    for field in ("responses", score_column, "reward_scores"):
        if field == "reward_scores" and field not in record:
            continue
        values = record.get(field)
        kind = str if field == "responses" else int | float
        if (
            not isinstance(values, list)
            or not values
            or len(values) != num_responses
            or not all(isinstance(value, kind) for value in values)
        ):
            raise ValueError(
                f"{where}: '{field}' must be a list of {'texts' if kind is str else 'numbers'}, one for each of the "
                f"{num_responses} responses and at least one; got {values!r}. Sample again."
            )
    return record | {"prompt": prompt, "scores": record[score_column]}


def _as_text(value: object) -> str | None:
    """A text, or the last of some messages; None for anything else."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return value if isinstance(value, str) else None
