"""Wrong words and folders, damaged JSON, tensors of the wrong kind: one line that says what is wrong and where."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

LAYER_NORM = "backbone.blocks.1.layernorm1.beta.npy"
WORD_EMBEDDING = "backbone.word_embedding.embedding_table.npy"


def assert_one_line(said, place, message):
    assert said.count("\n") == 1 and str(place) in said and message in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model_type": "gpt_pangu",', "must be a JSON file in UTF-8"),
        (b"", "must be a JSON file in UTF-8"),
        (b'{"model_type": "\xd6\xd0"}', "must be a JSON file in UTF-8"),
        (b"[1]", "must hold one JSON object; got list"),
    ],
)
def test_a_damaged_config(published, destination, refuse, content, message):
    (published / "config.json").write_bytes(content)
    assert_one_line(refuse("--from", "hf", published, destination), published / "config.json", message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_layers", "4", "'num_layers' must be a whole number from 1; got '4'"),
        ("num_layers", None, "'num_layers' must be a whole number from 1; got None"),
        ("num_heads", 0, "'num_heads' must be a whole number from 1; got 0"),
        ("num_heads", 7, "hidden_size must be divisible by num_heads"),
        ("attn_pdrop", "x", "'attn_pdrop' expected float"),
        ("activation_function", "foo", "activation_function must be one that transformers knows"),
    ],
)
def test_a_config_with_a_wrong_value(published, destination, refuse, name, value, message):
    path = published / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert_one_line(refuse("--from", "hf", published, destination), path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map":', "must be a JSON file"),
        ("{}", "'weight_map' must give the file of each tensor; got None"),
        ('{"weight_map": {"a": 1}}', "'weight_map' must give the file of each tensor; got {'a': 1}"),
        ('{"weight_map": {"a": "."}}', "names ., which the folder does not hold"),
    ],
)
def test_a_damaged_index(published, destination, refuse, content, message):
    (published / "pytorch_model.bin").unlink()
    index = published / "pytorch_model.bin.index.json"
    index.write_text(content)
    assert_one_line(refuse("--from", "hf", published, destination), index, message)


def test_a_second_set_of_weights_is_named(published, tmp_path, convert):
    tensors = torch.load(published / "pytorch_model.bin", weights_only=True)
    tensors = {name: tensor * 2 for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if not name.endswith("masked_bias")}
    save_file(tensors, published / "model.safetensors")
    said = convert("--from", "hf", published, tmp_path / "model")
    assert "read model.safetensors, as transformers does, and not pytorch_model.bin beside it" in said
    written = load_file(tmp_path / "model" / "model.safetensors")
    torch.testing.assert_close(written["transformer.wpe.weight"], tensors["transformer.wpe.weight"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_a_download_leaves_in_the_place_of_weights(published, destination, refuse, name):
    (published / "pytorch_model.bin").unlink()
    (published / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert_one_line(refuse("--from", "hf", published, destination), published / name, "git lfs pull")
    (published / name).write_bytes(b"")
    assert_one_line(refuse("--from", "hf", published, destination), published / name, "the file is empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.to(torch.int32), "expected floating-point numbers; got torch.int32"),
        (lambda weight: weight.to_sparse(), "expected a dense tensor with its data; got torch.sparse_coo"),
        (lambda weight: weight.to("meta"), "expected a dense tensor with its data"),
    ],
)
def test_tensors_that_are_no_weights(published, destination, refuse, change, message):
    path = published / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    tensors["transformer.wpe.weight"] = change(tensors["transformer.wpe.weight"])
    torch.save(tensors, path)
    assert_one_line(refuse("--from", "hf", published, destination), f"{path}: transformer.wpe.weight", message)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (LAYER_NORM, np.zeros(24, "int64"), "expected floating-point numbers; got torch.int64"),
        (LAYER_NORM, np.zeros(24, ">f4"), "in this machine's byte order; got numpy's '>f4'"),
        (LAYER_NORM, np.array(["a"]), "expected numbers"),
        (WORD_EMBEDDING, np.zeros(96, "float32"), "expected a matrix; got shape (96,)"),
    ],
)
def test_numpy_files_that_are_no_weights(fixtures, tmp_path, destination, refuse, name, array, message):
    source = shutil.copytree(fixtures / "mindspore_numpy_tiny", tmp_path / "numpy")
    np.save(source / name, array)
    said = refuse("--from", "mindspore-numpy", source, destination, "--num-heads", 3, "--vocab-size", 96)
    assert_one_line(said, source / name, message)


@pytest.mark.parametrize("content", [b"abc", b"", b"\xff"])
def test_a_tracker_of_megatron_without_an_iteration(fixtures, tmp_path, destination, refuse, content):
    source = shutil.copytree(fixtures / "megatron_tiny", tmp_path / "megatron")
    (source / "latest_checkpointed_iteration.txt").write_bytes(content)
    said = refuse("--from", "megatron", source, destination)
    assert_one_line(said, source / "latest_checkpointed_iteration.txt", "must hold the number of an iteration")


def test_a_folder_of_another_format_is_recognised(fixtures, destination, refuse):
    numpy, megatron = fixtures / "mindspore_numpy_tiny", fixtures / "megatron_tiny"
    assert "looks like --from mindspore-numpy" in refuse("--from", "hf", numpy, destination)
    assert "looks like --from megatron" in refuse("--from", "hf", megatron, destination)
    assert "looks like --from mindspore-numpy" in refuse("--from", "megatron", numpy, destination)
    assert "looks like --from hf" in refuse("--from", "megatron", fixtures / "tiny_gptpangu", destination)
    assert "--from dschat-reward" in refuse("--from", "hf", fixtures / "reward", destination)
    assert "--from dschat-lora" in refuse("--from", "hf", fixtures / "lora", destination)


def test_folders_that_are_files_or_missing(fixtures, destination, refuse):
    config = fixtures / "lora" / "config.json"
    assert_one_line(refuse("--from", "hf", config, destination), config, "must be the folder of the checkpoint")
    lora = ("--from", "dschat-lora", "--lora-scaling", 1, "--adapter", fixtures / "lora", destination)
    assert_one_line(refuse(*lora, "--base-model", "user/name"), "user/name", "no such folder")
    said = refuse("--from", "hf", fixtures / "lora", destination, "--tokenizer", "user/name")
    assert_one_line(said, "user/name", "no such folder")


@pytest.mark.parametrize("name", ["model.unfinished", "model.unfinished/inner", "."])
def test_the_source_is_never_where_an_unfinished_folder_is_cleared(fixtures, tmp_path, refuse, name):
    source = shutil.copytree(fixtures / "tiny_gptpangu", tmp_path / name, dirs_exist_ok=True)
    said = refuse("--from", "hf", source, tmp_path / "model")
    assert_one_line(said, source, "must lie apart from")
    assert (source / "pytorch_model.bin").exists() and not (tmp_path / "model").exists()


def test_a_destination_below_a_file(published, tmp_path, refuse):
    (tmp_path / "file").write_text("kept")
    said = refuse("--from", "hf", published, tmp_path / "file" / "model")
    assert_one_line(said, tmp_path / "file", "writing failed, nothing was kept")


@pytest.mark.parametrize("scaling", ["nan", "inf", "0"])
def test_a_scaling_that_would_spoil_or_drop_the_lora(fixtures, destination, refuse, scaling):
    said = refuse("--from", "dschat-lora", "--merge", "--lora-scaling", scaling, fixtures / "lora", destination)
    assert "--lora-scaling must be a number above 0" in said


@pytest.mark.parametrize("size", ["nonsense", "", "0", "0GB", "100000", "1GiB"])
def test_a_shard_size_without_a_number_or_a_unit(published, destination, refuse, size):
    said = refuse("--from", "hf", published, destination, "--max-shard-size", size)
    assert f"--max-shard-size must be a number above 0 with KB, MB, GB or TB, such as 500MB; got {size!r}" in said


@pytest.mark.parametrize("option", [("--tokenizer", "."), ("--max-shard-size", "1GB")])
def test_options_without_an_effect_are_refused(fixtures, destination, refuse, option):
    said = refuse("--from", "hf", "--to", "megatron", fixtures / "tiny_gptpangu_tied", destination, *option)
    assert "belong to models in HF format" in said
