"""`torch.export` and `torch.compile` without a graph break. Compiling takes a minute, so most of it is marked slow."""

import pytest
import torch
from transformers import CompileConfig, StaticCache

import pangu_trl

GREEDY = dict(max_new_tokens=10, do_sample=False, eos_token_id=None)


@torch.no_grad()
def test_an_exported_program_equals_the_model_at_another_length(model, batch):
    length = torch.export.Dim("length", min=2, max=64)
    example = {name: tensor[:, -5:].contiguous() for name, tensor in batch.items()}
    program = torch.export.export(
        model,
        (),
        dict(example, use_cache=False),
        dynamic_shapes={"input_ids": {1: length}, "attention_mask": {1: length}, "use_cache": None},
        strict=False,
    )
    real = batch["attention_mask"] == 1
    logits = program.module()(**batch, use_cache=False).logits
    torch.testing.assert_close(logits[real], model(**batch).logits[real], atol=5e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_steps_derive_their_positions_from_the_mask_and_a_static_cache(model, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = model(**batch).logits[:, 7:]
    cache = StaticCache(config=model.config, max_cache_len=12)
    model(ids[:, :7], attention_mask=mask[:, :7], past_key_values=cache)
    step, logits = torch.compile(model, fullgraph=True), []
    for column in (7, 8):
        so_far = torch.zeros(3, 12, dtype=torch.long)
        so_far[:, : column + 1] = mask[:, : column + 1]
        output = step(ids[:, column : column + 1], attention_mask=so_far, past_key_values=cache)
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=5e-5, rtol=1e-5)


@pytest.mark.slow
def test_compiled_generation_with_a_static_cache_equals_greedy(model, batch):
    compile_config = CompileConfig(fullgraph=True)
    compile_config._compile_all_devices = True  # On a CPU generate stays eager without it, and says nothing.
    expected = model.generate(**batch, **GREEDY)[:, 9:]
    compiled = []
    original = torch.compile
    torch.compile = lambda *args, **kwargs: compiled.append(kwargs) or original(*args, **kwargs)
    try:
        options = dict(cache_implementation="static", compile_config=compile_config)
        output = model.generate(**batch, **GREEDY, **options)[:, 9:]
    finally:
        torch.compile = original
    assert compiled, "generate did not compile"
    assert output.tolist() == expected.tolist()


@pytest.mark.slow
def test_a_compiled_training_step_equals_the_plain_one_with_padding_and_with_packing(batch, assert_same_gradients):
    torch.manual_seed(0)
    config = dict(vocab_size=1024, hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=64)
    model = pangu_trl.GPTPanguForCausalLM(
        pangu_trl.GPTPanguConfig(**config, initializer_range=0.2, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0)
    )
    labels = batch["input_ids"]
    packed = dict(
        input_ids=batch["input_ids"][:1],
        position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]]),
        attention_mask=torch.ones(1, 9, dtype=torch.long),
        labels=labels[:1],
    )
    compiled = torch.compile(model, fullgraph=True)
    for inputs in (dict(batch, labels=labels), packed, dict(packed, attention_mask=None)):
        gradients = []
        for module in (model, compiled):
            model.zero_grad()
            module(**inputs, use_cache=False).loss.backward()
            gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        assert_same_gradients(gradients[1], gradients[0], relative=1e-4)
