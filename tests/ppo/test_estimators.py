"""Advantages without a critic: by hand, beside TRL's, on several ranks, and in a trainer that builds no critic."""

import copy

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from pangu_trl import PPOConfig
from pangu_trl.ppo.advantages import group_mean_advantages, leave_one_out_advantages, returns_to_go
from pangu_trl.ppo.dynamic_sampling import draw_dull_groups_anew, dull_groups
from pangu_trl.ppo.rollout import Rollout

# Two groups of three.
RETURNS = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
WITHOUT_CRITIC = ["grpo", "rloo", "reinforce_plus_plus"]


def test_group_means_by_hand():
    # Group 1: mean 3, sample variance (4 + 1 + 9) / 2 = 7. Group 2: all equal.
    differences = [-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]
    assert group_mean_advantages(RETURNS, 3, "none").tolist() == differences
    expected = [value / (7**0.5 + 1e-4) for value in differences]
    assert group_mean_advantages(RETURNS, 3, "group").tolist() == pytest.approx(expected)
    # All six: mean 3.5, squares 6.25 + 2.25 + 6.25 + 3 * 0.25 = 15.5, over 5.
    expected = [value / (3.1**0.5 + 1e-4) for value in differences]
    assert group_mean_advantages(RETURNS, 3, "batch").tolist() == pytest.approx(expected)


def test_leaving_one_out_by_hand():
    # The others' means: 4, 3.5, 1.5.
    assert leave_one_out_advantages(RETURNS, 3).tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]


def test_returns_to_go_by_hand():
    # Rewards 1, 2, 4 with gamma 1/2: 4; 2 + 2 = 4; 1 + 2 = 3. The last column is padding.
    mask = torch.tensor([[True, True, True, False]])
    assert returns_to_go(torch.tensor([[1.0, 2.0, 4.0, 99.0]]), mask, 0.5).tolist() == [[3.0, 4.0, 4.0, 0.0]]


def test_the_deviation_of_the_batch_is_that_of_all_ranks():
    whole = group_mean_advantages(RETURNS, 3, "batch")
    # What the other rank, which holds group 2, adds: count and sum, then squared deviations from the mean 3.5.
    others = iter([torch.tensor([3.0, 12.0]), torch.tensor(0.75)])
    first = group_mean_advantages(RETURNS[:3], 3, "batch", lambda tensor: tensor + next(others))
    torch.testing.assert_close(first, whole[:3])


@pytest.fixture
def trl_advantages(policy, tokenizer, prompts, tmp_path):
    """Advantages that TRL's trainers give answers with the rewards 0, 1, 4, 9, ... by place."""
    policy.save_pretrained(tmp_path / "policy")

    def compute(trainer_class, config_class, **options) -> torch.Tensor:
        args = config_class(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=4,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            report_to="none",
            **options,
        )
        trainer = trainer_class(
            model=str(tmp_path / "policy"),
            reward_funcs=lambda completions, **_: [float(index**2) for index in range(len(completions))],
            args=args,
            train_dataset=prompts,
            processing_class=tokenizer,
        )
        examples = [prompts[index // 4] for index in range(8)]
        return trainer._generate_and_score_completions(examples)["advantages"]

    return compute


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_means_are_those_of_trl(trl_advantages, scale):
    expected = trl_advantages(GRPOTrainer, GRPOConfig, scale_rewards=scale)
    rewards = torch.arange(8).float().square()
    torch.testing.assert_close(group_mean_advantages(rewards, 4, scale), expected)


def test_leaving_one_out_is_that_of_trl(trl_advantages):
    expected = trl_advantages(RLOOTrainer, RLOOConfig)
    torch.testing.assert_close(leave_one_out_advantages(torch.arange(8).float().square(), 4), expected)


# In the trainer.


def by_place(prompts, completions, **columns):
    return [float(index * index % 5) for index in range(len(completions))]


@pytest.mark.parametrize("estimator", WITHOUT_CRITIC)
def test_an_answers_advantage_is_that_of_its_score_and_divergence(make_trainer, estimator):
    options = dict(num_generations=2, reward_clip=None, kl_coef=0.5, max_steps=3, num_ppo_epochs=1)
    trainer = make_trainer(
        advantage_estimator=estimator, whiten_advantages=False, models=dict(reward_model=by_place), **options
    )
    trainer.train()
    rollout = trainer.passes.rollout
    mask = rollout.completion_mask
    divergence = torch.where(mask, rollout.logprobs - rollout.ref_logprobs, 0.0)
    assert divergence.abs().sum() > 0, "the second rollout is that of another policy"
    returns = rollout.scores - 0.5 * divergence.sum(dim=1)
    if estimator == "reinforce_plus_plus":
        # The first token's return is the whole; the last one's the score and its own divergence.
        torch.testing.assert_close(rollout.advantages[:, 0], returns)
        last = mask.sum(dim=1, keepdim=True) - 1
        expected = rollout.scores - 0.5 * divergence.gather(1, last).squeeze(1)
        torch.testing.assert_close(rollout.advantages.gather(1, last).squeeze(1), expected)
        return
    pairs = returns.view(-1, 2)
    difference = (pairs[:, 0] - pairs[:, 1]) / (1 if estimator == "rloo" else 2)
    if estimator == "grpo":
        # Of two numbers the sample deviation is their distance over the root of 2.
        difference = difference / (pairs[:, 0] - pairs[:, 1]).abs().div(2**0.5).add(1e-4)
    expected = torch.stack([difference, -difference], dim=1).view(-1, 1)
    torch.testing.assert_close(rollout.advantages, torch.where(mask, expected, 0.0))


def test_reinforce_plus_plus_is_normalised_over_all_tokens(make_trainer):
    trainer = make_trainer(advantage_estimator="reinforce_plus_plus", models=dict(reward_model=by_place), max_steps=1)
    trainer.train()
    rollout = trainer.passes.rollout
    advantages = rollout.advantages[rollout.completion_mask]
    assert advantages.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert advantages.std(correction=0).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("without_critic", ["full", "lora", "one backbone"])
def test_without_a_critic_none_is_built_learnt_logged_or_saved(make_trainer, without_critic, tmp_path):
    options = dict(advantage_estimator="rloo", num_generations=2, max_steps=2)
    trainer = make_trainer(without_critic, **options)
    names = [name for name, parameter in trainer.model.named_parameters()]
    assert not any(trainer.model.is_critic(name) for name in names)
    trainer.create_optimizer()
    assert {group["is_critic"] for group in trainer.optimizer.param_groups} == {False}
    trainer.train()
    assert trainer.passes.rollout.values is trainer.passes.rollout.returns is None
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert not {"value/loss", "value/mean"} & logged
    assert {"policy/loss", "group/dull"} <= logged
    trainer.save_model()
    saved = {path.name for path in (tmp_path / "run").iterdir()}
    assert not {"value_model", "value_head.safetensors"} & saved


@pytest.mark.parametrize("without_critic", ["full", "one backbone"])
def test_a_run_without_a_critic_resumes_with_the_same_bits(make_trainer, without_critic, tmp_path):
    options = dict(advantage_estimator="grpo", num_generations=2, max_steps=6, dynamic_sampling_rounds=1)
    whole = make_trainer(without_critic, **options, save_strategy="steps", save_steps=3)
    whole.train()
    resumed = make_trainer(without_critic, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for (name, expected), (_, found) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_the_rollouts_of_all_estimators_are_the_same(make_trainer):
    first = None
    for estimator in ("gae", "rloo"):
        trainer = make_trainer(advantage_estimator=estimator, num_generations=2, max_steps=1)
        trainer.train()
        ids = trainer.passes.rollout.input_ids
        assert first is None or torch.equal(ids, first)
        first = ids


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(gamma=0.9), "gamma has no effect"),
        (dict(whiten_rewards=True), "whiten_rewards has no effect"),
        (dict(scale_rewards="batch"), "scale_rewards has no effect with advantage_estimator='rloo'"),
        (dict(share_backbone="value"), "share_backbone='value' makes a critic"),
        (dict(num_generations=1), "num_generations must be 2 or more with 'rloo'; got 1"),
        (dict(advantage_estimator="gae", dynamic_sampling_rounds=2), "dynamic_sampling_rounds has no effect with adv"),
        (dict(advantage_estimator="gae", scale_rewards="none"), "scale_rewards has no effect"),
        (dict(advantage_estimator="reinforce"), "advantage_estimator must be one of gae, grpo, rloo, reinforce_plus_"),
        (dict(dynamic_sampling_rounds=-1), "dynamic_sampling_rounds must be 0 or more"),
    ],
)
def test_options_without_effect_are_refused_by_name(tmp_path, options, message):
    settings = dict(advantage_estimator="rloo", num_generations=2) | options
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_a_value_model_without_a_use_is_refused(make_trainer, reward_model):
    with pytest.raises(ValueError, match="value_model has no effect with advantage_estimator='rloo'"):
        make_trainer(
            advantage_estimator="rloo", num_generations=2, models=dict(value_model=copy.deepcopy(reward_model))
        )


def test_trls_config_takes_an_estimator_without_a_critic(tmp_path):
    options = dict(advantage_estimator="rloo", num_generations=2, per_device_train_batch_size=2)
    assert not PPOConfig.from_trl(output_dir=str(tmp_path), use_cpu=True, **options).has_critic


# Dynamic sampling.


def scored(answers: list[list[int]], scores: list[float]) -> Rollout:
    rollout = Rollout.from_answers([[20 + index // 2] for index in range(len(answers))], answers, [9], 0, "cpu")
    rollout.scores = torch.tensor(scores)
    rollout.source_scores = rollout.scores.unsqueeze(1)
    return rollout


def test_groups_of_equal_scores_are_drawn_anew_until_they_differ_or_the_rounds_are_used_up():
    # Groups of two: (1, 1) and (3, 3) are dull; the first draw mends the second of them, the second draw neither.
    rollout = scored([[1, 9], [2, 9], [3, 9], [4, 9], [5, 9], [6, 9]], [1, 1, 2, 0, 3, 3])
    assert dull_groups(rollout.scores, 2).tolist() == [True, False, True]
    draws = iter(
        [
            scored([[31, 32, 9], [33, 9], [34, 9], [35, 36, 37, 9]], [1, 1, 5, 6]),
            scored([[41, 9], [42, 9]], [7, 7]),
        ]
    )
    asked = []

    def draw(examples):
        asked.append(examples)
        return next(draws)

    examples = [f"prompt {index // 2}" for index in range(6)]
    found, num_redrawn = draw_dull_groups_anew(rollout, examples, draw, 2, 2, int, pad_token_id=0)
    assert asked == [["prompt 0"] * 2 + ["prompt 2"] * 2, ["prompt 0"] * 2]
    assert num_redrawn == 3
    assert found.scores.tolist() == [1, 1, 2, 0, 5, 6]
    assert found.source_scores[:, 0].tolist() == [1, 1, 2, 0, 5, 6]
    assert found.completions() == [[1, 9], [2, 9], [3, 9], [4, 9], [34, 9], [35, 36, 37, 9]]
    assert found.input_ids[:, 0].tolist() == [20, 20, 21, 21, 22, 22], "the prompts stay where they are"
    assert found.lengths.tolist() == [3, 3, 3, 3, 3, 5]


def test_a_rank_draws_as_often_as_the_one_with_most_dull_groups_and_keeps_what_it_had():
    rollout = scored([[1, 9], [2, 9], [3, 9], [4, 9]], [1, 2, 3, 4])
    counts = iter([2, 0])

    def draw(examples):
        assert len(examples) == 4
        return scored([[5, 9]] * 4, [9, 8, 7, 6])

    found, num_redrawn = draw_dull_groups_anew(rollout, ["x"] * 4, draw, 2, 5, lambda _: next(counts), pad_token_id=0)
    assert num_redrawn == 0
    assert found.completions() == rollout.completions()
    assert found.scores.tolist() == [1, 2, 3, 4]


def test_a_run_counts_what_it_draws_anew(make_trainer):
    calls = []

    def equal_at_first(prompts, completions, **columns):
        # All answers of the rollout are equal; of those drawn anew every second is better.
        calls.append(len(prompts))
        return [float(index % 2) if len(calls) > 1 else 1.0 for index in range(len(prompts))]

    trainer = make_trainer(
        advantage_estimator="grpo",
        num_generations=2,
        dynamic_sampling_rounds=3,
        max_steps=1,
        models=dict(reward_model=equal_at_first),
    )
    trainer.train()
    assert calls == [4, 4]
    assert trainer.passes.rollout.scores.tolist() == [0.0, 1.0, 0.0, 1.0]
    logged = next(entry for entry in trainer.state.log_history if "group/redrawn" in entry)
    assert (logged["group/redrawn"], logged["group/dull"]) == (2.0, 0.0)
    # What is learnt belongs to the new answers: log-probabilities as they were sampled.
    assert logged["policy/sampling_gap"] < 1e-4


def test_only_what_needs_it_normalises_by_default(tmp_path):
    whitens = {}
    for estimator in ("gae", *WITHOUT_CRITIC):
        options = dict(advantage_estimator=estimator, num_generations=2, use_cpu=True)
        whitens[estimator] = PPOConfig(output_dir=str(tmp_path), **options).whiten_advantages
    assert whitens == {"gae": True, "grpo": False, "rloo": False, "reinforce_plus_plus": True}
