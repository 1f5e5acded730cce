"""Loading, saving, tying and resizing; the heads; precision and devices."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import pangu_trl

IDS = torch.arange(20, 32).view(2, 6)


@pytest.fixture
def untied(load_golden):
    return load_golden("tiny_gptpangu")[0]


@pytest.fixture
def tied(load_golden):
    return load_golden("tiny_gptpangu_tied")[0]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(IDS).logits


def reload(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("max_shard_size", ["50GB", "300KB"])
def test_safetensors_whole_or_in_shards_round_trip_bit_for_bit(untied, tmp_path, max_shard_size):
    untied.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 2) == (max_shard_size == "300KB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (len(shards) > 2)
    assert torch.equal(logits(reload(tmp_path)), logits(untied))


def test_an_old_bin_checkpoint_in_shards_loads(fixtures, untied, tmp_path):
    """Two files and an index as old versions of transformers wrote them, causal-mask buffers included."""
    source = fixtures / "tiny_gptpangu"
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    assert state["transformer.h.0.attn.bias"].dtype == torch.uint8 and "transformer.h.0.attn.masked_bias" in state
    names, weight_map = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    shutil.copy(source / "config.json", tmp_path)
    assert torch.equal(logits(reload(tmp_path)), logits(untied))


def test_loading_old_files_reports_no_missing_and_no_unexpected_weights(fixtures):
    for name in ("tiny_gptpangu", "tiny_gptpangu_tied"):
        _, info = pangu_trl.GPTPanguForCausalLM.from_pretrained(fixtures / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_a_published_model_type_pangu_loads_as_gpt_pangu(fixtures, untied, tmp_path):
    shutil.copytree(fixtures / "tiny_gptpangu", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "pangu"}))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, pangu_trl.GPTPanguConfig)
    assert loaded.num_hidden_layers == loaded.num_layers == 4
    model = reload(tmp_path)
    assert isinstance(model, pangu_trl.GPTPanguForCausalLM)
    assert torch.equal(logits(model), logits(untied))


def test_a_config_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="hidden_size must be divisible by num_heads; got hidden_size=30, num_heads=4"):
        pangu_trl.GPTPanguConfig(hidden_size=30, num_heads=4)


def test_a_tied_head_is_one_parameter_in_memory_and_on_disk(tied, tmp_path):
    assert tied.config.tie_word_embeddings and tied.lm_head.weight is tied.transformer.wte.weight
    tied.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = reload(tmp_path)
    assert again.lm_head.weight is again.transformer.wte.weight
    assert torch.equal(logits(again), logits(tied))


@pytest.fixture
def differing_head(fixtures, tmp_path):
    """A file whose head is not the word embedding; its config.json, as the published ones, says nothing of tying."""
    folder = tmp_path / "differing"
    shutil.copytree(fixtures / "tiny_gptpangu", folder)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_head_that_differs_from_the_embedding_is_never_overwritten(differing_head, untied, tmp_path):
    """Not at loading, not by a later `tie_weights`, not by resizing, and not by saving and loading again."""
    model = reload(differing_head)
    assert model.config.tie_word_embeddings is False
    assert torch.equal(logits(model), logits(untied))
    model.tie_weights()
    assert torch.equal(logits(model), logits(untied))
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"] is False
    again = reload(tmp_path / "saved")
    assert torch.equal(logits(again), logits(untied))
    again.resize_token_embeddings(1030, mean_resizing=False)
    assert again.lm_head.weight is not again.transformer.wte.weight
    torch.testing.assert_close(logits(again)[..., :1024], logits(untied))


def test_a_head_equal_to_the_embedding_or_absent_is_tied(fixtures, tied, tmp_path):
    assert tied.config.tie_word_embeddings is True
    shutil.copytree(fixtures / "tiny_gptpangu_tied", tmp_path, dirs_exist_ok=True)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    del state["lm_head.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = reload(tmp_path)
    assert model.config.tie_word_embeddings is True and model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(logits(model), logits(tied))


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("arguments", [(170, None), (100, None), (150, 64)], ids=["up", "down", "multiple of 64"])
def test_resizing_keeps_the_logits_of_the_old_tokens(tied, tmp_path, kind, arguments):
    model = copy.deepcopy(tied)
    if kind == "untied":
        model = pangu_trl.GPTPanguForCausalLM(pangu_trl.GPTPanguConfig(**tied.config.to_dict() | UNTIED)).eval()
    before, (size, multiple) = logits(model), arguments
    model.resize_token_embeddings(size, pad_to_multiple_of=multiple, mean_resizing=False)
    expected = size if multiple is None else 192
    assert model.config.vocab_size == model.lm_head.out_features == model.transformer.wte.num_embeddings == expected
    assert (model.lm_head.weight is model.transformer.wte.weight) == (kind == "tied")
    kept = min(expected, 160)
    torch.testing.assert_close(logits(model)[..., :kept], before[..., :kept])
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(reload(tmp_path)), logits(model))
    model(IDS, labels=IDS).loss.backward()
    assert model.transformer.wte.weight.grad.shape == (expected, 32)


UNTIED = {"tie_word_embeddings": False}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_loads_generates_and_stays_near_float32(fixtures, untied, tmp_path, dtype, attention):
    model = reload(fixtures / "tiny_gptpangu", dtype=dtype, attn_implementation=attention).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    exact, rounded = logits(untied), logits(model)
    assert rounded.dtype == dtype
    # Logits reach 75 here; bfloat16 keeps 8 bits.
    assert (rounded.float() - exact).abs().max() < exact.abs().max() * (0.05 if dtype == torch.bfloat16 else 0.01)
    padded = torch.cat([torch.full((2, 3), 6), IDS], dim=1)
    output = model.generate(padded, attention_mask=(padded != 6).long(), max_new_tokens=4, do_sample=False)
    assert output.shape[1] <= 13
    model.save_pretrained(tmp_path)
    assert next(reload(tmp_path).parameters()).dtype == dtype  # the default is the file's own


def test_a_device_map_offloads_blocks_and_does_not_split_them(untied, tmp_path):
    from accelerate import infer_auto_device_map

    assert set(untied._no_split_modules) == {"GPTPanguBlock"}
    untied.save_pretrained(tmp_path / "model")
    blocks = {f"transformer.h.{layer}": "cpu" if layer < 2 else "disk" for layer in range(4)}
    device_map = {
        "transformer.wte": "cpu",
        "transformer.wpe": "cpu",
        "transformer.wqe": "cpu",
        "transformer.drop": "cpu",
    }
    device_map |= blocks | {"transformer.ln_f": "disk", "lm_head": "cpu"}
    model = reload(tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload"))
    assert model.transformer.h[3].mlp.c_fc.weight.is_meta and not model.transformer.h[0].mlp.c_fc.weight.is_meta
    assert torch.equal(logits(model), logits(untied))
    generated = model.generate(IDS[:1], max_new_tokens=3, do_sample=False)
    assert generated.tolist() == untied.generate(IDS[:1], max_new_tokens=3, do_sample=False).tolist()
    # The embeddings and one block (200 kB) fit; of the second block only a part would.
    placed = infer_auto_device_map(
        untied, max_memory={"cpu": 800_000, "disk": 10**9}, no_split_module_classes=untied._no_split_modules
    )
    assert not [name for name in placed if name.count(".") > 2], placed
    assert [placed[f"transformer.h.{layer}"] for layer in range(4)] == ["cpu", "disk", "disk", "disk"]


def test_device_map_auto_loads(untied, tmp_path):
    untied.save_pretrained(tmp_path)
    assert torch.equal(logits(reload(tmp_path, device_map="auto")), logits(untied))


def test_every_auto_class_gives_the_gptpangu_class(fixtures, tmp_path):
    folder = fixtures / "tiny_gptpangu"
    for auto_class, expected in (
        (AutoModel, pangu_trl.GPTPanguModel),
        (AutoModelForCausalLM, pangu_trl.GPTPanguForCausalLM),
        (AutoModelForSequenceClassification, pangu_trl.GPTPanguForSequenceClassification),
        (AutoModelForTokenClassification, pangu_trl.GPTPanguForTokenClassification),
    ):
        model = auto_class.from_pretrained(folder)
        assert type(model) is expected
        assert model.get_input_embeddings().weight.shape == (1024, 64)


def test_a_backbone_saved_alone_loads_below_a_head_and_the_other_way_round(untied, tmp_path):
    untied.transformer.save_pretrained(tmp_path / "backbone")
    untied.save_pretrained(tmp_path / "whole")
    headed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone", num_labels=1)
    bare = AutoModel.from_pretrained(tmp_path / "whole")
    for name, parameter in untied.transformer.named_parameters():
        assert torch.equal(headed.transformer.get_parameter(name), parameter), name
        assert torch.equal(bare.get_parameter(name), parameter), name


def test_sequence_scores_are_the_head_at_the_last_real_token_whatever_the_padding(fixtures, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(fixtures / "tiny_gptpangu", num_labels=3).eval()
    ids = torch.randint(10, 1024, (1, 7))
    pads = torch.full((1, 5), 6)
    with torch.no_grad():
        hidden_states = model.transformer(ids).last_hidden_state
        expected = hidden_states[:, -1] @ model.score.weight.T
        for padded in (ids, torch.cat([pads, ids], dim=1), torch.cat([ids, pads], dim=1)):
            scores = model(padded, attention_mask=(padded != 6).long()).logits
            torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_token_scores_are_the_head_at_every_token(fixtures, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(fixtures / "tiny_gptpangu", num_labels=3).eval()
    labels = torch.tensor([[0, 1, 2, -100, 1, 0], [-100, -100, 2, 2, 0, 1]])
    with torch.no_grad():
        output = model(IDS, labels=labels)
        scores = model.transformer(IDS).last_hidden_state @ model.score.weight.T + model.score.bias
    torch.testing.assert_close(output.logits, scores, atol=1e-5, rtol=1e-5)
    kept = labels != -100
    expected = -scores.log_softmax(-1)[kept].gather(-1, labels[kept].unsqueeze(-1)).mean()
    torch.testing.assert_close(output.loss, expected)
    model.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, output.logits)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"num_heads": 0}, "num_heads and num_layers must be 1 or more; got num_heads=0"),
        ({"activation_function": "golu"}, "activation_function must be one that transformers knows.*got 'golu'"),
    ],
)
def test_a_config_that_no_model_can_have_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        pangu_trl.GPTPanguConfig(**setting)
