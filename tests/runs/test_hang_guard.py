"""The guard against hangs: what counts as progress, and what it calls the place where a run stands still."""

import inspect
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from pangu_trl.runs import hang_guard
from pangu_trl.runs.hang_guard import HangGuard, current_phase, phase, place_of


def test_the_phase_is_the_innermost_that_was_entered(monkeypatch):
    monkeypatch.setattr(hang_guard, "_step", 3)
    assert current_phase() == "between steps"

    @phase("learning")
    def learn():
        with phase("rollout"):
            inside = current_phase()
        return inside, current_phase()

    assert learn() == ("rollout", "learning")
    with pytest.raises(KeyError) as failure, phase("saving"):
        with phase("scoring"):
            raise KeyError
    assert failure.value.__notes__ == ["rank 0 of 1 was in phase scoring of step 3"]
    assert current_phase() == "between steps"


def test_the_place_is_function_file_and_line():
    frame = inspect.currentframe()
    assert place_of(frame) == f"test_the_place_is_function_file_and_line ({__file__}:{frame.f_lineno})"
    assert place_of(None) == "no Python code"


def test_what_computes_or_ends_a_step_is_progress(policy, monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr(hang_guard, "time", SimpleNamespace(monotonic=lambda: now))
    guard = HangGuard(policy, seconds=10, rank=1, num_ranks=4)
    ids = torch.arange(10, 14).unsqueeze(0)
    guard.on_step_begin(None, SimpleNamespace(global_step=6), None)
    for progress in (lambda: policy(ids), guard.on_step_end, guard.on_save):
        now += 9
        guard.check()
        progress()
    now += 9
    guard.check()
    assert not caplog.records
    now += 2
    guard.check()
    assert "rank 1 of 4: no progress for 11 s in phase between steps of step 7; it is in " in caplog.text
    now += 9
    guard.check()
    assert len(caplog.records) == 1
    now += 2
    guard.check()
    assert len(caplog.records) == 2
    guard.close()


def test_the_watch_reports_by_itself_until_it_is_closed(policy, caplog):
    guard = HangGuard(policy, seconds=0.1, rank=1, num_ranks=4)
    others = threading.enumerate()
    guard.on_train_begin()
    [watch] = [thread for thread in threading.enumerate() if thread not in others]
    deadline = time.monotonic() + 20
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.02)
    guard.close()
    assert "rank 1 of 4: no progress for" in caplog.text
    watch.join(timeout=20)
    assert not watch.is_alive()
