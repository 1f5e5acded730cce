"""An interrupted and resumed run ends as the uninterrupted one, bit for bit; what cannot is refused."""

import pytest
import torch
from datasets import Dataset


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
    (tmp_path / "run" / "checkpoint-3" / "rollout-0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="rollout-0.safetensors: missing. Resume with the number of processes"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
