"""`report_to`: figures and tables of answers arrive where a tracker keeps them; those not installed are skipped."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_trl.data import read_jsonl
from pangu_trl.ppo.sample_tables import COLUMNS, MOST_ROWS, _markdown, show_in_trackers

TRACKERS = ("tensorboard", "wandb", "trackio", "swanlab")


@pytest.fixture(params=TRACKERS)
def tracked_run(request, models_dir, tmp_path):
    """A short PPO run with one tracker, offline, in a process of its own: trackers read their settings once."""
    name = request.param
    pytest.importorskip(name, reason=f"not tested with {name}: pip install {name}")
    folder, output = tmp_path / "tracked", tmp_path / "run"
    folder.mkdir()
    places = ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "TRACKIO_DIR", "SWANLAB_SAVE_DIR", "SWANLAB_LOG_DIR")
    environment = os.environ | dict.fromkeys(places, str(folder))
    environment |= {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline"}
    words = [sys.executable, str(Path(__file__).with_name("tracked_run.py")), str(models_dir), name, str(output)]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return name, folder, output


def test_figures_and_answers_reach_the_tracker(tracked_run):
    name, folder, output = tracked_run
    READERS[name](folder, output, [row["completion"] for row in read_table(output)])


def read_table(output):
    return read_jsonl(output / "completions" / "eval-4.jsonl")


def read_tensorboard(folder, output, answers):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    history = json.loads((output / "history.json").read_text("utf-8"))
    logged = [entry["reward/mean"] for entry in history if "reward/mean" in entry]
    assert [scalar.value for scalar in events.Scalars("train/reward/mean")] == pytest.approx(logged)
    assert {"eval/win_rate", "train/kl/mean"} <= set(events.Tags()["scalars"])
    tables = events.Tensors("completions/text_summary")
    assert [table.step for table in tables] == [2, 4]
    text = tables[-1].tensor_proto.string_val[0].decode("utf-8")
    assert text == _markdown([[row[name] for name in COLUMNS] for row in read_table(output)][:MOST_ROWS])
    assert text.count("\n") == 1 + min(len(answers), MOST_ROWS)


def read_wandb(folder, output, answers):
    tables = sorted(folder.glob("wandb/offline-run-*/files/media/table/completions*.table.json"))
    assert len(tables) == 2
    rows = [json.loads(path.read_text("utf-8")) for path in tables]
    assert all(table["columns"] == list(COLUMNS) for table in rows)
    assert answers[:MOST_ROWS] in [[row[1] for row in table["data"]] for table in rows]
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"train/reward/mean" in log.read_bytes()


def read_trackio(folder, output, answers):
    (database,) = folder.rglob("*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        logs = [json.loads(row[0]) for row in connection.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert any("train/reward/mean" in log for log in logs) and any("eval/win_rate" in log for log in logs)
    tables = [log["completions"]["_value"] for log in logs if "completions" in log]
    assert [log["train/global_step"] for log in logs if "completions" in log] == [2, 4]
    assert [row["completion"] for row in tables[-1]] == answers[:MOST_ROWS]


def read_swanlab(folder, output, answers):
    found = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    assert b"reward/mean" in found and b"completions" in found


READERS = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "trackio": read_trackio,
    "swanlab": read_swanlab,
}


def test_a_cell_holds_what_would_end_it():
    table = _markdown([["a|b\n<i>&", [], 1.23456, "", 2]])
    assert table.splitlines()[0] == "| " + " | ".join(COLUMNS) + " |"
    assert table.splitlines()[2:] == ["| a\\|b<br>&lt;i>&amp; | [] | 1.235 |  | 2 |"]


def test_without_a_tracker_nothing_is_shown():
    show_in_trackers([], [], [dict.fromkeys(COLUMNS, "")], 1)
