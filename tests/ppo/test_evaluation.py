"""What an evaluation on held-out prompts says, and what is logged."""

import copy
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch


def test_before_it_learns_a_policy_wins_half(make_trainer, layout):
    trainer = make_trainer(layout)
    first = trainer.evaluate()
    # The same seed gives policy and reference the same answers, so all are ties.
    assert first["eval_win_rate"] == 0.5
    assert 0 < first["eval_completion/distinct_1"] <= first["eval_completion/distinct_2"] <= 1


def test_a_function_judges_in_the_place_of_the_reward(make_trainer, prompts):
    judged = []

    def judge(prompts, completions, **columns):
        # The answers of the reference come first, those of the policy afterwards.
        judged.append(len(prompts))
        return [float(sum(judged) > 12)] * len(prompts)

    metrics = make_trainer(models=dict(judge=judge)).evaluate()
    assert metrics["eval_win_rate"] == 1.0
    assert sum(judged) == 2 * len(prompts)


def test_the_reference_answers_once(make_trainer):
    trainer = make_trainer()
    answered = []
    answer = trainer.collector.answer

    def watched(*args, by_reference=False, **kwargs):
        answered.append(by_reference)
        return answer(*args, by_reference=by_reference, **kwargs)

    trainer.collector.answer = watched
    trainer.evaluate()
    trainer.evaluate()
    assert answered == [True] * 3 + [False] * 6


def test_the_answers_of_both_sides_are_written_as_a_table(make_trainer, tmp_path, prompts):
    trainer = make_trainer(log_completions=True, max_steps=2, eval_strategy="steps", eval_steps=2)
    trainer.train()
    lines = (tmp_path / "run" / "completions" / "eval-2.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["prompt"] for row in rows] == prompts["prompt"]
    assert set(rows[0]) == {"prompt", "completion", "score", "reference_completion", "reference_score"}


def test_every_evaluation_set_has_its_own_rivals(make_trainer, prompts):
    trainer = make_trainer(models=dict(eval_dataset={"a": prompts, "b": prompts.select(range(4))}))
    metrics = trainer.evaluate()
    assert metrics["eval_a_win_rate"] == metrics["eval_b_win_rate"] == 0.5
    assert metrics["eval_a_reward/mean"] != pytest.approx(metrics["eval_b_reward/mean"])


def test_prompts_are_fewer_than_a_batch_that_training_would_drop(make_trainer):
    trainer = make_trainer(dataloader_drop_last=True, per_device_eval_batch_size=64)
    assert trainer.evaluate()["eval_win_rate"] == 0.5


def test_evaluation_repeats_itself_and_leaves_training_alone(make_trainer):
    trainer = make_trainer()
    state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    first, second = trainer.evaluate(), trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state[1])
    assert np.random.get_state()[2:] == numpy_state[2:]
    for name in ("eval_reward/mean", "eval_kl/mean", "eval_completion/length", "eval_completion/eos_rate"):
        assert first[name] == second[name]
    assert first["eval_kl/mean"] == 0


def test_the_docs_define_every_figure_that_is_logged_and_no_other(make_trainer, reward_model, prompts):
    def short(prompts, completions, **columns):
        return [-float(len(completion)) for completion in completions]

    models = dict(
        reward_model=[copy.deepcopy(reward_model), short],
        value_model=copy.deepcopy(reward_model),
        ptx_dataset=prompts.rename_column("prompt", "text"),
    )
    runs = [
        dict(reward_scaling="running", eval_on_start=True),
        dict(
            advantage_estimator="grpo",
            num_generations=2,
            dynamic_sampling_rounds=1,
            delta=2.0,
            mask_truncated_completions=True,
            reward_combination="minimum",
            vllm_importance_sampling_correction=True,
        ),
    ]
    logged = set()
    for options in runs:
        its_models = copy.deepcopy(models)
        if "advantage_estimator" in options:
            # Has no critic.
            del its_models["value_model"]
        trainer = make_trainer(models=its_models, max_steps=4, **options)
        trainer.train()
        logged = logged.union(*(entry.keys() for entry in trainer.state.log_history))
    logged = {name.removeprefix("eval_") for name in logged if "/" in name or name.endswith("win_rate")}
    text = (Path(__file__).parents[2] / "docs" / "ppo.md").read_text("utf-8")
    table = text.split("## What is logged")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    defined = {name for row in rows for name in re.findall("`(.+?)`", row)}
    assert logged == defined - {"reward/NAME"} | {"reward/model", "reward/short"}
