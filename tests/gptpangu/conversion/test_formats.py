"""Every old format against the golden numbers, and back to the very same bits."""

import json

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pangu_trl.gptpangu.conversion.names import tensor_names

TOLERANCE = dict(atol=2e-4, rtol=0)
SAY = ("--num-heads", 3, "--vocab-size", 96)


def bin_tensors(folder):
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def megatron_rank(folder, rank=0, iteration="release"):
    path = folder / iteration / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
    return torch.load(path, weights_only=True)["model"]["language_model"]


def flat(node, keys=()):
    if isinstance(node, dict):
        return {name: leaf for key, value in node.items() for name, leaf in flat(value, (*keys, key)).items()}
    return {keys: node}


def test_names_of_all_formats_equal_the_golden_mapping(fixtures):
    for size, expected in json.loads((fixtures / "name_mapping.json").read_text()).items():
        names = {name.hf: name for name in tensor_names(int(size.removeprefix("num_layers_")))}
        golden = {entry["hf"]: entry for entry in expected if entry["hf"] != "lm_head.weight"}
        assert names.keys() == golden.keys()
        for hf, name in names.items():
            entry = golden[hf]
            assert (name.mindspore, list(name.megatron)) == (entry["numpy"], entry["megatron"])
            assert name.mindspore_transposed == entry["numpy_is_transposed"]


@pytest.mark.parametrize("source", ["mindspore-numpy", "megatron"])
@torch.no_grad()
def test_official_checkpoints_compute_what_the_official_class_computes(fixtures, tmp_path, convert, source):
    folder = fixtures / {"mindspore-numpy": "mindspore_numpy_tiny", "megatron": "megatron_tiny"}[source]
    convert("--from", source, folder, tmp_path / "model", *SAY)
    golden = load_file(folder / "golden.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert model.config.activation_function == "gelu_pytorch_tanh" and model.config.num_layers == 3
    output = model(golden["input_ids"], use_cache=True, output_hidden_states=True)
    torch.testing.assert_close(output.logits, golden["logits_official"], **TOLERANCE)
    torch.testing.assert_close(output.hidden_states[-1], golden["last_hidden_state_official"], **TOLERANCE)
    for layer, (keys, values) in enumerate(golden["presents_official"]):
        cached = output.past_key_values.layers[layer]
        torch.testing.assert_close(cached.keys, keys, **TOLERANCE)
        torch.testing.assert_close(cached.values, values, **TOLERANCE)
    full = model(golden["full_length.input_ids"]).logits
    torch.testing.assert_close(full, golden["full_length.logits_official"], **TOLERANCE)
    model.config.activation_function = "gelu"
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU()
    torch.testing.assert_close(model(golden["input_ids"]).logits, golden["logits_hf_gelu_erf"], **TOLERANCE)


def test_mindspore_there_and_back_is_bit_exact(fixtures, tmp_path, convert):
    source = fixtures / "mindspore_numpy_tiny"
    convert("--from", "mindspore-numpy", source, tmp_path / "model", *SAY)
    convert("--from", "hf", "--to", "mindspore-numpy", tmp_path / "model", tmp_path / "back")
    files = sorted(path.name for path in source.glob("*.npy"))
    assert files == sorted(path.name for path in (tmp_path / "back").iterdir())
    for name in files:
        one, other = np.load(source / name), np.load(tmp_path / "back" / name)
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes(), name


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_megatron_there_and_back_is_bit_exact_for_any_number_of_ranks(fixtures, tmp_path, convert, num_ranks):
    convert("--from", "megatron", fixtures / "megatron_tiny", tmp_path / "model", *SAY)
    convert(
        *("--from", "hf", "--to", "megatron", tmp_path / "model", tmp_path / "ranks"),
        *("--tensor-parallel-size", num_ranks),
    )
    convert("--from", "megatron", tmp_path / "ranks", tmp_path / "again", *SAY)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    original = flat(megatron_rank(fixtures / "megatron_tiny", iteration="iter_0001000"))
    parts = [flat(megatron_rank(tmp_path / "ranks", rank)) for rank in range(num_ranks)]
    # By hand: Megatron splits the output features of q, k, v and the first MLP layer and the input features of the
    # two projections; 96 rows of words are padded to a multiple of 128 for each rank.
    words = torch.cat([part[("embedding", "word_embeddings", "weight")] for part in parts])
    assert words.shape == (128 * num_ranks, 24) and not words[96:].any()
    dims = {"query": 0, "key": 0, "value": 0, "dense_h_to_4h": 0, "dense.weight": 1, "dense_4h_to_h.weight": 1}
    for keys, tensor in original.items():
        if keys[0] == "embedding" and keys[1] == "word_embeddings":
            continue
        dim = next((dim for part, dim in dims.items() if f".{part}" in keys[-1]), None)
        held = [part[keys] for part in parts]
        joined = held[0] if dim is None else torch.cat(held, dim=dim)
        assert torch.equal(joined, tensor), keys
        assert all(tensor.untyped_storage().nbytes() == tensor.numel() * 4 for tensor in held), "a view was saved whole"


@pytest.mark.parametrize("name, is_tied", [("tiny_gptpangu", False), ("tiny_gptpangu_tied", True)])
def test_published_files_keep_every_bit_and_drop_only_the_masks(fixtures, tmp_path, convert, name, is_tied):
    said = convert("--from", "hf", fixtures / name, tmp_path / "model", "--max-shard-size", "40KB")
    original = bin_tensors(fixtures / name)
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 1
    written = {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
    buffers = {key for key in original if key.endswith((".attn.bias", ".attn.masked_bias"))}
    assert original.keys() - written.keys() == buffers | ({"lm_head.weight"} if is_tied else set())
    assert all(torch.equal(written[key], original[key]) for key in written)
    assert f"left out {len(buffers)} causal-mask buffers" in said
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (model.lm_head.weight is model.transformer.wte.weight) == is_tied
    assert model.config.activation_function == "gelu"
    golden = load_file(fixtures / name / "golden.safetensors")
    with torch.no_grad():
        logits = model.eval()(golden["nopad.input_ids"]).logits
    torch.testing.assert_close(logits, golden["nopad.logits"], **TOLERANCE)


def test_a_head_that_differs_from_the_embedding_is_kept_though_the_config_says_tied(fixtures, tmp_path, convert):
    source = tmp_path / "source"
    source.mkdir()
    tensors = bin_tensors(fixtures / "tiny_gptpangu_tied")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "config.json").write_text((fixtures / "tiny_gptpangu_tied" / "config.json").read_text())
    said = convert("--from", "hf", source, tmp_path / "model")
    assert "lm_head.weight differs from transformer.wte.weight" in said
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    assert torch.equal(model.transformer.wte.weight, tensors["transformer.wte.weight"])


@torch.no_grad()
def test_a_deepspeed_chat_reward_model_scores_as_before(fixtures, tmp_path, convert):
    convert("--from", "dschat-reward", fixtures / "reward", tmp_path / "model")
    golden = load_file(fixtures / "reward" / "golden.safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert model.config.num_labels == 1
    assert torch.equal(model.score.weight, golden["v_head.weight"])
    for rows, values in (("pairs", "values_boolmask"), ("rollout", "values_boolmask_position_ids")):
        ids, mask = golden[f"{rows}.input_ids"], golden[f"{rows}.attention_mask"]
        hidden = model.transformer(ids, attention_mask=mask).last_hidden_state
        of_each_token = model.score(hidden).squeeze(-1)
        expected = golden[f"{rows}.{values}"]
        torch.testing.assert_close(of_each_token[mask == 1], expected[mask == 1], **TOLERANCE)
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        at_last_token = expected.gather(1, last.unsqueeze(1))
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, at_last_token, **TOLERANCE)


@torch.no_grad()
def test_deepspeed_chat_lora_merged_into_the_weights(fixtures, tmp_path, convert):
    golden = load_file(fixtures / "lora" / "golden.safetensors")
    convert("--from", "dschat-lora", fixtures / "lora", tmp_path / "model", "--merge", "--lora-scaling", 1)
    written = load_file(tmp_path / "model" / "model.safetensors")
    expected = {name.removeprefix("merged."): tensor for name, tensor in golden.items() if name.startswith("merged.")}
    assert len(expected) == 6
    for name, tensor in expected.items():
        torch.testing.assert_close(written[name], tensor, atol=1e-6, rtol=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(model(golden["input_ids"]).logits, golden["logits_merged"], **TOLERANCE)


@torch.no_grad()
def test_deepspeed_chat_lora_as_a_peft_adapter(fixtures, tmp_path, convert):
    frozen = {name: t for name, t in bin_tensors(fixtures / "lora").items() if "lora_" not in name}
    start = tmp_path / "start"
    start.mkdir()
    torch.save(frozen, start / "pytorch_model.bin")
    (start / "config.json").write_text((fixtures / "lora" / "config.json").read_text())
    convert("--from", "hf", start, tmp_path / "base")
    convert(
        *("--from", "dschat-lora", fixtures / "lora", tmp_path / "adapter", "--lora-scaling", 1),
        *("--adapter", "--base-model", tmp_path / "base"),
    )
    golden = load_file(fixtures / "lora" / "golden.safetensors")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(model(golden["input_ids"]).logits, golden["logits_unmerged"], **TOLERANCE)
    with model.disable_adapter():
        dropped = model(golden["input_ids"]).logits
    torch.testing.assert_close(dropped, golden["logits_if_lora_dropped"], **TOLERANCE)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted(settings["target_modules"])[:2] == ["attn.c_proj", "attn.k_proj"]


def test_padding_rows_of_the_vocabulary_are_cut_and_it_is_said(fixtures, tmp_path, convert):
    said = convert(
        *("--from", "megatron", fixtures / "megatron_tiny", tmp_path / "model", "--num-heads", 3, "--vocab-size", 90)
    )
    assert "left out rows 90 to 95 of the word embedding, which are padding" in said
    words = load_file(tmp_path / "model" / "model.safetensors")["transformer.wte.weight"]
    original = megatron_rank(fixtures / "megatron_tiny", iteration="iter_0001000")
    assert torch.equal(words, original["embedding"]["word_embeddings"]["weight"][:90])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(fixtures, tmp_path, convert, dtype):
    source = tmp_path / "source"
    source.mkdir()
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in bin_tensors(fixtures / "tiny_gptpangu").items()
    }
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "config.json").write_text((fixtures / "tiny_gptpangu" / "config.json").read_text())
    convert("--from", "hf", source, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == dtype
    assert torch.equal(model.transformer.wqe.weight, tensors["transformer.wqe.weight"])


def test_the_tokenizer_travels_along(fixtures, tmp_path, convert, tokenizer_dir, tokenizer):
    size = len(tokenizer)
    said = convert(
        *("--from", "megatron", fixtures / "megatron_tiny", tmp_path / "model", *SAY),
    )
    assert "no tokenizer came with the weights" in said
    error = pytest.raises(
        AssertionError, convert, "--from", "hf", tmp_path / "model", tmp_path / "x", "--tokenizer", tokenizer_dir
    )
    assert f"the tokenizer has {size} tokens, the model 96 only" in str(error.value)
    assert not (tmp_path / "x").exists()
    convert("--from", "hf", fixtures / "tiny_gptpangu", tmp_path / "with", "--tokenizer", tokenizer_dir)
    convert("--from", "hf", tmp_path / "with", tmp_path / "again")
    for folder in ("with", "again"):
        loaded = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert loaded("服务很好")["input_ids"] == tokenizer("服务很好")["input_ids"]
