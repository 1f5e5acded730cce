"""What a model reads from its cache, with padding before the text."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MiniMaxConfig, PreTrainedModel

from pangu_trl.answers.sampling import SamplingConfig, sample_answers
from pangu_trl.models.cached_reading import reads_right_from_cache

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def make_model(config_class: type, tokenizer, **options) -> PreTrainedModel:
    torch.manual_seed(1)
    roles = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = config_class(vocab_size=len(tokenizer), max_position_embeddings=160, **SIZES, **roles, **options)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim >= 2 else 1)
    return model


def minimax(tokenizer, *layer_types: str) -> PreTrainedModel:
    experts = dict(num_local_experts=2, num_experts_per_tok=1)
    return make_model(MiniMaxConfig, tokenizer, layer_types=list(layer_types), head_dim=16, **experts)


def test_a_cache_that_counts_at_a_layer_without_keys_reads_padding(tokenizer, caplog):
    model = minimax(tokenizer, "linear_attention", "full_attention")
    with caplog.at_level(logging.WARNING):
        assert not reads_right_from_cache(model, tokenizer)
        assert not reads_right_from_cache(model, tokenizer)
    (said,) = [record.getMessage() for record in caplog.records if "cache" in record.getMessage()]
    assert said.startswith("MiniMaxForCausalLM reads padding for text once it reads from its cache")


def test_other_caches_are_read_right(tokenizer, policy, caplog):
    models = [
        policy,
        make_model(LlamaConfig, tokenizer),
        minimax(tokenizer, "full_attention", "linear_attention"),
        minimax(tokenizer, "linear_attention", "linear_attention"),
    ]
    assert [reads_right_from_cache(model.eval(), tokenizer) for model in models] == [True] * 4
    assert not caplog.records


@pytest.mark.parametrize("batch_size", [1, 6])
def test_an_answer_is_what_the_model_says_whatever_is_sampled_beside_it(batch_size, tokenizer, prompts):
    """Token by token from the whole text without padding, which asks no cache at all."""
    model = minimax(tokenizer, "linear_attention", "full_attention")
    texts = [prompt[:length] for prompt, length in zip(prompts["prompt"], (2, 3, 4, 6, 8, 10), strict=False)]
    found = sample_answers(model, tokenizer, texts, 1, SamplingConfig(max_new_tokens=8, temperature=0), batch_size, 0)
    for text, (answer,) in zip(texts, found, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        said = []
        while len(said) < 8 and tokenizer.eos_token_id not in said:
            with torch.no_grad():
                said.append(model(torch.tensor([ids + said]), use_cache=False).logits[0, -1].argmax().item())
        assert answer.text == tokenizer.decode(said, skip_special_tokens=True)
