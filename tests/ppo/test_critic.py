"""How the critic is taught: lambdas of its own, pretraining on the start policy's rollouts, what its values explain."""

import pytest
import torch
from bandit import make_bandit

from pangu_trl import PPOConfig
from pangu_trl.ppo.advantages import gae, length_adaptive_lambda
from pangu_trl.ppo.estimators import estimate_advantages
from pangu_trl.ppo.metrics import explained_variance

# One answer of two tokens: rewards (0, 3), values (1, 2), gamma 1.
REWARDS, VALUES, MASK = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)


def estimated(tmp_path, critic_warms_up=False, **options):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, **{"lam": 0.5} | options)
    return estimate_advantages(REWARDS, VALUES, MASK, args, lambda tensor: tensor, critic_warms_up)


def test_lambda_grows_with_the_length_of_the_answer():
    # alpha 0.05: 1 - 20 / length, and never below 0.
    lengths = torch.tensor([1, 20, 40, 200])
    assert length_adaptive_lambda(lengths, 0.05).tolist() == pytest.approx([0.0, 0.0, 0.5, 0.9])


def test_gae_takes_a_lambda_for_each_answer():
    rewards, values = REWARDS.expand(2, 2), VALUES.expand(2, 2)
    mask = MASK.expand(2, 2)
    advantages, returns = gae(rewards, values, mask, 1.0, torch.tensor([0.0, 1.0]))
    for row, lam in enumerate((0.0, 1.0)):
        expected = gae(REWARDS, VALUES, MASK, 1.0, lam)
        assert (advantages[row].tolist(), returns[row].tolist()) == tuple(part[0].tolist() for part in expected)


def test_policy_and_critic_have_lambdas_of_their_own(tmp_path):
    # Deltas: 0 + 2 - 1 = 1 and 3 - 2 = 1. Lambda 1/2: (1.5, 1), returns (2.5, 3). Lambda 1: returns (3, 3).
    advantages, returns = estimated(tmp_path)
    assert (advantages.tolist(), returns.tolist()) == ([[1.5, 1.0]], [[2.5, 3.0]])
    advantages, returns = estimated(tmp_path, critic_lam=1.0)
    assert (advantages.tolist(), returns.tolist()) == ([[1.5, 1.0]], [[3.0, 3.0]])
    # alpha 2 and two tokens: lambda 3/4 for the policy; the critic keeps lam.
    advantages, returns = estimated(tmp_path, adaptive_lam_alpha=2.0)
    assert (advantages.tolist(), returns.tolist()) == ([[1.75, 1.0]], [[2.5, 3.0]])


def test_while_it_warms_up_the_critic_may_have_another_lambda(tmp_path):
    options = dict(critic_warmup_steps=3, critic_warmup_lam=1.0, critic_lam=0.0)
    advantages, returns = estimated(tmp_path, critic_warms_up=True, **options)
    assert (advantages.tolist(), returns.tolist()) == ([[1.5, 1.0]], [[3.0, 3.0]])
    # Lambda 0: the returns are 0 + 2 and 3.
    _, returns = estimated(tmp_path, critic_warms_up=False, **options)
    assert returns.tolist() == [[2.0, 3.0]]
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)
    assert [args.value_clip(step) for step in (0, 2, 3)] == [None, None, 0.2]
    assert PPOConfig(output_dir=str(tmp_path), use_cpu=True, critic_warmup_steps=3).value_clip(0) == 0.2


def test_explained_variance_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 6.0, 99.0]])

    def explained(values, returns=returns, mask=mask):
        return explained_variance(torch.tensor([values]), returns, mask, lambda tensor: tensor)

    # Mean 3, squares 4 + 1 + 9 = 14. A constant error explains all, no value nothing.
    assert explained([2.0, 3.0, 7.0, 0.0])["value/explained_variance"].item() == pytest.approx(1.0)
    assert explained([5.0, 5.0, 5.0, 0.0])["value/explained_variance"].item() == pytest.approx(0.0)
    # Errors 0, 0, 3: mean 1, squares 1 + 1 + 4 = 6.
    assert explained([1.0, 2.0, 3.0, 0.0])["value/explained_variance"].item() == pytest.approx(1 - 6 / 14)
    assert explained([1.0, 2.0, 3.0, 0.0], returns=torch.ones(1, 4)) == {}
    assert explained([1.0, 2.0, 3.0, 0.0], mask=torch.zeros(1, 4, dtype=torch.bool)) == {}


def test_explained_variance_is_that_of_all_ranks():
    # The other rank holds the return 6 with an error of 3: beside (1, 2) as above.
    others = iter([torch.tensor(1.0), torch.tensor([6.0, 3.0]), torch.tensor([9.0, 4.0])])
    mask, returns = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1.0, 2.0]])
    found = explained_variance(returns, returns, mask, lambda tensor: tensor + next(others))
    assert found["value/explained_variance"].item() == pytest.approx(1 - 6 / 14)


def test_pretraining_at_least_halves_the_value_loss_of_the_first_rollout_that_is_learnt_from(tmp_path):
    losses = {}
    for steps in (0, 24):
        pretraining = dict(critic_warmup_steps=steps, critic_warmup_lam=1.0) if steps else {}
        trainer = make_bandit(
            tmp_path,
            advantage_estimator="gae",
            reward=lambda prompts, completions, **_: [2.0 + len(set(text)) for text in completions],
            max_steps=steps + 1,
            critic_learning_rate=1e-2,
            logging_steps=1,
            **pretraining,
        )
        before = [parameter.detach().clone() for parameter in trainer.model.policy.parameters()]
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "value/loss" in entry]
        # The loss before the first step that moves the policy, on a rollout that the critic has not seen.
        assert len(logged) == steps + 1 and steps % 4 == 0
        losses[steps] = logged[-1]["value/loss"]
        assert "value/explained_variance" in logged[-1]
        assert any(
            not torch.equal(parameter, old)
            for parameter, old in zip(trainer.model.policy.parameters(), before, strict=True)
        )
    assert losses[24] < losses[0] / 2


def test_the_kl_coefficient_stays_while_the_policy_stands_still(make_trainer):
    # A divergence of 0 would lower it otherwise, rollout after rollout.
    trainer = make_trainer(critic_warmup_steps=8, max_steps=8, adaptive_kl_target=1.0, kl_horizon=10)
    trainer.train()
    assert trainer.collector.kl_controller.coefficient == 0.05


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(critic_warmup_lam=1.0), "critic_warmup_lam has no effect without critic_warmup_steps"),
        (dict(critic_lam=1.5), "critic_lam must be between 0 and 1; got 1.5"),
        (dict(adaptive_lam_alpha=0.0), "adaptive_lam_alpha must be greater than 0"),
    ],
)
def test_options_of_the_critic_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)
