"""What steers a run: penalties, scaling of rewards, early stops of the passes, a critic that learns first."""

import copy
import logging

import pytest
import torch

from pangu_trl import PPOConfig
from pangu_trl.ppo.control import KLController, RunningStd


def returns_of(trainer) -> list[float]:
    """Return of the first token of each answer in the rollout in use."""
    return trainer.passes.rollout.returns[:, 0].tolist()


@pytest.fixture
def constant_reward(reward_model):
    """Models of a run whose every answer scores the same."""

    def models(score: float) -> dict:
        return dict(
            reward_model=lambda prompts, completions, **columns: [score] * len(prompts),
            value_model=copy.deepcopy(reward_model),
        )

    return models


# gamma = lam = 1 and no KL: every return is the sum of the rewards.
PLAIN = dict(max_steps=1, kl_coef=0.0, lam=1.0)


def test_the_kl_coefficient_follows_the_relative_error_up_to_a_fifth():
    # Error 6 / 4 - 1 = 0.5, clipped to 0.2; 50 of 100 answers: 0.1 * (1 + 0.2 * 0.5) = 0.11.
    controller = KLController(0.1, target=4.0, horizon=100)
    controller.update(6.0, 50)
    assert controller.coefficient == pytest.approx(0.11)
    # Error 3.6 / 4 - 1 = -0.1: 0.11 * (1 - 0.1 * 0.5) = 0.1045.
    controller.update(3.6, 50)
    assert controller.coefficient == pytest.approx(0.1045)
    fixed = KLController(0.1, target=None, horizon=100)
    fixed.update(6.0, 50)
    assert fixed.coefficient == 0.1


def test_the_running_deviation_is_that_of_all_scores_so_far():
    # (1, 3): mean 2, squares 2. (8): all three: mean 4, squares 9 + 1 + 16 = 26, variance 26 / 3.
    statistics = RunningStd()
    assert statistics.std == 1.0
    statistics.update(2, 2.0, 2.0)
    assert statistics.std == pytest.approx(1.0)
    statistics.update(1, 8.0, 0.0)
    assert (statistics.count, statistics.mean) == (3, 4.0)
    assert statistics.std == pytest.approx((26 / 3) ** 0.5)
    equal_scores = RunningStd()
    equal_scores.update(4, 7.0, 0.0)
    assert equal_scores.std == 1.0


def test_running_scaling_divides_by_the_deviation_before_the_clip(make_trainer, reward_model):
    # Scores 10, 20, 30, 40: mean 25, variance (225 + 25 + 25 + 225) / 4 = 125; divided by 11.1803, then clipped to 3.
    scores = [10.0, 20.0, 30.0, 40.0]
    models = dict(reward_model=lambda prompts, completions, **_: scores, value_model=copy.deepcopy(reward_model))
    trainer = make_trainer(models=models, reward_scaling="running", reward_clip=3.0, **PLAIN)
    trainer.train()
    assert returns_of(trainer) == pytest.approx([10 / 125**0.5, 20 / 125**0.5, 30 / 125**0.5, 3.0], rel=1e-4)
    assert trainer.passes.rollout.scores.tolist() == scores


def test_stored_scaling_takes_the_statistics_of_the_reward_model(make_trainer, reward_model):
    with pytest.raises(ValueError, match="needs one reward model whose config.json has reward_mean and reward_std"):
        make_trainer(reward_scaling="stored")
    reward_model.config.reward_mean, reward_model.config.reward_std = 2.0, 4.0
    trainer = make_trainer(models=dict(reward_model=reward_model), reward_scaling="stored", reward_clip=None, **PLAIN)
    trainer.train()
    assert returns_of(trainer) == pytest.approx(((trainer.passes.rollout.scores - 2) / 4).tolist(), abs=1e-5)


def test_whitened_rewards_have_deviation_one_and_keep_their_sign(make_trainer, reward_model):
    # With gamma = lam = 1, no KL and answers of one score, each return is the one whitened reward at its end.
    scores = [1.0, 2.0, 3.0, 6.0]
    models = dict(reward_model=lambda prompts, completions, **_: scores, value_model=copy.deepcopy(reward_model))
    trainer = make_trainer(
        models=models, max_steps=1, kl_coef=0.0, lam=1.0, reward_clip=None, whiten_rewards=True, max_completion_length=1
    )
    trainer.train()
    # One token an answer: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5; divided, not shifted.
    expected = [score / 3.5**0.5 for score in scores]
    assert trainer.passes.rollout.returns[:, 0].tolist() == pytest.approx(expected, rel=1e-4)


def test_a_short_answer_is_penalised_after_the_clip_and_kept(make_trainer, constant_reward):
    # 9 is clipped to 5; every answer has at most 8 tokens, so all lose 1.5.
    trainer = make_trainer(models=constant_reward(9.0), min_completion_length=9, short_completion_penalty=1.5, **PLAIN)
    trainer.train()
    assert returns_of(trainer) == pytest.approx([3.5] * 4)
    long_enough = make_trainer(models=constant_reward(9.0), min_completion_length=1, **PLAIN)
    long_enough.train()
    assert returns_of(long_enough) == pytest.approx([5.0] * 4)


def test_the_critic_learns_alone_while_it_warms_up(make_trainer, layout):
    trainer = make_trainer(layout, max_steps=2, critic_warmup_steps=2, weight_decay=0.1)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        critic_learns = trainer.model.is_critic(name) and parameter.requires_grad
        assert torch.equal(parameter, before[name]) != critic_learns, name
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert set(rates) == {1e-3, 3e-3}, "after the warm-up the schedule goes on as if there had been none"
    later = make_trainer(layout, max_steps=3, critic_warmup_steps=2)
    later.train()
    moved = [
        name
        for name, parameter in later.model.named_parameters()
        if parameter.requires_grad and not later.model.is_critic(name) and not torch.equal(parameter, before[name])
    ]
    assert moved


def test_a_run_in_which_only_the_critic_learns_is_said(make_trainer, caplog):
    make_trainer(max_steps=2, critic_warmup_steps=1).create_optimizer_and_scheduler(num_training_steps=2)
    assert "only the critic learns" not in caplog.text
    with caplog.at_level(logging.WARNING):
        make_trainer(max_steps=2, critic_warmup_steps=4).create_optimizer_and_scheduler(num_training_steps=2)
    assert "critic_warmup_steps is 4, and this run has 2: only the critic learns" in caplog.text


def test_after_the_warm_up_of_the_critic_the_policys_schedule_is_where_it_would_be(make_trainer):
    # Linear from 1e-3 over 4 steps: 1, 3/4, 1/2, 1/4 of it, of which the first two are left out.
    trainer = make_trainer(max_steps=4, critic_warmup_steps=2, lr_scheduler_type="linear")
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    rates = {False: [], True: []}
    for _ in range(4):
        for is_critic, seen in rates.items():
            (rate,) = {group["lr"] for group in trainer.optimizer.param_groups if group["is_critic"] is is_critic}
            seen.append(rate)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[False] == pytest.approx([0.0, 0.0, 0.5e-3, 0.25e-3])
    assert rates[True] == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3])


def test_logged_losses_are_those_of_the_optimiser_step_however_it_is_accumulated(make_trainer):
    logged = []
    for options in (
        dict(per_device_train_batch_size=4, num_rollout_batches=1),
        dict(per_device_train_batch_size=1, num_rollout_batches=4, gradient_accumulation_steps=4),
    ):
        trainer = make_trainer(
            generation_batch_size=4, num_ppo_epochs=1, max_steps=1, whiten_advantages=False, **options
        )
        trainer.train()
        logged.append(next(entry for entry in trainer.state.log_history if "value/loss" in entry))
        # At the first step all ratios are 1 and all values those at rollout, so that both losses are means of what the
        # rollout holds: -advantage, and half the squared distance to the return.
        rollout = trainer.passes.rollout
        mask = rollout.completion_mask
        errors = 0.5 * (rollout.values - rollout.returns)[mask].square()
        assert logged[-1]["policy/loss"] == pytest.approx(-rollout.advantages[mask].mean().item(), rel=1e-4)
        assert logged[-1]["value/loss"] == pytest.approx(errors.mean().item(), rel=1e-4)
    assert logged[0]["loss"] == pytest.approx(logged[1]["loss"], rel=1e-4)


def test_policy_and_critic_have_their_own_learning_rates(make_trainer):
    trainer = make_trainer(max_steps=1, weight_decay=0.1)
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            is_policy = names[id(parameter)].startswith("policy.")
            assert group["lr"] == (1e-3 if is_policy else 3e-3)


def test_critic_and_policy_have_their_own_weight_decay(make_trainer, layout):
    trainer = make_trainer(layout, weight_decay=0.1, critic_weight_decay=0.3)
    trainer.create_optimizer()
    decays = {(group["is_critic"], group["weight_decay"]) for group in trainer.optimizer.param_groups}
    assert {(False, 0.1), (True, 0.3)} <= decays <= {(False, 0.1), (True, 0.3), (False, 0.0), (True, 0.0)}


def test_passes_stop_once_the_policy_is_too_far_and_start_again_with_the_next_rollout(make_trainer):
    snapshots = []
    trainer = make_trainer(max_steps=12, num_ppo_epochs=3, target_kl=1e-9)
    step = trainer.training_step

    def watched(*args, **kwargs):
        snapshots.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
        return step(*args, **kwargs)

    trainer.training_step = watched
    trainer.train()
    snapshots.append([parameter.detach() for parameter in trainer.model.parameters()])
    moved = [
        any(not torch.equal(old, new) for old, new in zip(*pair, strict=True))
        for pair in zip(snapshots, snapshots[1:], strict=False)
    ]
    # The first mini-batch of a rollout is learnt at a divergence of 0, the second at more than the target.
    assert moved == [True, True, False, False, False, False] * 2
    logs = [entry for entry in trainer.state.log_history if "policy/skipped_steps" in entry]
    assert [entry["policy/skipped_steps"] for entry in logs] == [0, 0, 1, 1, 1, 1] * 2
    assert trainer.state.global_step == 12


def test_a_target_that_is_never_reached_stops_nothing(make_trainer):
    trainer = make_trainer(max_steps=4, target_kl=1e9)
    trainer.train()
    assert all(entry.get("policy/skipped_steps", 0) == 0 for entry in trainer.state.log_history)


def test_several_answers_to_a_prompt_stand_side_by_side(make_trainer):
    trainer = make_trainer(max_steps=1, num_generations=2)
    trainer.train()
    rollout = trainer.passes.rollout
    width = rollout.completion_width
    prompts = [
        ids[mask == 1].tolist()
        for ids, mask in zip(rollout.input_ids[:, :-width], rollout.attention_mask[:, :-width], strict=True)
    ]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    answers = rollout.completions()
    assert answers[0] != answers[1]
    with pytest.raises(ValueError, match="must be a multiple of num_generations; got 4 and 3"):
        make_trainer(num_generations=3)


def test_the_preset_has_the_numbers_of_the_old_pipeline(tmp_path):
    config = PPOConfig.deepspeed_chat(output_dir=str(tmp_path), use_cpu=True)
    assert (config.max_prompt_length, config.max_completion_length) == (96, 512)
    assert (config.per_device_train_batch_size, config.num_rollout_batches) == (4, 50)
    assert (config.kl_coef, config.reward_clip, config.gamma, config.lam) == (0.1, 5.0, 1.0, 0.95)
    assert (config.cliprange, config.cliprange_value, config.whiten_advantages) == (0.2, 0.2, False)
    assert (config.num_ppo_epochs, config.lr_scheduler_type, config.warmup_steps) == (100, "cosine", 100)
    assert (config.learning_rate, config.critic_learning_rate, config.ptx_coef) == (9.65e-6, 5e-6, 27.8)
    changed = PPOConfig.deepspeed_chat(output_dir=str(tmp_path), use_cpu=True, num_ppo_epochs=1, kl_coef=0.2)
    assert (changed.num_ppo_epochs, changed.kl_coef, changed.lam) == (1, 0.2, 0.95), "what is passed wins"


@pytest.mark.parametrize(
    "name, value, what",
    [
        ("ema_decay", 1.0, "between 0 and 1"),
        ("target_kl", 0.0, "greater than 0"),
        ("ptx_coef", -1.0, "0 or more"),
        ("num_generations", 0, "1 or more"),
        ("share_backbone", "some", "one of none, value, all"),
        ("reward_scaling", "std", "one of none, running, stored"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, name, value, what):
    with pytest.raises(ValueError, match=f"PPOConfig: {name} must be {what}; got {value!r}"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})
