"""Estimators without a critic on two processes: the steps of one process, and groups drawn anew on one rank alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.launches]

SCRIPT = Path(__file__).parent / "two_ranks_estimators.py"


def test_two_processes_take_the_steps_of_one(models_dir, run_on_two_ranks):
    from two_ranks_estimators import RUNS, run

    run_on_two_ranks(SCRIPT, models_dir)
    for name in RUNS:
        expected = dict(run(models_dir, name).model.named_parameters())
        start = load_file(models_dir / "policy" / "model.safetensors")
        for key, found in load_file(models_dir / f"{name}.safetensors").items():
            # The head is the embedding, which stands once among the parameters.
            if key not in expected:
                continue
            torch.testing.assert_close(found, expected[key].detach(), atol=2e-6, rtol=1e-4, msg=f"{name} {key}")
        moved = [not torch.equal(expected[f"policy.{key}"], tensor) for key, tensor in start.items()]
        assert any(moved), name
