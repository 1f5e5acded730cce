"""GPTPangu against the golden numbers of the reference implementation, and against itself under padding and caching."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import pangu_trl

TOLERANCE = dict(atol=2e-4, rtol=0)


def load(fixtures: Path, name: str, attention: str = "sdpa"):
    golden = load_file(fixtures / name / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(fixtures / name, attn_implementation=attention).eval()
    return model, golden


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["tiny_gptpangu", "tiny_gptpangu_tied"])
@torch.no_grad()
def test_logits_and_hidden_states_equal_the_reference(fixtures, name, attention):
    model, golden = load(fixtures, name, attention)
    assert isinstance(model, pangu_trl.GPTPanguForCausalLM)
    output = model(golden["nopad.input_ids"], output_hidden_states=True)
    torch.testing.assert_close(output.logits, golden["nopad.logits"], **TOLERANCE)
    torch.testing.assert_close(output.hidden_states[-1], golden["nopad.last_hidden_state"], **TOLERANCE)
    full = model(golden["full_length.input_ids"]).logits
    torch.testing.assert_close(full, golden["full_length.logits"], **TOLERANCE)


@pytest.mark.parametrize("name", ["tiny_gptpangu", "tiny_gptpangu_tied"])
@torch.no_grad()
def test_right_padding_equals_the_reference_at_real_tokens(fixtures, name):
    model, golden = load(fixtures, name)
    mask = golden["rightpad.attention_mask"]
    logits = model(golden["rightpad.input_ids"], attention_mask=mask).logits
    torch.testing.assert_close(logits[mask == 1], golden["rightpad.logits_boolmask"][mask == 1], **TOLERANCE)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.int32])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_left_padding_equals_the_reference_with_positions_derived_from_the_mask(fixtures, attention, mask_dtype):
    model, golden = load(fixtures, "leftpad", attention)
    mask = golden["attention_mask"].to(mask_dtype)
    logits = model(golden["input_ids"], attention_mask=mask).logits
    real = golden["attention_mask"] == 1
    torch.testing.assert_close(logits[real], golden["logits_boolmask_position_ids"][real], **TOLERANCE)
    torch.testing.assert_close(logits[real], golden["logits_rows_unpadded"][real], **TOLERANCE)
    assert torch.isfinite(logits).all()


@torch.no_grad()
def test_greedy_generation_equals_the_reference_alone_and_in_a_left_padded_batch(fixtures):
    model, golden = load(fixtures, "tiny_gptpangu")
    for case in ("greedy0", "greedy1"):
        output = model.generate(golden[f"{case}.prompt"], max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert output.tolist() == golden[f"{case}.output"].tolist()
    model, golden = load(fixtures, "leftpad")
    output = model.generate(
        golden["input_ids"],
        attention_mask=golden["attention_mask"],
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
    )
    assert output[:, -12:].tolist() == golden["generate.single_row_ids"].tolist()


def test_loss_and_gradient_norms_equal_the_reference(fixtures):
    model, golden = load(fixtures, "tiny_gptpangu")
    numbers = json.loads((fixtures / "tiny_gptpangu" / "golden.json").read_text())
    model.double()
    loss = model(golden["nopad.input_ids"], labels=golden["nopad.input_ids"]).loss
    loss.backward()
    assert loss.item() == pytest.approx(numbers["nopad.loss_float64"], abs=1e-6)
    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    expected = numbers["nopad.grad_l2_norms_float64"]
    assert set(norms) == set(expected)
    for name, norm in norms.items():
        assert norm == pytest.approx(expected[name], rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradient_to_every_parameter(fixtures, use_reentrant):
    model, golden = load(fixtures, "tiny_gptpangu")
    ids = golden["nopad.input_ids"]
    model(ids, labels=ids).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model(ids, labels=ids, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], msg=name)


def test_a_position_beyond_the_tables_is_a_value_error(fixtures):
    model, _ = load(fixtures, "tiny_gptpangu_tied")
    with pytest.raises(ValueError, match=r"position 32 does not exist.*max_position_embeddings=32"):
        model(torch.ones(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model.transformer()


def test_sequence_classification_scores_do_not_depend_on_padding(fixtures, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(fixtures / "tiny_gptpangu", num_labels=1).eval()
    assert isinstance(model, pangu_trl.GPTPanguForSequenceClassification)
    ids = torch.randint(10, 1024, (1, 7))
    left = torch.cat([torch.full((1, 5), 6), ids], dim=1)
    right = torch.cat([ids, torch.full((1, 5), 6)], dim=1)
    with torch.no_grad():
        alone = model(ids).logits
        for padded in (left, right):
            torch.testing.assert_close(model(padded, attention_mask=(padded != 6).long()).logits, alone)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, alone)


def test_a_published_model_type_pangu_loads_as_gpt_pangu(fixtures, tmp_path):
    config = json.loads((fixtures / "tiny_gptpangu" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "pangu"}))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, pangu_trl.GPTPanguConfig)
    assert loaded.num_hidden_layers == loaded.num_layers == 4


def test_a_config_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="hidden_size must be divisible by num_heads; got hidden_size=30, num_heads=4"):
        pangu_trl.GPTPanguConfig(hidden_size=30, num_heads=4)
