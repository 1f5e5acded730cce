"""Runs that are stopped: SIGTERM saves first, and what a kill left half-written is not resumed from."""

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from pangu_trl.runs import checkpoints
from pangu_trl.runs.checkpoints import last_whole_checkpoint

SAVING = dict(save_strategy="steps", save_steps=2)


class Signals(TrainerCallback):
    """Sends this process SIGTERM in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_stops_and_the_run_goes_on_bit_identical(make_trainer, tmp_path):
    whole = make_trainer(max_steps=8)
    whole.train()
    before = signal.getsignal(signal.SIGTERM)
    stopped = make_trainer(models=dict(callbacks=[Signals(3)]), max_steps=8, save_strategy="steps", save_steps=100)
    stopped.train()
    assert stopped.state.global_step == 3
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = make_trainer(max_steps=8)
    resumed.train(resume_from_checkpoint=True)
    for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_a_run_that_saves_nothing_leaves_the_signal_alone(make_trainer):
    handlers = []

    class Look(TrainerCallback):
        def on_step_end(self, *_, **__):
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    make_trainer(models=dict(callbacks=[Look()]), max_steps=1).train()
    assert handlers == [before]


def test_training_that_fails_gives_the_signal_back(make_trainer):
    class Fails(TrainerCallback):
        def on_step_end(self, *_, **__):
            assert signal.getsignal(signal.SIGTERM) is not before
            raise RuntimeError("on purpose")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer(models=dict(callbacks=[Fails()]), max_steps=2, **SAVING).train()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "missing, flaw",
    [
        ("complete.json", "it has no complete.json, so its saving was interrupted"),
        ("ppo_state.json", r"ppo_state.json must have \d+ bytes; it is missing"),
        ("trainer_state.json", r"trainer_state.json must have \d+ bytes; it is missing"),
    ],
)
def test_a_half_written_checkpoint_is_passed_over(make_trainer, tmp_path, caplog, missing, flaw):
    make_trainer(max_steps=4, **SAVING).train()
    (tmp_path / "run" / "checkpoint-4" / missing).unlink()
    assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-2")
    assert re.search(f"checkpoint-4 is left out: {flaw}", caplog.text)
    resumed = make_trainer(max_steps=4, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-4")


def test_a_half_written_checkpoint_is_not_resumed_from_by_its_name_either(make_trainer, tmp_path):
    make_trainer(max_steps=2, **SAVING).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    (checkpoint / "complete.json").unlink()
    # Without this file, say, the Trainer would go on with a new optimiser and not a word.
    (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="cannot be resumed from: it has no complete.json, so its saving was interr"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(checkpoint))


def test_without_a_whole_checkpoint_there_is_nothing_to_resume_from(make_trainer, tmp_path):
    with pytest.raises(FileNotFoundError, match="no whole checkpoint to resume from"):
        make_trainer().train(resume_from_checkpoint=True)


def test_the_old_checkpoint_goes_only_when_the_new_one_is_whole(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(max_steps=4, save_total_limit=1, **SAVING)
    folders = []
    mark_whole = checkpoints.mark_whole

    def watched(folder):
        folders.append(sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")))
        mark_whole(folder)

    monkeypatch.setattr(checkpoints, "mark_whole", watched)
    trainer.train()
    assert folders == [["checkpoint-2"], ["checkpoint-2", "checkpoint-4"]]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pangu_trl.ppo.trainer import PPOTrainer
sys.path.insert(0, {tests!r})
from two_ranks import make_trainer

def die(self, output_dir):
    # Models and rollout are on disk, the optimiser is not.
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, output_dir)

original = PPOTrainer._save_optimizer_and_scheduler
PPOTrainer._save_optimizer_and_scheduler = die
make_trainer(Path({folder!r}), "killed", max_steps=6, save_strategy="steps", save_steps=2, save_total_limit=1).train()
"""


def test_killed_in_the_middle_of_a_save_a_run_goes_on_from_the_last_whole_checkpoint(models_dir, tmp_path):
    make_trainer = runpy.run_path(str(Path(__file__).parent / "two_ranks.py"))["make_trainer"]
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(models_dir))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    assert (models_dir / "killed" / "checkpoint-4" / "model.safetensors").exists()
    assert last_whole_checkpoint(models_dir / "killed").endswith("checkpoint-2")
    resumed = make_trainer(models_dir, "killed", max_steps=6)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(models_dir, "whole_alone", max_steps=6)
    whole.train()
    for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name
