"""The moving average of the policy's weights: its values, its folder, its resume."""

import copy

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def watched(trainer) -> list[dict[str, torch.Tensor]]:
    """Trainable weights of the policy before the first and after every optimiser step."""
    snapshots = []

    def policy_weights():
        policy = trainer.model.policy
        return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}

    step = trainer.training_step

    def training_step(*args, **kwargs):
        snapshots.append(policy_weights())
        return step(*args, **kwargs)

    trainer.training_step = training_step
    trainer.train()
    snapshots.append(policy_weights())
    return snapshots


def test_the_average_is_that_of_all_steps_and_of_trainable_weights_only(make_trainer, layout):
    trainer = make_trainer(layout, ema_decay=0.8, max_steps=6)
    first, *later = watched(trainer)
    expected = dict(first)
    for weights in later:
        expected = {name: 0.8 * expected[name] + 0.2 * weights[name] for name in expected}
    average = trainer.average.state_dict()
    assert average.keys() == first.keys()
    for name, tensor in average.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert any(not torch.equal(average[name], later[-1][name]) for name in average)


def test_steps_that_learn_nothing_leave_the_average_alone(make_trainer):
    # After the second mini-batch of the rollout nothing is learnt any more.
    trainer = make_trainer(ema_decay=0.8, max_steps=4, target_kl=1e-9)
    first, second, third, *_ = watched(trainer)
    for name, tensor in trainer.average.state_dict().items():
        torch.testing.assert_close(tensor, 0.8 * (0.8 * first[name] + 0.2 * second[name]) + 0.2 * third[name])


def test_the_averaged_policy_loads_from_its_folder(make_trainer, layout, policy, tmp_path):
    trainer = make_trainer(layout, ema_decay=0.8, max_steps=4)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    if layout in ("lora", "one backbone"):
        loaded = PeftModel.from_pretrained(copy.deepcopy(policy), str(tmp_path / "saved" / "ema"))
    else:
        loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved" / "ema"))
    AutoTokenizer.from_pretrained(str(tmp_path / "saved" / "ema"))
    # The policy itself, with the average in the place of its weights, is what must have been saved.
    averaged = copy.deepcopy(trainer.model.policy)
    with torch.no_grad():
        for name, parameter in averaged.named_parameters():
            if name in trainer.average.state_dict():
                parameter.copy_(trainer.average.state_dict()[name])
    ids = torch.randint(10, 200, (2, 9))
    with torch.no_grad():
        logits = averaged.eval()(ids).logits
        torch.testing.assert_close(loaded.eval()(ids).logits, logits)
        assert not torch.allclose(trainer.model.policy.eval()(ids).logits, logits, atol=1e-6)


def test_a_checkpoint_without_an_average_cannot_go_on_with_one(make_trainer, tmp_path):
    make_trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match="ema_decay: None in the checkpoint, 0.9 now"):
        make_trainer(max_steps=4, ema_decay=0.9).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
