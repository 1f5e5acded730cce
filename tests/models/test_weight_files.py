"""Weights that are none are refused by name."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from pangu_trl.models.loading import load_with_adapter
from pangu_trl.models.weight_files import refuse_broken_weights, refuse_pointers


def test_a_pointer_of_git_lfs_is_named(tmp_path, policy):
    policy.save_pretrained(tmp_path)
    refuse_pointers(str(tmp_path))
    refuse_pointers("some/model-of-the-hub")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"model.safetensors: this is a pointer of Git LFS.*git lfs pull"):
        refuse_pointers(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(policy, value):
    refuse_broken_weights(policy, "mine")
    with torch.no_grad():
        policy.transformer.wqe.weight[3, 2] = value
    with pytest.raises(ValueError, match=r"mine: weights are NaN or infinite in transformer.wqe.weight\."):
        refuse_broken_weights(policy, "mine")


def test_what_samples_and_judges_is_looked_at_as_what_trains_is(tmp_path, policy, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        policy.transformer.wqe.weight[3, 2] = float("nan")
    policy.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights are NaN or infinite in transformer.wqe.weight"):
        load_with_adapter(AutoModelForCausalLM, str(tmp_path))
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="this is a pointer of Git LFS"):
        load_with_adapter(AutoModelForCausalLM, str(tmp_path))
