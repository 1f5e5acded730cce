"""Invariants of PPOTrainer: what must hold at the first step, over ranks of batching, and across a resume."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from pangu_trl import PPOTrainer
from pangu_trl.models.adapter_selection import selected_adapter
from pangu_trl.models.loading import load_with_adapter
from pangu_trl.ppo.actor_critic.token_logprobs import completion_logprobs


class Watching(PPOTrainer):
    """Keeps what each learning step saw."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            outputs = self.model(inputs.input_ids, inputs.attention_mask, inputs.completion_mask, self.args.temperature)
        mask = inputs.completion_mask
        self.ratios = getattr(self, "ratios", [])
        self.ratios.append((outputs["logprobs"] - inputs.logprobs)[mask].exp())
        self.training_modes = getattr(self, "training_modes", [])
        self.training_modes.append({module.training for module in model.modules()})
        self.rollouts = getattr(self, "rollouts", [])
        if not self.rollouts or self.rollouts[-1] is not self.passes.rollout:
            self.rollouts.append(self.passes.rollout)
        return super().compute_loss(model, inputs, *args, **kwargs)


def watching(trainer: PPOTrainer) -> Watching:
    trainer.__class__ = Watching
    return trainer


def test_the_first_ratio_of_every_rollout_is_exactly_one_and_later_ones_are_not(make_trainer, layout):
    trainer = watching(make_trainer(layout))
    trainer.train()
    assert len(trainer.ratios) == 8 and len(trainer.rollouts) == 2
    for first_of_rollout in (0, 4):
        assert torch.equal(trainer.ratios[first_of_rollout], torch.ones_like(trainer.ratios[first_of_rollout]))
    assert not torch.equal(trainer.ratios[3], torch.ones_like(trainer.ratios[3]))
    assert trainer.training_modes == [{True}] * 8


def test_the_kl_divergence_is_zero_before_the_first_update_and_not_after(make_trainer, layout):
    trainer = watching(make_trainer(layout))
    trainer.train()
    first, second = trainer.rollouts
    assert torch.equal(first.logprobs, first.ref_logprobs)
    assert not torch.equal(second.logprobs, second.ref_logprobs)


def test_every_trainable_tensor_gets_a_gradient_at_the_first_step(make_trainer, layout):
    trainer = make_trainer(layout, max_steps=1)
    gradients = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda grad, name=name: gradients.__setitem__(name, grad.abs().sum().item()))
    trainer.train()
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert gradients.keys() == trainable
    # lora_A learns once lora_B has left zero.
    silent = {name for name, size in gradients.items() if size == 0}
    assert all("lora_A" in name for name in silent)
    critic = {name for name in trainable if trainer.model.is_critic(name)}
    assert critic and trainable - critic
    assert all("lora_" in name for name in trainable - critic) == (layout in ("lora", "one backbone"))


def test_a_rollout_puts_the_score_on_the_last_answer_token_and_masks_what_follows(make_trainer, tokenizer):
    trainer = watching(make_trainer(max_steps=1, kl_coef=0.0, lam=1.0, whiten_advantages=False, reward_clip=None))
    trainer.train()
    rollout = trainer.rollouts[0]
    for row, answer in enumerate(rollout.completions()):
        ended = answer[-1] == tokenizer.eos_token_id
        assert rollout.ended[row] == ended
        assert tokenizer.eos_token_id not in answer[:-1]
        # With gamma = lam = 1 and no KL penalty, every return is the score.
        torch.testing.assert_close(
            rollout.returns[row, : len(answer)], rollout.scores[row].expand(len(answer)), atol=1e-5, rtol=1e-5
        )
        assert not rollout.returns[row, len(answer) :].any()


def test_scores_log_probabilities_and_values_do_not_depend_on_padding_or_batch_mates(make_trainer):
    trainer = watching(make_trainer(max_steps=1))
    reward_model = copy.deepcopy(trainer.collector.rewards[0].model)
    policy, value_model = copy.deepcopy(trainer.model.policy).eval(), copy.deepcopy(trainer.model.value_model).eval()
    trainer.train()
    rollout = trainer.rollouts[0]
    width = rollout.completion_width
    assert rollout.attention_mask[:, :-width].sum(dim=1).unique().numel() > 1, "prompts of one length test nothing"
    for row in range(len(rollout.input_ids)):
        alone = rollout.input_ids[row][rollout.attention_mask[row] == 1].unsqueeze(0)
        length = int(rollout.completion_mask[row].sum())
        with torch.no_grad():
            score = reward_model(alone).logits.squeeze()
            answer = torch.ones(1, length, dtype=torch.bool)
            logprobs, _ = completion_logprobs(policy, alone, torch.ones_like(alone), answer, temperature=1.0)
            hidden = value_model.transformer(alone).last_hidden_state
            values = value_model.score(hidden)[0, -length - 1 : -1, 0]
        torch.testing.assert_close(rollout.scores[row], score, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rollout.logprobs[row, :length], logprobs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rollout.values[row, :length], values, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_does_not_change_the_step(make_trainer, layout):
    weights, block_calls = [], []
    for options in (
        dict(),
        dict(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}),
        dict(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}),
    ):
        trainer = make_trainer(layout, max_steps=2, num_ppo_epochs=1, optim="sgd", learning_rate=0.1, **options)
        calls = []
        backbones = [
            module
            for name, module in trainer.model.named_modules()
            if name.endswith(("policy.transformer", "model.transformer"))
        ]
        for backbone in backbones:
            # Unlike a forward hook, the norm's counts recomputation in every mode and nothing else.
            backbone.h[0].ln_1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer.train()
        block_calls.append(len(calls))
        weights.append({name: parameter.detach() for name, parameter in trainer.model.named_parameters()})
    # Two steps, in which each learning pass, policy's and critic's, is recomputed once; a value head has no own pass.
    recomputed = 2 if layout == "value head" else 4
    assert block_calls[1] == block_calls[2] == block_calls[0] + recomputed
    for other in weights[1:]:
        for name in weights[0]:
            torch.testing.assert_close(other[name], weights[0][name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_penalty_for_a_missing_end_is_subtracted_after_the_clip(make_trainer, tokenizer):
    # Every score is -9, clipped to -5; without an end -2 more. gamma = lam = 1 and no KL: every return is that sum.
    trainer = watching(
        make_trainer(
            models=dict(
                reward_model=lambda prompts, completions, **columns: [-9.0] * len(prompts),
                value_model=copy.deepcopy(make_trainer().model.value_model),
            ),
            max_steps=1,
            max_completion_length=2,
            kl_coef=0.0,
            lam=1.0,
            reward_clip=5.0,
            missing_eos_penalty=2.0,
        )
    )
    trainer.train()
    rollout = trainer.rollouts[0]
    assert not rollout.ended.all()
    for row, ended in enumerate(rollout.ended.tolist()):
        returns = rollout.returns[row][rollout.completion_mask[row]]
        torch.testing.assert_close(returns, torch.full_like(returns, -5.0 if ended else -7.0))


def test_the_first_weights_of_an_adapter_depend_on_the_seed_alone(make_trainer):
    adapters = []
    for earlier in (1, 2):
        torch.manual_seed(earlier)
        model = make_trainer("lora").model
        adapters.append([parameter for name, parameter in model.named_parameters() if "lora_A" in name])
    assert all(torch.equal(first, second) for first, second in zip(*adapters, strict=True))


def test_gradient_accumulation_does_not_change_the_step(make_trainer):
    weights = []
    for options in (
        dict(per_device_train_batch_size=4, num_rollout_batches=1),
        dict(per_device_train_batch_size=1, num_rollout_batches=4, gradient_accumulation_steps=4),
    ):
        # SGD, so that the step is the gradient; one generation batch, so that the samples are the same.
        trainer = make_trainer(
            generation_batch_size=4, num_ppo_epochs=1, max_steps=1, optim="sgd", max_grad_norm=0.0, **options
        )
        trainer.train()
        weights.append({name: parameter.detach() for name, parameter in trainer.model.named_parameters()})
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], atol=1e-6, rtol=1e-5, msg=name)


def test_the_saved_policy_and_critic_load_with_from_pretrained(make_trainer, tmp_path, policy, layout):
    trainer = make_trainer(layout, max_steps=4)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    if layout in ("lora", "one backbone"):
        loaded = PeftModel.from_pretrained(copy.deepcopy(policy), tmp_path / "saved")
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.randint(10, 200, (1, 9))
    models = trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, models.policy(ids).logits)
        values = models(ids, torch.ones_like(ids), completion_mask=torch.ones(1, 8, dtype=torch.bool))["values"]
        if layout == "value head":
            head = load_file(tmp_path / "saved" / "value_head.safetensors")["weight"]
            expected = (loaded.transformer(ids).last_hidden_state @ head.T).squeeze(-1)
        else:
            critic = load_with_adapter(
                AutoModelForSequenceClassification, str(tmp_path / "saved" / "value_model"), num_labels=1
            )[0].eval()
            critic = critic.get_base_model() if layout == "one backbone" else critic
            expected = critic.score(critic.transformer(ids).last_hidden_state).squeeze(-1)
        torch.testing.assert_close(values, expected[:, :-1])


def test_switching_adapters_off_leaves_them_trainable(make_trainer, policy):
    model = make_trainer("lora").model.policy.eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    ids = torch.randint(10, 200, (1, 9))
    with torch.no_grad():
        with selected_adapter(model, None):
            off = model(ids).logits
        torch.testing.assert_close(off, policy.eval()(ids).logits)
        assert not torch.allclose(model(ids).logits, off)
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


def test_a_python_reward_is_learnt_and_sees_the_columns_of_the_prompts(make_trainer, reward_model, tokenizer, prompts):
    seen = []

    def shorter_is_better(prompts, completions, mood, **columns):
        seen.append((prompts, mood))
        return [-float(len(completion)) for completion in completions]

    data = prompts.add_column("mood", [f"mood {index}" for index in range(len(prompts))])
    trainer = make_trainer(
        models=dict(reward_model=shorter_is_better, value_model=copy.deepcopy(reward_model), eval_dataset=data),
        data=data,
        max_steps=60,
        per_device_train_batch_size=6,
        learning_rate=5e-3,
        kl_coef=0.0,
        reward_clip=None,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_reward/mean"] > before["eval_reward/mean"] + 2
    assert after["eval_win_rate"] > before["eval_win_rate"] == 0.5
    moods = dict(zip(data["prompt"], data["mood"], strict=True))
    assert all(
        moods[prompt] == mood for batch, batch_moods in seen for prompt, mood in zip(batch, batch_moods, strict=True)
    )


def test_the_error_of_a_value_head_moves_the_policys_backbone_and_that_of_other_critics_does_not(make_trainer, layout):
    weights = []
    for vf_coef in (0.0, 1.0):
        trainer = make_trainer(layout, max_steps=2, vf_coef=vf_coef, optim="sgd", learning_rate=0.1, max_grad_norm=0.0)
        trainer.train()
        weights.append({n: p.detach() for n, p in trainer.model.named_parameters() if not trainer.model.is_critic(n)})
    # A head that starts at zero hands nothing back in the first step, but in the second it does.
    moved = {name for name, tensor in weights[0].items() if not torch.allclose(tensor, weights[1][name], atol=1e-7)}
    assert bool(moved) == (layout == "value head")


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(max_completion_length=100),
            r"\(48\) \+ max_completion_length \(100\) = 148 is more than the 128 positions of model",
        ),
        (dict(per_device_train_batch_size=8), r"= 16 prompts; the training set has 12"),
        (dict(gradient_accumulation_steps=3), "multiple of gradient_accumulation_steps.*=2.*=3"),
        (dict(temperature=0.0), "temperature must be greater than 0; got 0.0"),
        (dict(kl_estimator="k9"), "kl_estimator must be one of k1, k2, k3; got 'k9'"),
        (dict(max_prompt_length=3), r"at most max_prompt_length = 3 tokens"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_models_that_do_not_fit_are_refused(make_trainer, tiny_config):
    config = copy.deepcopy(tiny_config)
    # One row less than the tokenizer has tokens.
    config.vocab_size -= 1
    config.num_labels = 1
    other = AutoModelForSequenceClassification.from_config(config)
    message = "PPOTrainer: reward_model.*another tokenizer than the policy's needs that as reward_processing_class"
    with pytest.raises(ValueError, match=message):
        make_trainer(models=dict(reward_model=other, value_model=make_trainer().model.value_model))
