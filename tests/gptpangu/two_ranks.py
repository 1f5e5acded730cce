"""Runs on every rank of test_modeling_two_ranks.py: tensor parallelism, then loading under ZeRO-3.

    torchrun --nproc_per_node 2 tests/gptpangu/two_ranks.py FOLDER

FOLDER holds the models tied, untied and differing; rank 0 writes what it computed.
"""

import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers.integrations import HfDeepSpeedConfig

from pangu_trl import GPTPanguForCausalLM

IDS = torch.arange(20, 36).view(2, 8).masked_fill(torch.tensor([[True] * 3 + [False] * 5, [False] * 8]), 6)
MASK = (IDS != 6).long()
GREEDY = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)


def compute(model: GPTPanguForCausalLM) -> dict[str, torch.Tensor]:
    """Logits, greedy tokens, the loss and two of its gradients."""
    model.eval()
    output = model(IDS, attention_mask=MASK, labels=IDS.masked_fill(MASK == 0, -100))
    output.loss.backward()
    gradients = {name: model.get_parameter(name).grad for name in ("transformer.wqe.weight", "transformer.ln_f.weight")}
    tensors = {
        "logits": output.logits.detach(),
        "loss": output.loss.detach(),
        "tokens": model.generate(IDS, attention_mask=MASK, **GREEDY),
        **gradients,
    }
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
        for name, tensor in tensors.items()
    }


def tensor_parallel(folder: Path, name: str) -> None:
    model = GPTPanguForCausalLM.from_pretrained(folder / name, tp_plan="auto")
    attention = model.transformer.h[0].attn
    assert isinstance(attention.q_proj.weight, DTensor), "tensor parallelism is not on"
    assert attention.q_proj.weight.to_local().shape[0] * 2 == attention.q_proj.weight.shape[0]
    computed = compute(model)
    model.save_pretrained(folder / f"{name}-saved")
    if dist.get_rank() == 0:
        save_file(computed, folder / f"{name}.safetensors")


def zero3(folder: Path) -> None:
    keep_alive = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
    assert keep_alive.is_zero3()
    model = GPTPanguForCausalLM.from_pretrained(folder / "differing")
    weights = {"head": model.lm_head.weight, "embedding": model.transformer.wte.weight}
    assert all(hasattr(weight, "ds_id") for weight in weights.values()), "ZeRO-3 is not on"
    with deepspeed.zero.GatheredParameters(list(weights.values())):
        if dist.get_rank() == 0:
            save_file({name: weight.detach().clone() for name, weight in weights.items()}, folder / "zero3.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo")
    tensor_parallel(Path(sys.argv[1]), "untied")
    tensor_parallel(Path(sys.argv[1]), "tied")
    zero3(Path(sys.argv[1]))
    dist.destroy_process_group()
