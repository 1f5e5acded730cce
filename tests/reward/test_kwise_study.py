"""The study of losses over K ranked answers: its own losses by hand, its annotator, its grid, what a stop leaves."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pangu_trl.reward.losses import pairwise_loss, plackett_luce_loss

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def study():
    """Imports a module of benchmarks by name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


# Labels order the answers c > a > b; the fourth is padding.
SCORES = torch.tensor([[1.0, 0.5, 3.0, 9.0]])
LABELS = torch.tensor([[2.0, 1.0, 3.0, 9.0]])
MASK = torch.tensor([[True, True, True, False]])


def test_the_losses_of_the_study_by_hand(study):
    losses = study("kwise_cells").LOSSES
    # c before a by 2, a before b by 0.5; c before b by 2.5.
    expected = {
        "adjacent": (softplus(-2.0) + softplus(-0.5)) / 2,
        "best_worst": softplus(-2.5),
        "top1": math.log(math.exp(1.0) + math.exp(0.5) + math.exp(3.0)) - 3.0,
    }
    for name, value in expected.items():
        assert losses[name](SCORES, LABELS, MASK).item() == pytest.approx(value, rel=1e-5), name


def test_ties_give_no_pair_and_a_prompt_of_ties_no_loss(study):
    losses = study("kwise_cells").LOSSES
    tied = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0]])
    scores, mask = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.ones(2, 3).bool()
    # Both best answers lie next to the worst one, and are best: by 2 and by 1.
    both = (softplus(-2.0) + softplus(-1.0)) / 2
    for name in ("adjacent", "best_worst"):
        assert losses[name](scores, tied, mask).tolist() == pytest.approx([both, 0.0], rel=1e-5), name
    total = math.log(math.exp(2.0) + math.exp(1.0) + 1.0)
    assert losses["top1"](scores, tied, mask).tolist() == pytest.approx([total - 1.5, 0.0], rel=1e-5)


def test_with_two_answers_all_losses_are_one(study):
    scores, labels = torch.tensor([[0.3, 1.1], [2.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    mask = torch.ones(2, 2).bool()
    expected = pairwise_loss(scores, labels, mask)
    for loss in (plackett_luce_loss, *study("kwise_cells").LOSSES.values()):
        torch.testing.assert_close(loss(scores, labels, mask), expected)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4])
def test_the_annotator_turns_as_many_pairs_round_as_was_asked_for(study, noise):
    cells = study("kwise_cells")
    utilities = np.random.default_rng(0).normal(size=(4000, 4))
    scores = cells.Annotator(utilities, noise).rank(utilities, np.random.default_rng(1))
    # 24 000 pairs, of which six share a prompt: a standard error below 0.5 %.
    assert cells.turned_round(scores, utilities) == pytest.approx(noise, abs=0.015)


def test_the_grid_has_every_combination_once_and_whole_seeds_first(study):
    kwise_study = study("kwise_study")
    cells = list(kwise_study.grid(kwise_study.Plan(), [1, 2], [1]))
    assert len(set(cells)) == len(cells)
    # Each seed on two texts: with K = 2 one loss and two numbers of prompts, with 4 five losses, with 8 five and two.
    assert len(cells) == 2 * 2 * 3 * (2 + 5 + 10) + 2 * 5
    assert [cell.seed for cell in cells] == [1] * 102 + [2] * 102 + [1] * 10
    labels = {c.num_answers * c.num_prompts for c in cells if c.num_prompts != 384 or c.num_answers == 4}
    assert labels == {4 * 384}


def test_a_line_that_was_cut_off_is_taken_out_and_its_cell_is_missing_again(study, tmp_path):
    kwise_study = study("kwise_study")
    path = tmp_path / "cells.jsonl"
    kwise_study.append(path, {"seed": 1})
    with path.open("a") as file:
        file.write('{"seed": 2')
    assert kwise_study.read_cells(tmp_path) == [{"seed": 1}]
    kwise_study.append(path, {"seed": 3})
    assert kwise_study.read_cells(tmp_path) == [{"seed": 1}, {"seed": 3}]


def test_other_settings_are_refused(study, tmp_path):
    kwise_study = study("kwise_study")
    kwise_study.check_settings(kwise_study.QUICK, tmp_path)
    kwise_study.check_settings(kwise_study.QUICK, tmp_path)
    with pytest.raises(SystemExit, match="made with another size and another prompts and another ppo_steps"):
        kwise_study.check_settings(kwise_study.Plan(), tmp_path)


def test_differences_are_paired_within_a_condition(study):
    tables = study("kwise_tables")
    cells = [
        dict(loss=loss, num_answers=4, noise=noise, num_prompts=8, seed=seed, figure=value + 0.1 * seed + noise)
        for loss, value in (("pairwise", 0.5), ("top1", 0.3))
        for noise in (0.0, 0.2)
        for seed in (1, 2)
    ]
    assert tables.paired(cells, "top1", "figure") == {1: pytest.approx(-0.2), 2: pytest.approx(-0.2)}
    assert tables.interval([0.25, 0.25]) == (0.25, 0.25)
    assert tables.with_interval([1.0, 2.0]) == "1.500", "two seeds have no interval"


@pytest.mark.slow
def test_the_quick_study_runs_stops_and_goes_on(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/kwise_study.py"), "--quick", "--run-dir", str(tmp_path / "run")]
    words = ["--seeds", "1", "--ppo-seeds", "1"]
    stopped = subprocess.run([*command, *words, "--budget", "0"], capture_output=True, text=True, check=True)
    assert "The budget is spent; 24 cells are missing" in stopped.stdout
    subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    cells = [json.loads(line) for line in (tmp_path / "run" / "cells.jsonl").read_text("utf-8").splitlines()]
    assert len(cells) == 24 and all(0 <= cell["pair_accuracy"] <= 1 for cell in cells)
    assert sum("judge_after" in cell for cell in cells) == 10
    again = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    assert "24 cells, 24 of them are there" in again.stdout
    report = subprocess.run([*command, "--report", str(tmp_path)], capture_output=True, text=True, check=True)
    assert "| best of all |" in report.stdout and (tmp_path / "kwise-study-reviews.png").exists()
