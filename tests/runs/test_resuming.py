"""The end of a run is a point to resume from; a checkpoint is what its mark says; in every stage."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from pangu_trl.runs import resuming
from pangu_trl.runs.checkpoints import (
    MARK,
    check_whole,
    drop_old_checkpoints,
    flaw_of,
    last_whole_checkpoint,
    mark_whole,
)
from pangu_trl.runs.record import read_options

STAGES = ["sft", "reward", "ppo", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("dpo", "grpo"))]
SAVING = dict(
    save_strategy="steps", save_steps=2, save_total_limit=3, max_steps=4, lr_scheduler_type="linear", bf16=False
)


@pytest.fixture(params=STAGES)
def stage(request) -> str:
    return request.param


@pytest.fixture
def options(tmp_path, base, reward_model, tokenizer, stage) -> dict:
    found = SAVING | dict(model_name_or_path=base, output_dir=tmp_path / "run")
    if stage in ("ppo", "grpo"):
        reward_model.save_pretrained(tmp_path / "judge")
        tokenizer.save_pretrained(tmp_path / "judge")
        found["reward_model"] = tmp_path / "judge"
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text("utf-8"))["log_history"]


def test_a_run_ends_resumes_and_refuses_what_is_damaged(run_recipe, options, stage, tmp_path, caplog, monkeypatch):
    """One run a stage serves all that can be asked of it; training is what costs."""
    folder = Path(options["output_dir"])
    run_recipe(stage, **options)
    ended, figures = weights(folder), history(folder)
    whole_loss = [entry["train_loss"] for entry in figures if "train_loss" in entry]
    assert len(whole_loss) == 1

    # A finished run is finished, however often it is resumed.
    for _ in range(2):
        trainer = run_recipe(stage, **options, resume_from_checkpoint="true")
        assert trainer.state.global_step == 4
        assert "checkpoint-4 is at step 4 of 4: nothing is left to train" in caplog.text
        assert "holds from here on" not in caplog.text
        assert history(folder) == figures
        for name, tensor in weights(folder).items():
            assert torch.equal(tensor, ended[name]), name
    assert not (folder / "_run.lock").exists()

    # So is one that was killed in its last save: the mean loss of the whole run is in its checkpoint.
    (folder / "trainer_state.json").unlink()
    (folder / "model.safetensors").unlink()
    run_recipe(stage, **options, resume_from_checkpoint="true")
    assert [entry["train_loss"] for entry in history(folder) if "train_loss" in entry] == pytest.approx(whole_loss)
    assert weights(folder).keys() == ended.keys()

    assert_every_damage_is_found(folder, caplog)

    # From the middle the figures are those of the whole run.
    shutil.rmtree(folder / "checkpoint-4")
    run_recipe(stage, **options, resume_from_checkpoint="true")
    for name, tensor in weights(folder).items():
        assert torch.equal(tensor, ended[name]), name
    assert [entry["train_loss"] for entry in history(folder) if "train_loss" in entry] == pytest.approx(whole_loss)
    for now, then in zip(history(folder)[:4], figures[:4], strict=True):
        assert now.get("num_tokens") == then.get("num_tokens")
        assert now["loss"] == pytest.approx(then["loss"], abs=1e-6)

    with pytest.raises(ValueError, match=r"learning_rate: 0.01 in the checkpoint, 0.02 now"):
        run_recipe(stage, **options | dict(learning_rate=0.02, resume_from_checkpoint="true"))

    # As if two processes resumed what one wrote, and one what two wrote.
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=other_processes(1, 2)):
        patch.setattr(resuming, "read_options", lambda arguments: read_options(arguments) | {"world_size": 2})
        run_recipe(stage, **options, resume_from_checkpoint="true")
    checkpoint = folder / "checkpoint-4"
    record = json.loads((checkpoint / "run.json").read_text("utf-8"))
    record["options"]["world_size"] = 2
    (checkpoint / "run.json").write_text(json.dumps(record), "utf-8")
    mark_whole(checkpoint)
    with pytest.raises(ValueError, match=other_processes(2, 1)):
        run_recipe(stage, **options, resume_from_checkpoint="true")


def test_a_run_against_several_rewards_goes_on(run_recipe, base, reward_model, tokenizer, tmp_path):
    reward_model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    rules = tmp_path / "rules.py"
    rules.write_text("def short(prompts, completions, **columns):\n    return [-float(len(c)) for c in completions]\n")
    options = SAVING | dict(model_name_or_path=base, output_dir=tmp_path / "run", save_total_limit=1)
    options["reward_model"] = [tmp_path / "judge", f"{rules}:short"]
    run_recipe("ppo", **options)
    record = json.loads((tmp_path / "run" / "checkpoint-4" / "run.json").read_text("utf-8"))
    assert record["options"]["reward_model"] == ["judge", "rules.py:short"], "names without the folders of this machine"
    assert run_recipe("ppo", **options | dict(max_steps=6, resume_from_checkpoint="true")).state.global_step == 6
    rules.write_text(rules.read_text("utf-8").replace("-float", "float"))
    with pytest.raises(ValueError, match="reward_model"):
        run_recipe("ppo", **options | dict(max_steps=8, resume_from_checkpoint="true"))


def other_processes(then: int, now: int) -> str:
    return (
        rf"checkpoint-4 was written with other options: .*world_size: {then} in the checkpoint, {now} now.*"
        rf"number of processes.*--num_processes {then}\).*another output_dir"
    )


def assert_every_damage_is_found(folder: Path, caplog) -> None:
    """Every file of a checkpoint cut, emptied, removed, or with one bit flipped."""
    checkpoint = folder / "checkpoint-4"
    names = [path.relative_to(checkpoint).as_posix() for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    assert {MARK, "run.json", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < set(names)
    for name in names:
        path = checkpoint / name
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damage, damaged in (("cut", content[:-1]), ("emptied", b""), ("removed", None), ("flipped", flipped)):
            caplog.clear()
            path.unlink() if damaged is None else path.write_bytes(damaged)
            assert last_whole_checkpoint(folder) == str(folder / "checkpoint-2"), (name, damage)
            if damage != "flipped" or name != MARK:
                assert name in caplog.text, (name, damage)
            with pytest.raises(ValueError, match="cannot be resumed from"):
                check_whole(checkpoint)
            path.write_bytes(content)
    assert flaw_of(checkpoint) is None


def test_what_a_kill_left_of_a_removal_goes_before_whole_checkpoints(tmp_path):
    for step in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_text("x")
        if step > 1:
            mark = tmp_path / f"checkpoint-{step}" / MARK
            mark.write_text("{}")
            os.utime(mark, (step, step))
        os.utime(tmp_path / f"checkpoint-{step}", (step, step))
    # Its folder changed last, when the kill came.
    os.utime(tmp_path / "checkpoint-1", (9, 9))

    def left(limit, *kept):
        drop_old_checkpoints(tmp_path, limit, [tmp_path / f"checkpoint-{step}" for step in kept])
        return sorted(path.name for path in tmp_path.iterdir())

    assert left(None, 4) == left(0, 4) == left(4, 4) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert left(3, 4) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert left(1, 4, 2) == ["checkpoint-2", "checkpoint-4"]
    # A run that resumed from an earlier one keeps what it saves, though a later step is there.
    os.utime(tmp_path / "checkpoint-2" / MARK, (9, 9))
    assert left(1, 2) == ["checkpoint-2"]


@pytest.mark.parametrize("stage", ["sft"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_told_to_stop_saves_and_says_how_to_go_on(run_recipe, options, number, capsys, request):
    class Tell(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                os.kill(os.getpid(), number)

    folder = Path(options["output_dir"])
    # A shell that starts the tests in the background has them ignore SIGINT, which a run respects.
    was, before = signal.getsignal(number), signal.default_int_handler
    signal.signal(number, before)
    request.addfinalizer(lambda: signal.signal(number, was))
    with pytest.raises(SystemExit) as end:
        run_recipe("sft", lambda trainer: trainer.add_callback(Tell()), **options)
    assert end.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-3")
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Stopped by")]
    assert line.startswith(f"Stopped by {signal.Signals(number).name}; {folder / 'checkpoint-3'} is saved. To go on: ")
    assert line.endswith(" --resume_from_checkpoint true") and "sft.py" in line


@pytest.mark.parametrize(
    "mark",
    ["", "{", "[]", "null", "7", "{}", '{"files": []}', '{"files": {}}', '{"files": {"a": 3}}', '{"files": {"a": {}}}'],
)
def test_a_mark_of_any_other_shape_is_a_flaw(tmp_path, mark):
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "a").write_text("abc")
    (checkpoint / MARK).write_text(mark)
    assert MARK in flaw_of(checkpoint)
