"""Runs that are shorter than their warm-up: nothing learnt is refused, and less than was asked is said."""

import pytest

LOGGER = "pangu_trl.runs.learning_rates"


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_run_whose_every_step_has_a_rate_of_0_is_refused(run_recipe, base, tmp_path, stage):
    with pytest.raises(ValueError, match=r"1 optimiser step, and warmup_steps is 10: .* would learn nothing; set"):
        run_recipe(stage, model_name_or_path=base, output_dir=tmp_path / "out", max_steps=1, warmup_steps=10)
    # Nothing stands in the folder that would keep the next try from it.
    run_recipe(stage, model_name_or_path=base, output_dir=tmp_path / "out", max_steps=1, warmup_steps=0)


def test_a_share_as_warm_up_is_refused_too_where_it_is_the_whole_run(run_recipe, base, tmp_path):
    with pytest.raises(ValueError, match="1 optimiser step, and warmup_steps is 1"):
        run_recipe("sft", model_name_or_path=base, output_dir=tmp_path / "out", max_steps=1, warmup_steps=0.1)


@pytest.mark.parametrize(
    "warmup_steps, said",
    # The rate rises from 0 by a fourth in each step, or by the whole in the first.
    [(4, "2 optimiser steps, and warmup_steps is 4: its learning rate gets to 25 % of what was asked"), (1, None)],
)
def test_a_warm_up_that_does_not_end_is_said(run_recipe, base, tmp_path, caplog, warmup_steps, said):
    options = dict(output_dir=tmp_path / "out", max_steps=2, warmup_steps=warmup_steps)
    trainer = run_recipe("sft", model_name_or_path=base, **options)
    rates = [logged["learning_rate"] for logged in trainer.state.log_history if "learning_rate" in logged]
    assert max(rates) == pytest.approx(1e-2 / warmup_steps)
    warnings = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(warnings) == (said is not None)
    assert all(said in warning for warning in warnings)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "reduce_lr_on_plateau"])
def test_one_step_without_a_warm_up_learns(run_recipe, base, tmp_path, schedule):
    options = dict(output_dir=tmp_path / "out", max_steps=1, lr_scheduler_type=schedule)
    if schedule == "reduce_lr_on_plateau":
        options |= dict(eval_strategy="steps", eval_steps=1, eval_data=tmp_path / "data" / "sft.jsonl")
    trainer = run_recipe("sft", model_name_or_path=base, **options)
    assert trainer.state.global_step == 1


def test_a_schedule_without_a_warm_up_is_left_alone(run_recipe, base, tmp_path, caplog):
    options = dict(output_dir=tmp_path / "out", max_steps=2, warmup_steps=4, lr_scheduler_type="constant")
    trainer = run_recipe("sft", model_name_or_path=base, **options)
    rates = [logged["learning_rate"] for logged in trainer.state.log_history if "learning_rate" in logged]
    assert rates == [1e-2, 1e-2]
    assert not [record for record in caplog.records if record.name == LOGGER]


def test_a_resumed_run_at_its_end_is_let_through(run_recipe, base, tmp_path):
    options = dict(model_name_or_path=base, output_dir=tmp_path / "out", max_steps=2)
    options |= dict(save_strategy="steps", save_steps=2)
    run_recipe("sft", **options)
    assert run_recipe("sft", resume_from_checkpoint="true", **options).state.global_step == 2
