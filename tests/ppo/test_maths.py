"""PPO maths: golden numbers of DeepSpeed-Chat with the score at the true end, and hand-computed values."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from pangu_trl.ppo.advantages import add_at_last_token, gae, kl_divergence, shape_rewards, whiten
from pangu_trl.ppo.losses import policy_loss, value_loss

START = 4  # index of the first answer token among the log-probabilities, see tests/fixtures/README.md
EXACT = dict(atol=1e-6, rtol=1e-6)


@pytest.fixture(scope="module")
def golden(fixtures):
    return load_file(fixtures / "ppo" / "golden.safetensors")


def answer_mask(golden):
    return golden["in.attention_mask"][:, 1:][:, START:].bool()


def test_rewards_equal_the_golden_numbers(golden):
    rewards = shape_rewards(
        golden["in.reward_score"],
        golden["in.logprobs"][:, START:],
        golden["in.ref_logprobs"][:, START:],
        answer_mask(golden),
        kl_coef=0.1,
        reward_clip=5.0,
    )
    expected = torch.where(answer_mask(golden), golden["exact_end.rewards"][:, START:], 0.0)
    torch.testing.assert_close(rewards, expected, **EXACT)


def test_advantages_and_returns_equal_the_golden_numbers(golden):
    mask = answer_mask(golden)
    advantages, returns = gae(
        golden["exact_end.gae_rewards"][:, START:], golden["in.old_values"][:, START:], mask, gamma=1.0, lam=0.95
    )
    torch.testing.assert_close(advantages[mask], golden["exact_end.advantages"][mask], **EXACT)
    torch.testing.assert_close(returns[mask], golden["exact_end.returns"][mask], **EXACT)


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.97, 0.9), (0.9, 0.0), (1.0, 1.0)])
def test_gae_equals_the_golden_numbers_for_other_settings(golden, gamma, lam):
    everything = torch.ones(3, 7, dtype=torch.bool)
    advantages, returns = gae(golden["gae.rewards"][:, START:], golden["gae.values"][:, START:], everything, gamma, lam)
    torch.testing.assert_close(advantages, golden[f"gae.gamma{gamma}_lam{lam}.advantages"], **EXACT)
    torch.testing.assert_close(returns, golden[f"gae.gamma{gamma}_lam{lam}.returns"], **EXACT)


def test_losses_and_gradients_equal_the_golden_numbers(golden):
    mask = answer_mask(golden)
    logits = golden["in.new_logits"].clone().requires_grad_(True)
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, golden["in.input_ids"][:, 1:, None]).squeeze(-1)
    actor = policy_loss(
        logprobs[:, START:], golden["in.logprobs"][:, START:], golden["exact_end.advantages"], mask, cliprange=0.2
    )
    actor.backward()
    torch.testing.assert_close(actor, golden["exact_end.actor_loss"].squeeze(), **EXACT)
    torch.testing.assert_close(logits.grad, golden["exact_end.grad_new_logits"], **EXACT)

    values = golden["in.new_values"].clone().requires_grad_(True)
    critic = value_loss(
        values[:, :-1][:, START:],
        golden["exact_end.gae_values"][:, START:],
        golden["exact_end.returns"],
        mask,
        cliprange_value=0.2,
    )
    critic.backward()
    torch.testing.assert_close(critic, golden["exact_end.critic_loss"].squeeze(), **EXACT)
    torch.testing.assert_close(values.grad, golden["exact_end.grad_new_values"], **EXACT)


def test_loss_functions_equal_the_golden_numbers_on_unrelated_tensors(golden):
    mask = golden["fn.mask"].bool()
    actor = policy_loss(golden["fn.logprobs"], golden["fn.old_logprobs"], golden["fn.advantages"], mask, 0.2)
    critic = value_loss(golden["fn.values"], golden["fn.old_values"], golden["fn.returns"], mask, 0.2)
    torch.testing.assert_close(actor, golden["fn.actor_loss"].squeeze(), **EXACT)
    torch.testing.assert_close(critic, golden["fn.critic_loss"].squeeze(), **EXACT)


def test_the_score_lands_on_the_last_answer_token_and_is_clipped():
    # KL terms: -0.5 * (0.2, -0.4, ...) = (-0.1, 0.2); the score 9 is clipped to 5.
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logprobs = torch.tensor([[-1.0, -2.0, -7.0], [-1.0, -7.0, -7.0]])
    reference = torch.tensor([[-1.2, -1.6, 0.0], [-1.0, 0.0, 0.0]])
    rewards = shape_rewards(torch.tensor([9.0, -1.5]), logprobs, reference, mask, kl_coef=0.5, reward_clip=5.0)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 5.2, 0.0], [-1.5, 0.0, 0.0]]))


def test_what_is_added_later_lands_on_the_last_answer_token_too():
    # -2 for the first answer, nothing for the second: (1, 5, 0) becomes (1, 3, 0).
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rewards = torch.tensor([[1.0, 5.0, 0.0], [4.0, 0.0, 0.0]])
    added = add_at_last_token(rewards, torch.tensor([-2.0, 0.0]), mask)
    assert added.tolist() == [[1.0, 3.0, 0.0], [4.0, 0.0, 0.0]]


def test_whitening_by_hand_keeps_to_float32():
    # (1, 3, 8): mean 4, variance (9 + 1 + 16) / 3 = 26 / 3; the 99 is padding.
    values, mask = torch.tensor([[1.0, 3.0], [8.0, 99.0]]), torch.tensor([[True, True], [True, False]])
    reduced = []

    def sum_over_ranks(tensor):
        reduced.append(tensor.dtype)
        return tensor

    deviation = math.sqrt(26 / 3)
    expected = torch.tensor([[-3 / deviation, -1 / deviation], [4 / deviation, 0.0]])
    torch.testing.assert_close(whiten(values, mask, sum_over_ranks), expected)
    assert set(reduced) == {torch.float32}


def test_whitening_two_ranks_equals_whitening_all():
    values, mask = torch.tensor([[1.0, 3.0], [8.0, 99.0]]), torch.tensor([[True, True], [True, False]])
    # What the other rank, which holds row 1, adds: its count, its sum, its squared deviations from the mean 4.
    others = iter([1.0, 8.0, 16.0])
    first = whiten(values[:1], mask[:1], lambda tensor: tensor + next(others))
    torch.testing.assert_close(first, whiten(values, mask)[:1])


def test_gae_ignores_what_stands_after_the_last_answer_token():
    # One answer of two tokens, gamma 0.5, lam 0.5, values (1, 2), rewards (0, 3):
    # A_1 = 3 - 2 = 1;  A_0 = 0 + 0.5 * 2 - 1 + 0.25 * 1 = 0.25;  returns = (1.25, 3).
    mask = torch.tensor([[True, True, False]])
    advantages, returns = gae(
        torch.tensor([[0.0, 3.0, 99.0]]), torch.tensor([[1.0, 2.0, 99.0]]), mask, gamma=0.5, lam=0.5
    )
    assert advantages.tolist() == [[0.25, 1.0, 0.0]]
    assert returns.tolist() == [[1.25, 3.0, 0.0]]


def test_kl_estimators_on_one_token():
    # log-ratio d = 0.5: k1 = d, k2 = d^2 / 2, k3 = e^-d - 1 + d.
    logprobs, reference = torch.tensor([-1.0]), torch.tensor([-1.5])
    expected = {"k1": 0.5, "k2": 0.125, "k3": math.exp(-0.5) - 0.5}
    for estimator, value in expected.items():
        assert kl_divergence(logprobs, reference, estimator).item() == pytest.approx(value)
    with pytest.raises(ValueError, match="kl_estimator must be one of k1, k2, k3; got 'k4'"):
        kl_divergence(logprobs, reference, "k4")


def test_the_number_of_tokens_of_the_global_batch_replaces_the_local_mean(golden):
    mask = golden["fn.mask"].bool()
    arguments = (golden["fn.logprobs"], golden["fn.old_logprobs"], golden["fn.advantages"], mask, 0.2)
    rows = [tuple(tensor[row : row + 1] for tensor in arguments[:4]) for row in range(3)]
    parts = sum(policy_loss(*row, 0.2, num_tokens=mask.sum()) for row in rows)
    torch.testing.assert_close(parts, policy_loss(*arguments))


def test_a_padded_place_gives_no_gradient_however_far_apart_its_log_probabilities_are():
    # One answer token with ratio 1 and advantage 2: the loss is -2 and so is its derivative. exp(200) is infinite in
    # float32, and what an infinite ratio gives backwards is NaN even where a mask has taken it out of the sum.
    logprobs = torch.tensor([[-1.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    loss = policy_loss(logprobs, torch.tensor([[-1.0, -200.0]]), torch.tensor([[2.0, 3.0]]), mask, cliprange=0.2)
    loss.backward()
    assert loss.item() == -2.0
    assert logprobs.grad.tolist() == [[-2.0, 0.0]]


def test_the_golden_file_was_made_with_the_settings_used_here(fixtures):
    settings = json.loads((fixtures / "ppo" / "golden.json").read_text())["hyperparameters"]
    assert (settings["kl_ctl"], settings["clip_reward_value"], settings["cliprange"]) == (0.1, 5.0, 0.2)


def test_rewards_are_scaled_and_not_shifted():
    # Mean 2, standard deviation 1.
    scaled = whiten(torch.tensor([[1.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool), shift_mean=False)
    torch.testing.assert_close(scaled, torch.tensor([[1.0, 3.0]]))
