"""Answers, their scores and their log-probabilities."""

import copy

import pytest
import torch
from peft import LoHaConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from pangu_trl.models.modes import disable_dropout
from pangu_trl.models.score_head import innermost
from pangu_trl.ppo.actor_critic.token_logprobs import token_logprobs
from pangu_trl.ppo.generation.generate import generate_rollout
from pangu_trl.ppo.reward_sources import ModelReward
from pangu_trl.ppo.rollout import Rollout
from pangu_trl.ppo.scoring import score_completions


def rollout_of(prompts: list[list[int]], answers: list[list[int]], pad_token_id: int) -> Rollout:
    """Pads by hand: prompts on the left, answers on the right."""
    width, completion_width = max(map(len, prompts)), max(map(len, answers))
    rows, masks = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        left, right = width - len(prompt), completion_width - len(answer)
        rows.append([pad_token_id] * left + prompt + answer + [pad_token_id] * right)
        masks.append([0] * left + [1] * (len(prompt) + len(answer)) + [0] * right)
    attention_mask = torch.tensor(masks)
    return Rollout(
        input_ids=torch.tensor(rows),
        attention_mask=attention_mask,
        completion_mask=attention_mask[:, width:].bool(),
        ended=torch.zeros(len(rows), dtype=torch.bool),
    )


def test_an_answer_has_ended_with_any_of_several_stop_tokens():
    answers = [[30, 8], [30, 9], [30, 31], [9, 30], [8]]
    rollout = Rollout.from_answers([[20]] * 5, answers, stop_token_ids=[8, 9], pad_token_id=6, device="cpu")
    assert rollout.ended.tolist() == [True, True, False, False, True]


def _scores(reward_model, tokenizer, rollout: Rollout) -> torch.Tensor:
    source = ModelReward("model", 1.0, reward_model)
    examples = [{"prompt": ""}] * len(rollout.input_ids)
    return score_completions([source], None, tokenizer, rollout, examples, batch_size=2)[:, 0]


def test_selected_rows_end_in_the_last_column_and_go_back_to_their_place(tokenizer):
    pad = tokenizer.pad_token_id
    # Prompts of 1, 3 and 2 tokens, answers of 3, 1 and 2.
    rollout = rollout_of([[20], [21, 22, 23], [24, 25]], [[30, 31, 32], [33], [34, 35]], pad)
    rollout.logprobs = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0], [5.0, 6.0, 0.0]])
    rollout.scores = torch.tensor([7.0, 8.0, 9.0])
    batch = rollout.select(torch.tensor([2, 1]))
    assert batch.input_ids.tolist() == [[24, 25, 34, 35], [21, 22, 23, 33]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1]] * 2
    assert batch.completion_mask.tolist() == [[True, True], [False, True]]
    assert batch.logprobs.tolist() == [[5.0, 6.0], [0.0, 4.0]]
    assert batch.scores.tolist() == [9.0, 8.0]
    assert rollout.in_place_of(torch.tensor([2, 1]), batch.logprobs).tolist() == [[5.0, 6.0, 0.0], [4.0, 0.0, 0.0]]
    shortest = rollout.select(torch.tensor([0, 1]))
    assert shortest.attention_mask.tolist() == [[1, 1, 1, 1]] * 2


def test_scores_equal_the_models_own_where_no_answer_ends_with_the_pad_token(reward_model, tokenizer):
    rollout = rollout_of([[20, 21], [22]], [[30, 31, 32], [33]], tokenizer.pad_token_id)
    with torch.no_grad():
        own = reward_model(input_ids=rollout.input_ids, attention_mask=rollout.attention_mask).logits.squeeze(-1)
    torch.testing.assert_close(_scores(reward_model, tokenizer, rollout), own)


def test_an_answer_that_ends_with_the_pad_token_is_scored_at_that_token(reward_model, tokenizer):
    pad = tokenizer.pad_token_id
    rollout = rollout_of([[20, 21], [22]], [[30, 31, 32], [33, pad]], pad)
    alone = torch.tensor([[22, 33, pad]])
    with torch.no_grad():
        expected = reward_model.score(reward_model.transformer(alone).last_hidden_state)[0, -1, 0]
        before_pad = reward_model.score(reward_model.transformer(alone).last_hidden_state)[0, -2, 0]
    score = _scores(reward_model, tokenizer, rollout)[1]
    torch.testing.assert_close(score, expected)
    assert not torch.allclose(score, before_pad)


def test_the_policys_own_generation_settings_do_not_reach_the_rollouts(make_trainer, layout):
    answers = []
    for settings in ({}, dict(repetition_penalty=5.0, min_new_tokens=8, no_repeat_ngram_size=1)):
        trainer = make_trainer(layout)
        config = GenerationConfig(
            eos_token_id=trainer.processing_class.eos_token_id, do_sample=bool(settings), **settings
        )
        base = innermost(trainer.model.policy)
        base.generation_config = config
        prompts = [row["prompt_input_ids"] for row in trainer.train_dataset]
        torch.manual_seed(0)
        rollout = generate_rollout(trainer.model, trainer.processing_class, prompts, trainer.args, trainer.accelerator)
        answers.append(rollout.completions())
        assert base.generation_config is config
    assert answers[0] == answers[1]


@pytest.mark.parametrize("engine", ["generate", "continuous"])
def test_greedy_answers_are_those_of_the_model_alone(make_trainer, layout, engine):
    trainer = make_trainer(layout, top_k=1, generation_batch_size=5, rollout_engine=engine)
    policy = trainer.model.policy
    # Large weights, so that the best token is no matter of rounding, and another one at every place.
    for name, parameter in policy.named_parameters():
        if "lora_" not in name and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    prompts = [row["prompt_input_ids"] for row in trainer.train_dataset]
    stops = {trainer.processing_class.eos_token_id, *range(0, 250, 6)}
    policy.generation_config.eos_token_id = sorted(stops)
    rollout = generate_rollout(trainer.model, trainer.processing_class, prompts, trainer.args, trainer.accelerator)
    lengths = {len(answer) for answer in rollout.completions()}
    assert len(lengths) > 2, "answers of one length test nothing"
    for prompt, answer in zip(prompts, rollout.completions(), strict=True):
        tokens = greedy(policy, prompt, 8)
        expected = next((tokens[: place + 1] for place, token in enumerate(tokens) if token in stops), tokens)
        assert answer == expected


def greedy(policy, prompt: list[int], count: int) -> list[int]:
    """The best tokens one after the other, without cache or padding."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(policy.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


SIZES = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
CHANCE = {
    "dropout as a function": lambda: OPTForCausalLM(
        OPTConfig(ffn_dim=64, word_embed_proj_dim=32, dropout=0.3, attention_dropout=0.3, layerdrop=0.3, **SIZES)
    ),
    "noise of routers": lambda: MixtralForCausalLM(
        MixtralConfig(num_local_experts=2, num_key_value_heads=2, router_jitter_noise=0.3, **SIZES)
    ),
    "a dropout of another kind": lambda: with_another_dropout(LlamaForCausalLM(LlamaConfig(**SIZES))),
    "LoHa's, by adapter": lambda: get_peft_model(
        LlamaForCausalLM(LlamaConfig(**SIZES)),
        LoHaConfig(r=4, rank_dropout=0.5, module_dropout=0.5, target_modules=["q_proj"], init_weights=False),
    ),
}


class BlockDropout(torch.nn.Module):
    """As PEFT's BOFT has one: no dropout of torch, and its chance is called p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, states):
        return states * (torch.rand_like(states) >= self.p) if self.training else states


def with_another_dropout(model):
    model.model.norm = torch.nn.Sequential(model.model.norm, BlockDropout(0.5))
    return model


@pytest.mark.parametrize("make", CHANCE.values(), ids=CHANCE)
def test_chance_in_training_mode_is_switched_off(make):
    torch.manual_seed(0)
    model = make().train()
    ids = torch.arange(10, 20).unsqueeze(0)
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    disable_dropout(model)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert torch.equal(model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


class LargestTensor(TorchDispatchMode):
    """Size of the largest tensor that the body makes; views of older ones do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.storages = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_need_no_second_tensor_of_the_size_of_the_logits(dtype, temperature, monkeypatch):
    torch.manual_seed(0)
    logits, input_ids = torch.randn(4, 6, 50, dtype=dtype), torch.randint(50, (4, 9))
    monkeypatch.setattr("pangu_trl.ppo.actor_critic.token_logprobs.PIECE", 6 * 50)
    with torch.no_grad(), LargestTensor() as largest:
        logprobs, entropy = token_logprobs(logits.flatten(0, 1), input_ids[:, -6:].flatten(), temperature)
    assert largest.numel <= 6 * 50
    logprobs, entropy = logprobs.view(4, 6), entropy.view(4, 6)
    expected = (logits.double() / temperature).log_softmax(-1)
    torch.testing.assert_close(
        logprobs, expected.gather(-1, input_ids[:, -6:, None]).squeeze(-1).float(), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1).float(), atol=1e-5, rtol=1e-5)


def test_log_probabilities_with_and_without_gradients_are_the_same_bits():
    torch.manual_seed(0)
    logits, tokens = torch.randn(24, 50, requires_grad=True), torch.randint(50, (24,))
    with torch.no_grad():
        without, _ = token_logprobs(copy.deepcopy(logits), tokens, 0.7)
    assert torch.equal(token_logprobs(logits, tokens, 0.7)[0], without)


def test_a_policy_that_samples_otherwise_than_it_scores_is_warned_of(make_trainer, monkeypatch, caplog):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert "log-probabilities of sampled tokens differ" not in caplog.text
    gaps = [entry["policy/sampling_gap"] for entry in trainer.state.log_history if "policy/sampling_gap" in entry]
    assert gaps[0] < 1e-5
    shifted = make_trainer(max_steps=1, padding_free=False)
    # Positions that start at the first column, as models count by themselves, are not those of `generate`.
    monkeypatch.setattr(
        "pangu_trl.ppo.actor_critic.token_logprobs.position_arguments",
        lambda model, mask: {"position_ids": torch.arange(mask.shape[1]).expand(mask.shape)},
    )
    for model in (shifted.model.policy, shifted.ref_model):
        # Embeddings of a size that makes positions matter, as those of a trained model do.
        torch.nn.init.normal_(model.transformer.wte.weight, std=0.5)
        torch.nn.init.normal_(model.transformer.wpe.weight, std=0.5)
    # Two models now.
    shifted.collector.reference_is_start = False
    shifted.train()
    assert "log-probabilities of sampled tokens differ" in caplog.text
