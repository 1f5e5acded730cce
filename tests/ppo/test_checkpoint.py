"""What a run writes, and how it goes on from it."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from pangu_trl.ppo.checkpoint import load_policy_and_value, save_policy_and_value
from pangu_trl.runs.checkpoints import mark_whole


def test_the_best_model_is_loaded_at_the_end(make_trainer, tmp_path, layout):
    trainer = make_trainer(
        layout,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="reward/mean",
        greater_is_better=True,
    )
    # The first is the best, so that the last weights are not the ones to be found.
    trainer.evaluate = lambda *_, **__: {"eval_reward/mean": -float(trainer.state.global_step)}
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    best, last = make_trainer(layout).model, make_trainer(layout).model
    load_policy_and_value(best, tmp_path / "run" / "checkpoint-2")
    load_policy_and_value(last, tmp_path / "run" / "checkpoint-6")
    changed = False
    for (name, tensor), expected, other in zip(
        trainer.model.state_dict().items(), best.state_dict().values(), last.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, expected), name
        changed |= not torch.equal(tensor, other)
    assert changed


def test_a_model_card_can_be_written_after_saving(make_trainer, tmp_path, layout):
    trainer = make_trainer(layout, max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="a-policy")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert "# a-policy" in card.text
    assert (card.data.get("library_name") == "peft") == (layout in ("lora", "one backbone"))


@pytest.mark.parametrize(
    "name, written, resumed",
    [
        ("per_device_train_batch_size", 2, 4),
        ("num_rollout_batches", 2, 4),
        ("num_ppo_epochs", 2, 1),
        ("gradient_accumulation_steps", 1, 2),
        ("seed", 42, 43),
        ("data_seed", None, 1),
    ],
)
def test_a_resume_under_other_options_is_refused(make_trainer, tmp_path, name, written, resumed):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    message = f"checkpoint-2 was written with other options: {name}: {written} in the checkpoint, {resumed} now"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=4, **{name: resumed}).train(resume_from_checkpoint=checkpoint)


def test_a_resume_with_other_prompts_or_texts_is_refused(make_trainer, prompts, tmp_path):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(ValueError, match="other options: train_data: '12 rows, .*' in the checkpoint, '11 rows"):
        make_trainer(data=prompts.select(range(11)), max_steps=4).train(resume_from_checkpoint=checkpoint)
    texts = prompts.rename_column("prompt", "text")
    with pytest.raises(ValueError, match="checkpoint-2: written with num_texts=0; this run has num_texts=12"):
        make_trainer(models=dict(ptx_dataset=texts), max_steps=4).train(resume_from_checkpoint=checkpoint)


def test_a_resume_on_another_number_of_ranks_is_refused(make_trainer, tmp_path):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    state_file = tmp_path / "run" / "checkpoint-2" / "ppo_state.json"
    state = json.loads(state_file.read_text())
    state["options"]["world_size"] = 2
    state_file.write_text(json.dumps(state))
    mark_whole(state_file.parent)
    with pytest.raises(ValueError, match="written with world_size=2; this run has world_size=1"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(state_file.parent))


def test_the_rollout_is_in_the_checkpoint_when_the_trainer_pushes_it(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=2)
    trainer.args.push_to_hub = True
    pushed = []
    trainer._push_from_checkpoint = lambda folder: pushed.append(sorted(p.name for p in tmp_path.glob("run/*-2/*")))
    trainer.train()
    assert {"rollout-0.safetensors", "ppo_state.json", "complete.json"} <= set(pushed[0])


def test_a_checkpoint_of_the_model_alone_has_no_rollout(make_trainer, tmp_path):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2, save_only_model=True).train()
    names = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert "model.safetensors" in names and "value_model" in names
    assert not {"rollout-0.safetensors", "ppo_state.json", "complete.json"} & names
    with pytest.raises(ValueError, match="has no complete.json, so .* or it holds the model alone"):
        make_trainer(max_steps=4).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_weights_that_were_not_gathered_are_not_written_and_a_warning_says_so(make_trainer, tmp_path, caplog):
    save_policy_and_value(make_trainer().model, tmp_path / "saved", {})
    assert not (tmp_path / "saved").exists()
    assert "stage3_gather_16bit_weights_on_model_save" in caplog.text


def test_a_second_train_starts_with_a_new_rollout(make_trainer):
    trainer = make_trainer(max_steps=3)
    trainer.train()
    assert trainer.passes.micro_step == 3
    old = trainer.passes.rollout
    trainer.train()
    assert trainer.passes.micro_step == 3 and trainer.passes.rollout is not old
