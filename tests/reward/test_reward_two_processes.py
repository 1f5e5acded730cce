"""DDP on two ranks: the steps and the figures of one process."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.launches

SCRIPT = Path(__file__).parent / "two_ranks.py"
EXACT_FIGURES = ["loss", "pair_accuracy", "macro_pair_accuracy", "num_pairs", "best_of_k_accuracy", "kendall_tau"]
EXACT_FIGURES += ["spearman", "calibration_error", "temperature", "length_correlation", "reward_mean", "reward_std"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two_ranks")


@pytest.fixture
def two_ranks(folder, reward_model, tokenizer, rankings) -> Path:
    """The folder in which two processes left weights and figures; they run once for all tests."""
    if not (folder / "reward_model").exists():
        reward_model.save_pretrained(folder / "reward_model")
        tokenizer.save_pretrained(folder / "tokenizer")
        # Three more, so that the ranks get different numbers of prompts and of answers.
        records = [*rankings, *rankings.select([2, 5, 6])]
        (folder / "rankings.json").write_text(json.dumps(records), "utf-8")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        result = subprocess.run(
            [*launch, str(SCRIPT), str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", ["plain", "shared", "streamed"])
def test_two_ranks_take_the_steps_of_one_process_and_evaluate_the_same(two_ranks, reward_model, name):
    weights, figures = runpy.run_path(str(SCRIPT))["run"](two_ranks, name)
    double = load_file(two_ranks / f"{name}.safetensors")
    double_figures = json.loads((two_ranks / f"{name}.json").read_text())
    for parameter, tensor in weights.items():
        torch.testing.assert_close(double[parameter], tensor, atol=1e-6, rtol=1e-5, msg=parameter)
    start = dict(reward_model.named_parameters())
    assert max((double[parameter] - start[parameter]).abs().max() for parameter in double) > 1e-3
    assert double_figures["losses"] == pytest.approx(figures["losses"], abs=1e-4)
    for figure in EXACT_FIGURES:
        assert double_figures[f"eval_{figure}"] == pytest.approx(figures[f"eval_{figure}"], abs=1e-5), figure
