"""GPTPangu against golden numbers that the published implementation gave (tests/fixtures/README.md)."""

import json

import pytest
import torch

import pangu_trl

TOLERANCE = dict(atol=2e-4, rtol=0)
MODELS = ["tiny_gptpangu", "tiny_gptpangu_tied", "tiny_small_embeddings"]


@pytest.fixture
def golden_json(fixtures):
    return lambda name: json.loads((fixtures / name / "golden.json").read_text("utf-8"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_and_last_hidden_state_equal_the_reference(load_golden, name, attention):
    model, golden = load_golden(name, attention)
    assert isinstance(model, pangu_trl.GPTPanguForCausalLM)
    for case in ("nopad", "full_length"):
        output = model(golden[f"{case}.input_ids"], output_hidden_states=True)
        torch.testing.assert_close(output.logits, golden[f"{case}.logits"], **TOLERANCE)
        if case == "nopad":
            torch.testing.assert_close(output.hidden_states[-1], golden["nopad.last_hidden_state"], **TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_hidden_states_equal_the_reference_but_for_the_one_before_the_top_block(load_golden, name):
    """The reference gives the input of the top block after `ln_f`; transformers records the block below."""
    model, golden = load_golden(name)
    hidden_states = model(golden["nopad.input_ids"], output_hidden_states=True).hidden_states
    num_layers = model.config.num_layers
    assert len(hidden_states) == num_layers + 1
    for layer, expected in enumerate(golden["nopad.hidden_states"]):
        seen = model.transformer.ln_f(hidden_states[layer]) if layer == num_layers - 1 else hidden_states[layer]
        torch.testing.assert_close(seen, expected, **TOLERANCE)


@torch.no_grad()
def test_attention_probabilities_equal_the_reference(load_golden):
    model, golden = load_golden("tiny_gptpangu", "eager")
    attentions = model(golden["nopad.input_ids"], output_attentions=True).attentions
    torch.testing.assert_close(torch.stack(attentions), golden["nopad.attentions"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_right_padding_equals_the_reference_at_real_tokens(load_golden, name, mask_dtype):
    model, golden = load_golden(name)
    real = golden["rightpad.attention_mask"].bool()
    output = model(golden["rightpad.input_ids"], attention_mask=real.to(mask_dtype), output_hidden_states=True)
    last_hidden_state = golden["rightpad.last_hidden_state_boolmask"]
    torch.testing.assert_close(output.logits[real], golden["rightpad.logits_boolmask"][real], **TOLERANCE)
    torch.testing.assert_close(output.logits[real], golden["rightpad.logits_int64mask"][real], **TOLERANCE)
    torch.testing.assert_close(output.hidden_states[-1][real], last_hidden_state[real], **TOLERANCE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_left_padding_equals_the_reference_with_and_without_given_positions(load_golden, attention):
    model, golden = load_golden("leftpad", attention)
    mask, real = golden["attention_mask"], golden["attention_mask"].bool()
    for position_ids in (None, golden["position_ids"]):
        output = model(golden["input_ids"], attention_mask=mask, position_ids=position_ids, output_hidden_states=True)
        for expected in ("logits_boolmask_position_ids", "logits_rows_unpadded"):
            torch.testing.assert_close(output.logits[real], golden[expected][real], **TOLERANCE)
        last_hidden_state = golden["last_hidden_state_boolmask_position_ids"][real]
        torch.testing.assert_close(output.hidden_states[-1][real], last_hidden_state, **TOLERANCE)
        assert torch.isfinite(output.logits).all()


@torch.no_grad()
def test_positions_counted_over_the_padding_are_still_there_for_who_asks(load_golden):
    """The published code counts 0..T-1 over left padding when it gets no positions; here they must be given."""
    model, golden = load_golden("leftpad")
    mask, real = golden["attention_mask"], golden["attention_mask"].bool()
    counted = torch.arange(mask.shape[1]).unsqueeze(0)
    logits = model(golden["input_ids"], attention_mask=mask, position_ids=counted).logits
    torch.testing.assert_close(logits[real], golden["logits_boolmask_no_position_ids"][real], **TOLERANCE)


@torch.no_grad()
def test_given_positions_equal_the_reference(load_golden):
    model, golden = load_golden("tiny_gptpangu")
    logits = model(golden["nopad.input_ids"], position_ids=golden["position_ids.position_ids"]).logits
    torch.testing.assert_close(logits, golden["position_ids.logits"], **TOLERANCE)


@torch.no_grad()
def test_token_types_and_head_masks_of_the_reference_are_refused(load_golden):
    """The reference looks token types up in the word embedding; `inputs_embeds` does the same."""
    model, golden = load_golden("tiny_gptpangu")
    ids, token_types = golden["nopad.input_ids"], golden["token_type.token_type_ids"]
    with pytest.raises(ValueError, match="token_type_ids"):
        model(ids, token_type_ids=token_types)
    with pytest.raises(ValueError, match="head_mask"):
        model(ids, head_mask=golden["head_mask.head_mask"])
    embed = model.get_input_embeddings()
    logits = model(inputs_embeds=embed(ids) + embed(token_types)).logits
    torch.testing.assert_close(logits, golden["token_type.logits"], **TOLERANCE)


@torch.no_grad()
def test_cached_keys_values_and_logits_equal_the_reference(load_golden, golden_json):
    model, golden = load_golden("tiny_gptpangu")
    ids, prefix = golden["nopad.input_ids"], golden_json("tiny_gptpangu")["cache.prefix_length"]
    cache = model(ids[:, :prefix], use_cache=True).past_key_values
    tail = model(ids[:, prefix:], past_key_values=cache)
    torch.testing.assert_close(tail.logits, golden["cache.logits_tail"], **TOLERANCE)
    for layer, name in ((0, "layer0"), (-1, "last")):
        torch.testing.assert_close(tail.past_key_values.layers[layer].keys, golden[f"cache.key_{name}"], **TOLERANCE)
        torch.testing.assert_close(
            tail.past_key_values.layers[layer].values, golden[f"cache.value_{name}"], **TOLERANCE
        )


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("case", ["greedy0", "greedy1"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_generation_and_the_logits_of_its_steps_equal_the_reference(load_golden, name, case, use_cache):
    model, golden = load_golden(name)
    prompt = golden[f"{case}.prompt"]
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, use_cache=use_cache)
    output = model.generate(prompt, **options, return_dict_in_generate=True, output_logits=True)
    assert output.sequences.tolist() == golden[f"{case}.output"].tolist()
    torch.testing.assert_close(torch.stack(output.logits, dim=1), golden[f"{case}.step_logits"], **TOLERANCE)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64])
def test_greedy_generation_of_a_left_padded_batch_equals_that_of_single_rows(load_golden, mask_dtype):
    """With an int64 mask the published code generates other tokens (`generate.batch_int64mask_ids`)."""
    model, golden = load_golden("leftpad")
    mask = golden["attention_mask"].to(mask_dtype)
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)
    output = model.generate(golden["input_ids"], attention_mask=mask, **options)[:, -12:]
    assert output.tolist() == golden["generate.single_row_ids"].tolist()
    assert output.tolist() == golden["generate.batch_boolmask_ids"].tolist()
    assert output.tolist() != golden["generate.batch_int64mask_ids"].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_norms_equal_the_reference(load_golden, golden_json, name):
    model, golden = load_golden(name)
    numbers = golden_json(name)
    model.double()
    loss = model(golden["nopad.input_ids"], labels=golden["nopad.input_ids"]).loss
    loss.backward()
    assert loss.item() == pytest.approx(numbers["nopad.loss_float64"], abs=1e-6)
    norms = {parameter_name: parameter.grad.norm().item() for parameter_name, parameter in model.named_parameters()}
    expected = numbers["nopad.grad_l2_norms_float64"]
    # A tied head is one parameter under the name of the embedding.
    assert norms.keys() == {key for key in expected if key != "lm_head.weight" or not model.config.tie_word_embeddings}
    for parameter_name, norm in norms.items():
        assert norm == pytest.approx(expected[parameter_name], rel=1e-5, abs=1e-9), parameter_name


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_labels_of_minus_100_do_what_the_pad_id_does_in_the_reference(load_golden, golden_json, name):
    """The published code skips targets equal to the pad id, even inside a text, and fails on -100."""
    model, golden = load_golden(name)
    numbers, pad = golden_json(name), model.config.pad_token_id
    ids, mask = golden["rightpad.input_ids"], golden["rightpad.attention_mask"]
    for key, labels in (
        ("rightpad.loss_labels_eq_input_ids_boolmask", ids),
        ("rightpad.loss_labels_prompt_masked_boolmask", golden["rightpad.labels_prompt_masked_with_pad_id"]),
    ):
        loss = model(ids, attention_mask=mask, labels=labels.masked_fill(labels == pad, -100)).loss
        assert loss.item() == pytest.approx(numbers[key], abs=2e-4), key
    inside = golden["pad_id_inside_text.input_ids"]
    as_published = model(inside, labels=inside.masked_fill(inside == pad, -100)).loss.item()
    assert as_published == pytest.approx(numbers["pad_id_inside_text.loss"], abs=2e-4)
    assert abs(model(inside, labels=inside).loss.item() - as_published) > 1e-3
