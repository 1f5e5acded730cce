"""Runs on every rank of test_vllm_two_processes.py: the same steps on a server's answers and on generated ones.

    torchrun --nproc_per_node 2 tests/ppo/two_ranks_vllm.py FOLDER LAYOUT SHARDING

FOLDER and LAYOUT are those of two_ranks.py, whose trainers these are; SHARDING is ddp, zero3 or fsdp2 (which also wants
accelerate's variables). Rank 0 holds the stub of a server. It writes the weights that both runs end with and those that
the server got last into FOLDER/vllm-LAYOUT-SHARDING; every rank writes how a run on a server that fails ends.
"""

import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from two_ranks import SAME_STEP, make_trainer, weights
from vllm_stub import VLLMStub

from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM


def main() -> None:
    torch.set_num_threads(1)
    folder, layout, sharding = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if sharding == "fsdp2":
        sys.path.append(str(Path(__file__).parents[1] / "distributed"))
        from rank import shard_on_cpu

        shard_on_cpu()
    state = PartialState(cpu=True)
    out = folder / f"vllm-{layout}-{sharding}"
    # Two rollouts, of which the second wants other weights.
    options = SAME_STEP | dict(num_generations=2, num_rollout_batches=2, max_steps=8)
    setup = dict(layout=layout, zero_stage=3 if sharding == "zero3" else 0, **options)
    # Every rank takes the client for usable, as it would be; only rank 0's stub is listened to.
    with VLLMStub(GPTPanguForCausalLM(GPTPanguConfig.from_pretrained(folder / "policy"))) as stub:
        stub.connect(pytest.MonkeyPatch())
        (url,) = broadcast_object_list([stub.url])
        served = make_trainer(folder, out.name, rollout_engine="vllm", vllm_server_base_url=url, **setup)
        served.train()
        parameters = list(served.model_wrapped.parameters())
        assert any(hasattr(parameter, "ds_tensor") for parameter in parameters) is (sharding == "zero3")
        assert any(isinstance(parameter, DTensor) for parameter in parameters) is (sharding == "fsdp2")
        found = {"served": weights(served)}
        served.evaluate(served.train_dataset.select(range(11)))
        if state.is_main_process:
            found["received"] = stub.received[-1]
        stub.answer = lambda prompt, body: 1 / 0
        with pytest.raises(RuntimeError) as failure:
            served.evaluate(served.train_dataset)
    generated = make_trainer(folder, out.name, **setup)
    generated.train()
    found["generated"] = weights(generated)
    out.mkdir(exist_ok=True)
    (out / f"failure-{state.process_index}.txt").write_text(str(failure.value), "utf-8")
    if state.is_main_process:
        for name, tensors in found.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / f"{name}.safetensors")
    assert state.num_processes == 2
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
