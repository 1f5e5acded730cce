"""Who asks the reference, and what a run without a KL penalty does instead."""

import copy

import pytest
import torch

from pangu_trl.planning.launch import Launch
from pangu_trl.planning.memory import Plan
from pangu_trl.planning.models import load_config
from pangu_trl.planning.settings import read_settings
from pangu_trl.ppo import scoring


@pytest.fixture
def asked(monkeypatch):
    """Names the passes that are made in the scoring of rollouts."""
    passes = []
    completion_logprobs = scoring.completion_logprobs

    def watched(*args):
        passes.append("reference")
        return completion_logprobs(*args)

    monkeypatch.setattr(scoring, "completion_logprobs", watched)
    return passes


def watch_policy(trainer, passes):
    """Notes the parts that the trainer's models are asked for."""
    forward = trainer.model.forward

    def watched(*args, part="policy_and_value", **kwargs):
        passes.append(part)
        return forward(*args, part=part, **kwargs)

    trainer.model.forward = watched


def test_without_a_penalty_no_reference_is_asked_kept_or_logged(make_trainer, layout, asked):
    trainer = make_trainer(layout, models=dict(eval_dataset=None), kl_coef=0.0, max_steps=2)
    assert trainer.ref_model is None
    watch_policy(trainer, asked)
    trainer.train()
    assert "policy_and_value" in asked and "reference" not in asked
    assert trainer.passes.rollout.ref_logprobs is None
    logged = [entry for entry in trainer.state.log_history if "reward/mean" in entry]
    assert logged and not any("kl/mean" in entry for entry in logged)


def test_a_run_without_a_penalty_learns_the_bits_of_one_whose_reference_is_asked_in_vain(
    make_trainer, layout, monkeypatch
):
    """The same run once more, with the reference asked and its divergence weighed with 0."""
    states = []
    for is_asked in (False, True):
        with monkeypatch.context() as patched:
            if is_asked:
                patched.setattr("pangu_trl.ppo.config.PPOConfig.has_kl_penalty", True)
            trainer = make_trainer(layout, kl_coef=0.0, max_steps=2)
            trainer.train()
        assert (trainer.passes.rollout.ref_logprobs is not None) == is_asked
        states.append(trainer.model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_with_a_penalty_the_reference_is_asked_and_logged(make_trainer, asked):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert "reference" in asked
    assert any("kl/mean" in entry for entry in trainer.state.log_history)


def test_an_evaluation_measures_the_divergence_that_nothing_penalises(make_trainer):
    trainer = make_trainer(kl_coef=0.0, max_steps=2, learning_rate=1e-2)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_kl/mean"] != 0.0 and 0 <= metrics["eval_win_rate"] <= 1


def test_what_would_need_a_reference_that_is_not_there_is_refused(make_trainer, policy, prompts):
    with pytest.raises(ValueError, match="ref_model has no effect with kl_coef 0 and without eval_dataset"):
        make_trainer(models=dict(eval_dataset=None, ref_model=copy.deepcopy(policy)), kl_coef=0.0)
    with pytest.raises(ValueError, match="adaptive_kl_target multiplies kl_coef, which would stay 0"):
        make_trainer(kl_coef=0.0, adaptive_kl_target=1.0)
    trainer = make_trainer(models=dict(eval_dataset=None), kl_coef=0.0)
    with pytest.raises(ValueError, match="none was kept, since kl_coef is 0 and the constructor got no eval_dataset"):
        trainer.evaluate(trainer.train_dataset)


@pytest.mark.parametrize(
    ("kl_coef", "eval_strategy", "expected"), [(0.1, "no", True), (0, "no", False), (0, "steps", True)]
)
def test_the_plan_counts_a_reference_where_one_is_kept(tmp_path, kl_coef, eval_strategy, expected):
    (tmp_path / "ppo.yaml").write_text(
        f"model_name_or_path: tiny\nkl_coef: {kl_coef}\neval_strategy: '{eval_strategy}'\n", "utf-8"
    )
    settings = read_settings(tmp_path / "ppo.yaml")
    assert ("reference" in Plan(settings, Launch(1, "none"), load_config("tiny")).frozen) == expected


def test_one_pass_of_the_trunk_gives_policy_and_a_value_head_both(make_trainer, monkeypatch):
    """With a head on the policy's states; adapters of ONE backbone compute different states, and take two."""
    passes = {}
    for layout in ("value head", "one backbone"):
        trainer = make_trainer(layout, kl_coef=0.0, models=dict(eval_dataset=None), max_steps=1)
        trunk = trainer.model.policy.get_base_model() if layout == "one backbone" else trainer.model.policy
        calls = []
        trunk.transformer.register_forward_pre_hook(lambda module, args, calls=calls: calls.append(module))
        rollout = trainer.collector.answer(trainer.model, [dict(row) for row in trainer.train_dataset.select(range(2))])
        calls.clear()
        with torch.no_grad():
            outputs = trainer.model(rollout.input_ids, rollout.attention_mask, rollout.completion_mask)
        assert outputs["values"].shape == outputs["logprobs"].shape
        passes[layout] = len(calls)
    assert passes == {"value head": 1, "one backbone": 2}
