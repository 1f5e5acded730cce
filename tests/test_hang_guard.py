"""The guard against hangs: what counts as progress, and what it calls the place where a run stands still."""

import inspect
import logging
import time
from types import SimpleNamespace

import pytest
import torch

from pangu_trl.hang_guard import HangGuard, phase_of


@pytest.mark.parametrize("function", ["training_step", "_save_checkpoint", "save_model", "evaluate"])
def test_the_phase_is_the_innermost_known_function_on_the_stack(function):
    expected = {"training_step": "learning", "evaluate": "evaluation"}.get(function, "saving")
    scope = {"inspect": inspect, "phase_of": phase_of}
    exec(f"def {function}():\n    return phase_of(inspect.currentframe())", scope)
    phase, place = scope[function]()
    assert phase == expected and place.startswith(f"{function} (")
    assert phase_of(inspect.currentframe())[0] == "between steps"
    assert phase_of(None) == ("between steps", "no Python code")


def test_a_rank_without_progress_reports_and_one_that_computes_does_not(policy, caplog):
    caplog.set_level(logging.WARNING)
    guard = HangGuard(policy, seconds=0.4, rank=1, num_ranks=4)
    guard.on_train_begin()
    guard.on_step_begin(None, SimpleNamespace(global_step=6), None)
    ids = torch.arange(10, 14).unsqueeze(0)
    deadline = time.monotonic() + 1.2
    while time.monotonic() < deadline:
        policy(ids)
    # A stall of the machine may look like one of the run, but not for a whole second.
    calm = len(caplog.records)
    deadline = time.monotonic() + 20
    while len(caplog.records) == calm and time.monotonic() < deadline:
        time.sleep(0.05)
    guard.close()
    assert "rank 1 of 4: no progress for" in caplog.text
    assert "of step 7; it is in " in caplog.text
