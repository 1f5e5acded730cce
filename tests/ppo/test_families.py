"""Models of other families than GPTPangu learn in every layout."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)


@pytest.fixture(params=["gpt2", "llama", "qwen2"])
def config(request, tokenizer):
    size = dict(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    if request.param == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **size)
    size |= dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    if request.param == "llama":
        return LlamaConfig(**size)
    return Qwen2Config(num_key_value_heads=1, max_position_embeddings=128, **size)


@pytest.fixture
def family_models(config):
    """Policy and reward model of a layout, on equal backbones."""

    def models(layout: str) -> dict:
        torch.manual_seed(1)
        policy = AutoModelForCausalLM.from_config(config)
        classifier = AutoModelForSequenceClassification.from_config(config)
        torch.nn.init.normal_(classifier.score.weight, std=0.5)
        if layout == "one backbone":
            getattr(classifier, classifier.base_model_prefix).load_state_dict(
                getattr(policy, policy.base_model_prefix).state_dict()
            )
            classifier = get_peft_model(classifier, LoraConfig(r=4, task_type="SEQ_CLS", init_lora_weights=False))
        return dict(model=policy, reward_model=classifier)

    return models


def test_log_probabilities_scores_and_values_are_those_of_each_answer_alone(make_trainer, family_models, layout):
    trainer = make_trainer(layout, models=family_models(layout), max_steps=1)
    policy, reward_model = (copy.deepcopy(model).eval() for model in family_models(layout).values())
    value_head = copy.deepcopy(trainer.model.value_head) if hasattr(trainer.model, "value_head") else reward_model.score
    trainer.train()
    rollout = trainer.passes.rollout
    # Left-padded rows must be scored as they were sampled: from their own first token.
    assert rollout.attention_mask[:, 0].min() == 0
    judge = reward_model.get_base_model() if layout == "one backbone" else reward_model
    judging_backbone = getattr(judge, judge.base_model_prefix)
    backbone = getattr(policy, policy.base_model_prefix) if layout == "value head" else judging_backbone
    for row, answer in enumerate(rollout.completions()):
        alone, length = rollout.input_ids[row][rollout.attention_mask[row] == 1].unsqueeze(0), len(answer)
        with torch.no_grad():
            logprobs = policy(alone).logits[0, -length - 1 : -1].log_softmax(-1)
            score = judge.score(judging_backbone(alone).last_hidden_state)[0, -1, 0]
            values = value_head(backbone(alone).last_hidden_state)[0, -length - 1 : -1, 0]
        expected = logprobs.gather(-1, torch.tensor(answer).unsqueeze(-1)).squeeze(-1)
        for found in (rollout.logprobs, rollout.ref_logprobs):
            torch.testing.assert_close(found[row, :length], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rollout.scores[row], score, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rollout.values[row, :length], values, atol=1e-5, rtol=1e-5)


def test_every_trainable_tensor_learns(make_trainer, family_models, layout):
    trainer = make_trainer(layout, models=family_models(layout), max_steps=4)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[0]["policy/approx_kl"] == 0
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
