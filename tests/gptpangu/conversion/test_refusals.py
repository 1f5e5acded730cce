"""Bad checkpoints, missing words, interruptions and full disks: a clear message, and nothing half-written."""

import argparse
import json
import os
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pangu_trl.cli import main
from pangu_trl.gptpangu.conversion import targets

SAY = ("--num-heads", 3, "--vocab-size", 96)
RANK = ("iter_0001000", "mp_rank_00", "model_optim_rng.pt")


@pytest.fixture
def megatron(fixtures, tmp_path):
    return shutil.copytree(fixtures / "megatron_tiny", tmp_path / "megatron")


def change_bin(folder, change):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_truncated_bin(published, destination, refuse, kept):
    path = published / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    said = refuse("--from", "hf", published, destination)
    assert "published/pytorch_model.bin" in said and "truncated or damaged" in said


def test_a_truncated_safetensors_file(published, destination, tmp_path, convert, refuse):
    convert("--from", "hf", published, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model/model.safetensors: truncated or damaged" in refuse("--from", "hf", tmp_path / "model", destination)


@pytest.mark.parametrize("kept", [40, 300])
def test_a_truncated_numpy_file(fixtures, tmp_path, destination, refuse, kept):
    source = shutil.copytree(fixtures / "mindspore_numpy_tiny", tmp_path / "source")
    path = source / "backbone.blocks.0.attention.dense1.weight.npy"
    path.write_bytes(path.read_bytes()[:kept])
    said = refuse("--from", "mindspore-numpy", source, destination, *SAY)
    assert "dense1.weight.npy: no complete numpy file" in said


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_in_it_is_not_run(published, tmp_path, destination, refuse):
    change_bin(published, lambda tensors: tensors.update(extra=RunsCode(tmp_path / "it-ran")))
    said = refuse("--from", "hf", published, destination)
    assert "holds more than tensors and plain containers and could run code" in said
    assert not (tmp_path / "it-ran").exists()


def test_numpy_pickles_are_not_run(fixtures, tmp_path, destination, refuse):
    import numpy as np

    source = shutil.copytree(fixtures / "mindspore_numpy_tiny", tmp_path / "source")
    np.save(source / "backbone.layernorm.beta.npy", np.array([RunsCode(tmp_path / "it-ran")], dtype=object))
    assert "no complete numpy file" in refuse("--from", "mindspore-numpy", source, destination, *SAY)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "num_layers, message",
    [(3, "holds tensors that no GPTPangu of this size has: transformer.h.3."), (5, "lacks transformer.h.4.")],
)
def test_a_wrong_number_of_layers(published, destination, refuse, num_layers, message):
    change_config(published, num_layers=num_layers)
    said = refuse("--from", "hf", published, destination)
    assert message in said and f"num_layers={num_layers}" in said


def test_a_tensor_that_is_unknown_missing_or_of_another_shape(published, destination, refuse):
    change_bin(published, lambda tensors: tensors.update(surprise=torch.zeros(2)))
    assert "no GPTPangu of this size has: surprise" in refuse("--from", "hf", published, destination)
    change_bin(published, lambda tensors: tensors.pop("surprise"))
    change_bin(published, lambda tensors: tensors.pop("transformer.h.2.mlp.c_fc.bias"))
    assert "lacks transformer.h.2.mlp.c_fc.bias" in refuse("--from", "hf", published, destination)
    change_bin(published, lambda tensors: tensors.update({"transformer.h.2.mlp.c_fc.bias": torch.zeros(7)}))
    said = refuse("--from", "hf", published, destination)
    assert "transformer.h.2.mlp.c_fc.bias: expected shape (256,) by the configuration; got (7,)" in said
    change_bin(published, lambda tensors: tensors.update({"transformer.h.2.mlp.c_fc.bias": "seven"}))
    assert "c_fc.bias: expected a tensor; got str" in refuse("--from", "hf", published, destination)


def test_an_index_that_names_a_missing_shard(published, destination, tmp_path, convert, refuse):
    convert("--from", "hf", published, tmp_path / "model", "--max-shard-size", "100KB")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    shard.unlink()
    said = refuse("--from", "hf", tmp_path / "model", destination)
    assert f"names {shard.name}, which the folder does not hold" in said


def test_folders_without_a_model(published, tmp_path, destination, refuse):
    assert "no such folder" in refuse("--from", "hf", tmp_path / "nowhere", destination)
    (published / "pytorch_model.bin").rename(published / "weights.bin")
    assert "found config.json, golden.json, golden.safetensors, weights.bin" in refuse(
        "--from", "hf", published, destination
    )
    change_config(published, model_type="llama")
    assert "'model_type' must be gpt_pangu or pangu; got 'llama'" in refuse("--from", "hf", published, destination)
    (published / "config.json").unlink()
    assert "no config.json; name the size with --size 350m|2.6b|13b" in refuse("--from", "hf", published, destination)
    assert "expected one .npy file a tensor" in refuse("--from", "mindspore-numpy", published, destination)
    assert "expected mp_rank_00/model_optim_rng.pt" in refuse("--from", "megatron", published, destination)


def test_what_a_format_does_not_say_is_asked_for(fixtures, destination, refuse):
    source = ("--from", "megatron", fixtures / "megatron_tiny", destination)
    assert "say it with --num-heads N (the hidden size is 24)" in refuse(*source)
    assert "has 96 rows, some of which may be padding; say" in refuse(*source, "--num-heads", 3)
    assert "has 96 rows, fewer than the 97 tokens" in refuse(*source, "--num-heads", 3, "--vocab-size", 97)
    assert "hidden_size must be divisible by num_heads" in refuse(*source, "--num-heads", 5, "--vocab-size", 96)
    said = refuse(*source, "--size", "350m", "--vocab-size", 96)
    assert "num_layers is 3 in the checkpoint, 24 by --size 350m" in said
    said = refuse("--from", "hf", fixtures / "tiny_gptpangu", destination, "--num-heads", 2)
    assert "num_heads is 4 in the checkpoint, 2 by --num-heads" in said


def test_a_missing_rank(fixtures, tmp_path, destination, convert, refuse):
    convert("--from", "megatron", fixtures / "megatron_tiny", tmp_path / "model", *SAY)
    ranks = tmp_path / "ranks"
    convert("--from", "hf", "--to", "megatron", tmp_path / "model", ranks, "--tensor-parallel-size", 3)
    shutil.move(ranks / "release" / "mp_rank_02", tmp_path / "mp_rank_02")
    said = refuse("--from", "megatron", ranks, destination, *SAY)
    assert "2 tensor-parallel ranks hold 16 of 24 rows of transformer / layers.0.attention.query.bias" in said
    assert "the checkpoint has 3 ranks" in said
    shutil.move(tmp_path / "mp_rank_02", ranks / "release" / "mp_rank_02")
    shutil.move(ranks / "release" / "mp_rank_01", tmp_path / "mp_rank_01")
    assert "without a gap; found mp_rank_00, mp_rank_02" in refuse("--from", "megatron", ranks, destination, *SAY)


def test_ranks_that_disagree_on_a_shared_tensor(fixtures, tmp_path, destination, convert, refuse):
    convert("--from", "megatron", fixtures / "megatron_tiny", tmp_path / "model", *SAY)
    ranks = tmp_path / "ranks"
    convert("--from", "hf", "--to", "megatron", tmp_path / "model", ranks, "--tensor-parallel-size", 3)
    path = ranks / "release" / "mp_rank_01" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=True)
    content["model"]["language_model"]["transformer"]["final_layernorm.weight"] += 1
    torch.save(content, path)
    said = refuse("--from", "megatron", ranks, destination, *SAY)
    assert "final_layernorm.weight: differs from" in said and "every rank must hold the same" in said


def test_the_command_line_saved_by_megatron_says_the_heads(megatron, tmp_path, convert, refuse):
    path = megatron.joinpath(*RANK)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"args": argparse.Namespace(num_attention_heads=3)}, path)
    convert("--from", "megatron", megatron, tmp_path / "model", "--vocab-size", 96)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["num_heads"] == 3
    said = refuse("--from", "megatron", megatron, tmp_path / "other", "--vocab-size", 96, "--num-heads", 4)
    assert "its args say 3 attention heads, --num-heads 4" in said


def test_lora_needs_its_scaling_and_a_destination(fixtures, destination, refuse):
    source = ("--from", "dschat-lora", fixtures / "lora", destination)
    assert "needs --merge (into the weights) or --adapter" in refuse(*source)
    assert "give the launch argument with --lora-scaling X" in refuse(*source, "--merge")
    assert "--adapter and --base-model belong together" in refuse(*source, "--adapter", "--lora-scaling", 1)
    said = refuse("--from", "hf", fixtures / "tiny_gptpangu", destination, "--lora-scaling", 1)
    assert "belong to --from dschat-lora" in said
    said = refuse("--from", "dschat-lora", fixtures / "tiny_gptpangu", destination, "--lora-scaling", 1, "--merge")
    assert "no lora_right_weight and lora_left_weight in the checkpoint" in said


def test_an_adapter_is_refused_when_the_run_trained_other_weights_too(fixtures, tmp_path, destination, refuse):
    base = tmp_path / "base"
    base.mkdir()
    tensors = torch.load(fixtures / "lora" / "pytorch_model.bin", weights_only=True)
    frozen = {name: tensor for name, tensor in tensors.items() if "lora_" not in name}
    frozen["transformer.ln_f.bias"] = frozen["transformer.ln_f.bias"] + 1
    torch.save(frozen, base / "pytorch_model.bin")
    shutil.copy(fixtures / "lora" / "config.json", base)
    said = refuse(
        *("--from", "dschat-lora", fixtures / "lora", destination, "--lora-scaling", 1),
        *("--adapter", "--base-model", base),
    )
    assert "transformer.ln_f.bias: differs from the base model" in said and "use --merge" in said


def test_half_a_lora_pair(fixtures, tmp_path, destination, refuse):
    source = shutil.copytree(fixtures / "lora", tmp_path / "source")
    change_bin(source, lambda tensors: tensors.pop("transformer.h.0.attn.q_proj.lora_left_weight"))
    said = refuse("--from", "dschat-lora", source, destination, "--lora-scaling", 1, "--merge")
    assert "lacks transformer.h.0.attn.q_proj.lora_left_weight" in said


@pytest.mark.parametrize("target", ["megatron", "mindspore-numpy"])
def test_a_head_of_its_own_has_no_place_in_the_official_formats(fixtures, tmp_path, destination, refuse, target):
    said = refuse("--from", "hf", "--to", target, fixtures / "tiny_gptpangu", destination)
    assert "lm_head.weight" in said and "keeps no head of its own" in said


def test_weights_of_erf_gelu_are_written_back_with_a_warning(fixtures, tmp_path, convert):
    said = convert("--from", "hf", "--to", "mindspore-numpy", fixtures / "tiny_gptpangu_tied", tmp_path / "back")
    assert "trained with activation_function gelu" in said


def test_an_existing_destination_is_left_alone(published, tmp_path, refuse):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("kept")
    assert "there: exists already" in refuse("--from", "hf", published, tmp_path / "there")
    assert (tmp_path / "there" / "precious").read_text() == "kept"


def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(published, destination, monkeypatch):
    save_tensors, written = targets.save_tensors, []

    def stop_at_the_third(tensors, path):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        save_tensors(tensors, path)

    monkeypatch.setattr(targets, "save_tensors", stop_at_the_third)
    words = ["convert", "--from", "hf", str(published), str(destination), "--max-shard-size", "40KB"]
    assert main(words) == 130 and len(written) == 2


def test_a_killed_conversion_starts_over(published, tmp_path, convert):
    unfinished = tmp_path / "model.unfinished"
    unfinished.mkdir()
    (unfinished / "model-00009-of-00009.safetensors").write_text("half")
    convert("--from", "hf", published, tmp_path / "model")
    assert not unfinished.exists()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert len(load_file(tmp_path / "model" / "model.safetensors")) == 4 * 16 + 6


def test_too_little_space_is_noticed_before_writing(published, destination, monkeypatch, refuse):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert "0.00 GB are needed there, 0.00 GB are free" in refuse("--from", "hf", published, destination)


def test_a_disk_that_runs_full_while_writing(published, destination, refuse):
    # The kernel refuses to let a file grow beyond a limit, as it does on a full disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        said = refuse("--from", "hf", published, destination)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "writing failed, nothing was kept" in said and "File too large" in said
