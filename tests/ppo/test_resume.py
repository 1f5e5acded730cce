"""An interrupted and resumed run ends as the uninterrupted one, bit for bit; what cannot is refused."""

import json

import pytest
import torch
from datasets import Dataset

from pangu_trl.runs.arguments import RunArguments
from pangu_trl.runs.checkpoints import mark_whole
from pangu_trl.runs.resuming import resume_exactly


@pytest.mark.parametrize(
    "save_steps, max_steps",
    [
        pytest.param(4, 12, id="between rollouts", marks=pytest.mark.slow),
        pytest.param(3, 12, id="in the middle of a rollout", marks=pytest.mark.slow),
        pytest.param(12, 20, id="between epochs", marks=pytest.mark.slow),
        pytest.param(14, 26, id="in the second epoch, into the third"),
    ],
)
def test_a_resumed_run_ends_bit_identical(make_trainer, tmp_path, layout, save_steps, max_steps):
    # 12 prompts, 4 a rollout, 4 steps a rollout: 12 steps an epoch.
    options = dict(max_steps=max_steps, adaptive_kl_target=0.1, kl_horizon=100)
    whole = make_trainer(layout, save_strategy="steps", save_steps=save_steps, **options)
    whole.train()
    resumed = make_trainer(layout, output_dir=str(tmp_path / "resumed"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{save_steps}"))
    assert resumed.collector.kl_controller.coefficient == whole.collector.kl_controller.coefficient != 0.05
    for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_a_resumed_run_ends_bit_identical_with_everything_that_has_a_state(make_trainer, prompts, tmp_path, layout):
    texts = Dataset.from_list([{"text": row["prompt"]} for row in prompts])
    options = dict(
        max_steps=14,
        num_rollout_batches=4,
        gradient_accumulation_steps=2,
        num_generations=2,
        adaptive_kl_target=0.1,
        kl_horizon=100,
        reward_scaling="running",
        ema_decay=0.9,
        critic_warmup_steps=4,
        target_kl=1e-9,
    )
    whole = make_trainer(layout, models=dict(ptx_dataset=texts), save_strategy="steps", save_steps=7, **options)
    whole.train()
    skipped = [entry["policy/skipped_steps"] for entry in whole.state.log_history if "policy/skipped_steps" in entry]
    assert 0 in skipped[7:] and 1 in skipped, "the rest would not test a stop of the passes"
    resumed = make_trainer(layout, models=dict(ptx_dataset=texts), output_dir=str(tmp_path / "resumed"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-7"))
    assert resumed.collector.kl_controller == whole.collector.kl_controller
    assert resumed.collector.score_statistics == whole.collector.score_statistics
    for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, resumed.average.state_dict()[name]), name


def test_a_checkpoint_of_another_number_of_ranks_is_refused(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=3, save_strategy="steps", save_steps=3)
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    record = json.loads((checkpoint / "run.json").read_text("utf-8"))
    record["options"]["world_size"] = 2
    (checkpoint / "run.json").write_text(json.dumps(record), "utf-8")
    mark_whole(checkpoint)
    with pytest.raises(ValueError, match=r"world_size: 2 in the checkpoint, 1 now.* must stay: .*number of processes"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(checkpoint))


def test_another_value_is_refused_by_name(make_trainer, one_checkpoint, prompts):
    for options, refusal in (
        ({"learning_rate": 0.5}, r"learning_rate: 0.001 in the checkpoint, 0.5 now"),
        ({"temperature": 0.7}, r"temperature: 1.0 in the checkpoint, 0.7 now.*--change_on_resume temperature"),
        ({"kl_coef": 0.5, "gamma": 0.9}, r"(?=.*gamma: 1.0 in)(?=.*kl_coef: 0.05 in)"),
        ({"num_rollout_batches": 4}, r"num_rollout_batches must stay"),
        (
            {"data": prompts.select(range(11, -1, -1))},
            r"train_data: '12 rows, \w+' in the checkpoint, '12 rows, ",
        ),
    ):
        with pytest.raises(ValueError, match=refusal):
            make_trainer(**MIDDLE | options).train(resume_from_checkpoint=one_checkpoint)
    trainer = make_trainer(**MIDDLE | dict(temperature=0.5))
    resume_exactly(trainer, RunArguments(change_on_resume=["temperature"]))
    with pytest.raises(ValueError, match="middle of a rollout.*multiple of 4"):
        trainer.train(resume_from_checkpoint=one_checkpoint)


def test_what_is_changed_on_purpose_holds_from_the_next_step_on(make_trainer, one_checkpoint):
    trainer = make_trainer(
        **MIDDLE | dict(learning_rate=0.5, critic_learning_rate=0.25, weight_decay=0.125, kl_coef=2.0)
    )
    wishes = ["learning_rate", "critic_learning_rate", "weight_decay", "kl_coef"]
    resume_exactly(trainer, RunArguments(change_on_resume=wishes))
    trainer.train(resume_from_checkpoint=one_checkpoint)
    # The schedule falls from 1 to 0 over 8 steps; six are done, so the seventh has a quarter of the rate.
    assert [entry["learning_rate"] for entry in trainer.state.log_history if entry["step"] == 7] == [0.125]
    groups = trainer.optimizer.param_groups
    assert {(group["is_critic"], group["initial_lr"]) for group in groups} == {(False, 0.5), (True, 0.25)}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.125}
    assert trainer.collector.kl_controller.coefficient == 2.0


# Four steps learn from a rollout.
MIDDLE = dict(max_steps=8, lr_scheduler_type="linear")


@pytest.fixture
def one_checkpoint(make_trainer, tmp_path) -> str:
    make_trainer(**MIDDLE | dict(save_strategy="steps", save_steps=6)).train()
    return str(tmp_path / "run" / "checkpoint-6")
