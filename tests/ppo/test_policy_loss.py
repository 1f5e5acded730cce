"""Variants of the policy loss: by hand, and beside TRL's own GRPO losses."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

from pangu_trl import PPOConfig
from pangu_trl.ppo.advantages import overlong_penalties
from pangu_trl.ppo.losses import importance_weights, loss_divisor, policy_loss, value_loss
from pangu_trl.ppo.metrics import update_figures
from pangu_trl.ppo.rollout import Rollout

ALL = torch.ones(1, 2, dtype=torch.bool)


def loss_of(ratios, advantages, mask=ALL, **options):
    """The loss of tokens with the given ratios."""
    logprobs = torch.tensor(ratios).log()
    return policy_loss(logprobs, torch.zeros_like(logprobs), torch.tensor(advantages), mask, 0.2, **options).item()


def test_a_higher_clip_range_holds_above_one_alone():
    # Ratio 1.5 earns up to 1.3: -2.6 instead of -2.4. Ratio 0.5 loses by 0.8 as before.
    assert loss_of([[1.5, 0.5]], [[2.0, -1.0]], cliprange_high=0.3) == pytest.approx((-2.6 + 0.8) / 2)
    assert loss_of([[1.5, 0.5]], [[2.0, -1.0]]) == pytest.approx((-2.4 + 0.8) / 2)


def test_the_dual_clip_bounds_what_a_bad_token_loses_by_and_nothing_else():
    # Ratio 5 at advantage -2: 10, bounded to 3 * 2 = 6. At advantage 2 the plain clip holds: -2.4.
    assert loss_of([[5.0, 5.0]], [[-2.0, 2.0]]) == pytest.approx((10 - 2.4) / 2)
    assert loss_of([[5.0, 5.0]], [[-2.0, 2.0]], delta=3.0) == pytest.approx((6 - 2.4) / 2)
    assert loss_of([[2.9, 0.1]], [[-2.0, 2.0]], delta=3.0) == loss_of([[2.9, 0.1]], [[-2.0, 2.0]])


@pytest.mark.parametrize("aggregation, expected", [("token", 16 / 4), ("sequence", (2 + 10) / 2), ("constant", 16 / 8)])
def test_means_over_tokens_answers_and_a_constant(aggregation, expected):
    # Losses 1, 2, 3 of one answer and 10 of another; answers have up to 4 tokens.
    mask = torch.tensor([[True, True, True], [True, False, False]])
    divisor = loss_divisor(mask, aggregation, 4)
    found = loss_of(
        [[1.0] * 3] * 2, [[-1.0, -2.0, -3.0], [-10.0, 99.0, 99.0]], mask, num_tokens=divisor, aggregation=aggregation
    )
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("aggregation, expected", [("token", 6 / 3), ("sequence", 2.0), ("constant", 6 / 8)])
def test_a_masked_answer_has_no_part_in_the_mean_but_in_the_constant(aggregation, expected):
    mask = torch.tensor([[True, True, True], [False, False, False]])
    divisor = loss_divisor(mask, aggregation, 4)
    found = loss_of(
        [[1.0] * 3] * 2, [[-1.0, -2.0, -3.0], [-10.0, 99.0, 99.0]], mask, num_tokens=divisor, aggregation=aggregation
    )
    assert found == pytest.approx(expected)


def test_where_all_answers_are_masked_the_losses_are_zero_and_so_are_their_gradients():
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    logprobs = torch.tensor([[0.3, 0.2]], requires_grad=True)
    zeros = torch.zeros(1, 2)
    loss = policy_loss(logprobs, zeros, zeros + 1, nothing, 0.2) + value_loss(logprobs, zeros, zeros, nothing, 0.2)
    loss.backward()
    assert loss.item() == 0.0
    assert logprobs.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "mode, expected",
    [
        # Ratios of the tokens 4, 1/2 and 1/8; of the answer 1/4. Bounds 1/5 and 2.
        ("token_truncate", [2.0, 0.5, 0.2]),
        ("token_mask", [0.0, 0.5, 0.0]),
        ("sequence_truncate", [0.25] * 3),
        ("sequence_mask", [0.25] * 3),
    ],
)
def test_importance_weights_by_hand(mode, expected):
    learnt, mask = torch.tensor([[4.0, 0.5, 0.125, 1.0]]).log(), torch.tensor([[True, True, True, False]])
    sampled = torch.tensor([[0.0, 0.0, 0.0, -77.0]])
    weights, ratios = importance_weights(learnt, sampled, mask, mode, clip_max=2.0, clip_min=0.2)
    torch.testing.assert_close(weights, torch.tensor([[*expected, 1.0]]))
    torch.testing.assert_close(ratios[:, :3], learnt[:, :3].exp() if "token" in mode else torch.full((1, 3), 0.25))
    # The same answer beyond a bound of 1/3: truncated to it, or left out.
    weights, _ = importance_weights(learnt, sampled, mask, mode, clip_max=2.0, clip_min=1 / 3)
    if "sequence" in mode:
        assert weights[0, :3].tolist() == pytest.approx([1 / 3 if "truncate" in mode else 0.0] * 3)


def test_a_probability_that_the_engine_did_not_tell_is_not_corrected():
    learnt, sampled = torch.tensor([[-1.0, -2.0]]), torch.tensor([[math.nan, -2.0 - math.log(2.0)]])
    for mode, expected in (("token_truncate", [1.0, 2.0]), ("sequence_mask", [2.0, 2.0])):
        weights, _ = importance_weights(learnt, sampled, ALL, mode, clip_max=None)
        torch.testing.assert_close(weights, torch.tensor([expected]))


def test_importance_weights_weigh_the_losses():
    weights = torch.tensor([[3.0, 0.0]])
    assert loss_of([[1.0, 1.0]], [[-1.0, -50.0]], importance_weights=weights) == pytest.approx(3 / 2)


def test_soft_overlong_punishment_by_hand():
    # 10 tokens at most, the last 4 are the buffer: nothing up to 6, then a quarter each.
    shares = overlong_penalties(torch.tensor([1, 6, 7, 9, 10]), 10, 4)
    assert shares.tolist() == [0.0, 0.0, 0.25, 0.75, 1.0]


def trl_loss(logprobs, old, advantages, mask, ratio, *, loss_type, divisor_tokens, steps=1, **options):
    """What TRL's GRPOTrainer makes of one micro-batch of `steps`, answers of up to 6 tokens."""
    settings = dict(epsilon_low=0.2, epsilon_high=0.2, delta=None) | options
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        args=SimpleNamespace(delta=settings["delta"], steps_per_generation=steps),
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda tensor, **_: tensor, gather=lambda tensor: tensor),
        model=SimpleNamespace(training=True),
        loss_type=loss_type,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=0.0,
        epsilon_low=settings["epsilon_low"],
        epsilon_high=settings["epsilon_high"],
        use_vllm=ratio is not None,
        vllm_importance_sampling_correction=True,
        max_completion_length=6,
        current_gradient_accumulation_steps=steps,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = dict(
        prompt_ids=torch.zeros(len(mask), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(mask), 1, dtype=torch.long),
        completion_ids=torch.zeros(mask.shape, dtype=torch.long),
        completion_mask=mask.long(),
        advantages=advantages,
        old_per_token_logps=old,
        num_items_in_batch=torch.tensor(float(divisor_tokens)),
        importance_sampling_ratio=ratio,
    )
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("trl_name, aggregation", [("dapo", "token"), ("grpo", "sequence"), ("dr_grpo", "constant")])
@pytest.mark.parametrize("options", [{}, {"epsilon_high": 0.28}, {"delta": 1.5}, {"epsilon_high": 0.4, "delta": 1.6}])
@pytest.mark.parametrize("is_corrected", [False, True])
def test_losses_and_gradients_are_those_of_trl(trl_name, aggregation, options, is_corrected):
    torch.manual_seed(0)
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 1]).unsqueeze(1)
    old, advantages = -torch.rand(4, 5) * 3, torch.randn(4)
    ratio = torch.rand(4, 5) * 2 if is_corrected else None
    losses, gradients = [], []
    for is_trl in (False, True):
        logprobs = (old + 0.6 * torch.randn(4, 5, generator=torch.Generator().manual_seed(1))).requires_grad_()
        if is_trl:
            loss = trl_loss(logprobs, old, advantages, mask, ratio, loss_type=trl_name, divisor_tokens=11, **options)
        else:
            loss = policy_loss(
                logprobs,
                old,
                advantages.unsqueeze(1).expand(4, 5),
                mask,
                0.2,
                loss_divisor(mask, aggregation, 6),
                options.get("epsilon_high"),
                options.get("delta"),
                ratio,
                aggregation,
            )
        loss.backward()
        losses.append(loss.detach())
        gradients.append(logprobs.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_no_mean_depends_on_how_the_answers_are_dealt_to_mini_batches(aggregation):
    torch.manual_seed(0)
    mask = torch.arange(5) < torch.tensor([5, 2, 0, 1]).unsqueeze(1)
    tensors = (torch.randn(4, 5), torch.randn(4, 5), torch.randn(4, 5), mask)
    divisor = loss_divisor(mask, aggregation, 6)
    assert divisor == sum(loss_divisor(mask[rows], aggregation, 6) for rows in ([0, 1, 2], [3]))
    whole = policy_loss(*tensors, 0.2, divisor, aggregation=aggregation)
    parts = [
        policy_loss(*(tensor[rows] for tensor in tensors), 0.2, divisor, aggregation=aggregation)
        for rows in ([0, 1, 2], [3])
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_clip_fractions_count_what_each_bound_holds_back():
    # Ratios 0.7, 1.25, 1.5 and 4, the last with a negative advantage.
    rollout = Rollout.from_answers([[1]], [[2, 3, 4, 5]], [9], 0, "cpu")
    rollout.logprobs = torch.zeros(1, 4)
    rollout.advantages = torch.tensor([[1.0, 1.0, 1.0, -1.0]])
    logprobs = torch.tensor([[0.7, 1.25, 1.5, 4.0]]).log()
    assert update_figures(logprobs, rollout, 0.2)["policy/clip_fraction"] == 1.0
    figures = update_figures(logprobs, rollout, 0.2, 0.3, 3.0)
    assert figures["policy/clip_fraction"] == 0.75
    assert figures["policy/dual_clip_fraction"] == 0.25


# In the trainer.


def test_truncated_answers_are_not_learnt_from_and_have_no_part_in_means(make_trainer, monkeypatch):
    trainer = make_trainer(mask_truncated_completions=True, max_steps=1, num_ppo_epochs=1)
    answers = [[30, 31], [32, 33, 9], [35, 9], [37]]
    rollout = Rollout.from_answers([[20], [21, 22, 23], [24, 25], [26]], answers, [9], pad_token_id=6, device="cpu")
    monkeypatch.setattr(trainer.collector, "answer", lambda model, examples, watch: rollout)
    trainer.train()
    assert rollout.learnt_mask.sum(dim=1).tolist() == [0, 3, 2, 0]
    assert rollout.advantages[rollout.learnt_mask].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert (rollout.advantages[[0, 3]] == 0).all()
    logged = next(entry for entry in trainer.state.log_history if "completion/masked" in entry)
    assert logged["completion/masked"] == 0.5
    # Of the first mini-batch of two the ratios are 1: the mean over its learnt tokens alone.
    rows = [row for row in trainer.passes._rows(0).tolist() if row in (1, 2)]
    mask = rollout.learnt_mask[rows]
    expected = -rollout.advantages[rows][mask].mean().item() if rows else 0.0
    assert logged["policy/loss"] == pytest.approx(expected, abs=1e-6)


def test_answers_near_the_longest_lose_their_share_after_the_clip(make_trainer, reward_model):
    models = dict(reward_model=lambda prompts, completions, **_: [9.0] * len(prompts), value_model=reward_model)
    options = dict(overlong_buffer_length=8, overlong_penalty=4.0, kl_coef=0.0, lam=1.0, max_steps=1)
    trainer = make_trainer(models=models, **options)
    trainer.train()
    rollout = trainer.passes.rollout
    # 9 is clipped to 5; the buffer is all of the 8 tokens, so that each costs half a point.
    expected = 5.0 - 0.5 * rollout.completion_mask.sum(dim=1)
    torch.testing.assert_close(rollout.returns[:, 0], expected)


def test_the_correction_knows_what_transformers_sampled_with(make_trainer):
    options = dict(max_completion_length=20, temperature=0.7, max_steps=2, num_ppo_epochs=1, num_rollout_batches=2)
    correction = dict(vllm_importance_sampling_correction=True, vllm_importance_sampling_mode="token_truncate")
    plain = make_trainer(**options)
    plain.train()
    corrected = make_trainer(**options, **correction)
    corrected.train()
    # One engine, one distribution: the ratios are 1 but for rounding, over more tokens than the first batch has.
    weights = corrected.passes.rollout.importance_weights
    torch.testing.assert_close(weights, torch.ones_like(weights), atol=1e-3, rtol=0)
    assert corrected.passes.rollout.completion_mask.sum(dim=1).max() > 16
    logged = next(entry for entry in corrected.state.log_history if "importance/mean" in entry)
    assert logged["importance/unknown"] == 0.0
    assert logged["importance/min"] <= logged["importance/mean"] <= logged["importance/max"]
    assert plain.passes.rollout.importance_weights is None
    assert torch.equal(plain.passes.rollout.input_ids, corrected.passes.rollout.input_ids)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(delta=1.1), "delta must be above 1 \\+ cliprange_high = 1.2"),
        (dict(delta=1.25, cliprange_high=0.28), "delta must be above 1 \\+ cliprange_high = 1.28"),
        (dict(cliprange_high=0.0), "cliprange_high must be greater than 0"),
        (dict(loss_aggregation="mean"), "loss_aggregation must be one of token, sequence, constant; got 'mean'"),
        (dict(overlong_penalty=2.0), "overlong_penalty has no effect without overlong_buffer_length"),
        (dict(overlong_buffer_length=300), "overlong_buffer_length must be at most max_completion_length = 256"),
        (dict(overlong_buffer_length=-1), "overlong_buffer_length must be 0 or more"),
        (
            dict(vllm_importance_sampling_clip_max=2.0),
            "vllm_importance_sampling_clip_max has no effect without vllm_importance_sampling_correction",
        ),
        (
            dict(vllm_importance_sampling_correction=True, vllm_importance_sampling_clip_max=0.5),
            "vllm_importance_sampling_clip_max must be 1 or more",
        ),
        (
            dict(vllm_importance_sampling_correction=True, vllm_importance_sampling_clip_min=1.5),
            "vllm_importance_sampling_clip_min must be 1 or less",
        ),
        (
            dict(vllm_importance_sampling_correction=True, vllm_importance_sampling_mode="mask"),
            "vllm_importance_sampling_mode must be one of token_truncate",
        ),
    ],
)
def test_options_of_the_policy_loss_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)
