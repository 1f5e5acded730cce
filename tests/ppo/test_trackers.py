"""`report_to`: figures and tables of answers arrive where a tracker keeps them; those not installed are skipped."""

import json

import pytest

from pangu_trl.ppo.sample_tables import COLUMNS, MOST_ROWS, _markdown, show_in_trackers

TRACKERS = ("tensorboard", "wandb", "trackio", "swanlab")


@pytest.fixture(params=TRACKERS)
def tracked_run(request, make_trainer, tmp_path, monkeypatch):
    """A short PPO run with one tracker, offline: its name and the folder that it writes below."""
    name = request.param
    pytest.importorskip(name, reason=f"not tested with {name}: pip install {name}")
    folder = tmp_path / "tracked"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for variable, value in {
        "TENSORBOARD_LOGGING_DIR": folder,
        "WANDB_MODE": "offline",
        "WANDB_DIR": folder,
        "TRACKIO_DIR": folder,
        "SWANLAB_MODE": "offline",
        "SWANLAB_SAVE_DIR": folder,
        "SWANLAB_LOG_DIR": folder,
    }.items():
        monkeypatch.setenv(variable, str(value))
    trainer = make_trainer(
        report_to=[name], max_steps=4, eval_strategy="steps", eval_steps=2, log_completions=True, project="tracked"
    )
    trainer.train()
    return name, folder, trainer


def test_figures_and_answers_reach_the_tracker(tracked_run):
    name, folder, trainer = tracked_run
    answers = [row["completion"] for row in read_table(trainer)]
    READERS[name](folder, trainer, answers)


def read_table(trainer):
    path = f"{trainer.args.output_dir}/completions/eval-4.jsonl"
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_tensorboard(folder, trainer, answers):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    logged = [entry["reward/mean"] for entry in trainer.state.log_history if "reward/mean" in entry]
    assert [scalar.value for scalar in events.Scalars("train/reward/mean")] == pytest.approx(logged)
    assert {"eval/win_rate", "train/kl/mean"} <= set(events.Tags()["scalars"])
    tables = events.Tensors("completions/text_summary")
    assert [table.step for table in tables] == [2, 4]
    text = tables[-1].tensor_proto.string_val[0].decode("utf-8")
    assert text == _markdown([[row[name] for name in COLUMNS] for row in read_table(trainer)][:MOST_ROWS])
    assert text.count("\n") == 1 + min(len(answers), MOST_ROWS)


def read_wandb(folder, trainer, answers):
    import wandb

    wandb.finish()
    tables = sorted(folder.glob("wandb/offline-run-*/files/media/table/completions*.table.json"))
    assert len(tables) == 2
    rows = [json.loads(path.read_text("utf-8")) for path in tables]
    assert all(table["columns"] == list(COLUMNS) for table in rows)
    assert answers[:MOST_ROWS] in [[row[1] for row in table["data"]] for table in rows]
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"train/reward/mean" in log.read_bytes()


def read_trackio(folder, trainer, answers):
    found = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    assert b"reward/mean" in found and b"completions" in found
    import pandas

    tables = [pandas.read_parquet(path) for path in sorted(folder.rglob("*.parquet"))]
    tables = [table for table in tables if set(COLUMNS) <= set(table.columns)]
    assert answers[:MOST_ROWS] in [list(table["completion"]) for table in tables]


def read_swanlab(folder, trainer, answers):
    import swanlab

    if swanlab.get_run() is not None:
        swanlab.finish()
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
