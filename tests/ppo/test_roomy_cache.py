"""A cache with room gives what transformers' own gives, and copies nothing that it need not."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.cache_utils import DynamicLayer

from pangu_trl.ppo.generation.roomy_cache import RoomyLayer, make_roomy_cache

SMALL = dict(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 3, generator=generator), torch.randn(rows, 2, tokens, 5, generator=generator)


def test_it_holds_what_transformers_own_layer_holds_whatever_happens_to_rows_and_tokens():
    ours, theirs = RoomyLayer(room=2), DynamicLayer()
    steps = [
        ("update", states(4, 3, 0)),
        ("update", states(4, 1, 1)),
        ("batch_select_indices", (torch.tensor([3, 0, 1]),)),
        ("update", states(3, 1, 2)),
        # More than the room that is left.
        ("update", states(3, 4, 3)),
        ("reorder_cache", (torch.tensor([2, 2, 0]),)),
        ("update", states(3, 1, 4)),
        ("crop", (-3,)),
        ("update", states(3, 1, 5)),
        ("batch_repeat_interleave", (2,)),
        ("batch_select_indices", (torch.tensor([5, 1]),)),
        ("update", states(2, 2, 6)),
        ("reset", ()),
        ("update", states(1, 2, 7)),
    ]
    for method, arguments in steps:
        found, expected = (getattr(layer, method)(*arguments) for layer in (ours, theirs))
        if method == "update":
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), method
        assert ours.get_seq_length() == theirs.get_seq_length(), method


def test_tokens_before_stay_where_they_are():
    layer = RoomyLayer(room=3)
    layer.update(*states(2, 4, 0))
    place = layer.keys.data_ptr()
    for step in range(3):
        layer.update(*states(2, 1, step))
        assert layer.keys.data_ptr() == place
    layer.update(*states(2, 1, 9))
    assert layer.keys.data_ptr() != place and layer.get_seq_length() == 8


def test_models_that_keep_something_else_get_none():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20))
    assert [type(layer) for layer in make_roomy_cache(gpt2, 5).layers] == [RoomyLayer] * 2
    # A sliding window keeps the last tokens only.
    assert make_roomy_cache(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)), 5) is None
    assert (
        make_roomy_cache(OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_layer=2, n_embd=8, n_head=2, vocab_size=20)), 5) is None
    )
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    assert make_roomy_cache(t5, 5) is None
