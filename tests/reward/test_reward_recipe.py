"""recipes/reward.py in this process: what it leaves beside the model."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from pangu_trl.data import write_jsonl
from pangu_trl.reward.card import read_reward_card

RECIPE = Path(__file__).parents[2] / "recipes" / "reward.py"


@pytest.mark.parametrize("when", [{"eval_on_start": "true"}, {"eval_strategy": "steps", "eval_steps": "2"}])
def test_the_card_states_the_scores_of_the_model_that_is_saved(
    policy, tokenizer, rankings, tmp_path, monkeypatch, when
):
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    write_jsonl(tmp_path / "rankings.jsonl", rankings)
    options = {
        "model_name_or_path": tmp_path / "base",
        "train_data": tmp_path / "rankings.jsonl",
        "eval_data": tmp_path / "rankings.jsonl",
        "output_dir": tmp_path / "run",
        "max_steps": "2",
        "learning_rate": "0.01",
        "report_to": "none",
        "save_strategy": "no",
    }
    words = [str(word) for name, value in (options | when).items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *words])
    runpy.run_path(str(RECIPE), run_name="recipe")["main"]()
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text("utf-8"))["log_history"]
    evaluations = [entry for entry in log if "eval_loss" in entry]
    # Once at each of the steps asked for and once at the end, not twice.
    assert [entry["step"] for entry in evaluations] == ([0, 2] if "eval_on_start" in when else [2])
    card = read_reward_card(tmp_path / "run")
    assert (card.score_mean, card.score_std) == pytest.approx(
        (evaluations[-1]["eval_reward_mean"], evaluations[-1]["eval_reward_std"])
    )
    assert card.score_mean != pytest.approx(evaluations[0]["eval_reward_mean"]) or len(evaluations) == 1
