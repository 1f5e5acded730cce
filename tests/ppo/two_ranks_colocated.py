"""Runs on every rank of test_vllm_two_processes.py: the same steps on a colocated vLLM's answers and on generated ones.

    torchrun --nproc_per_node 2 tests/ppo/two_ranks_colocated.py FOLDER LAYOUT SHARDING GROUP_SIZE

FOLDER and LAYOUT are those of two_ranks.py, whose trainers these are; SHARDING is ddp, zero3 or fsdp2 (which also wants
accelerate's variables); GROUP_SIZE ranks share one vLLM. Rank 0 writes the weights that both runs end with and those
that its vLLM got last into FOLDER/vllm-LAYOUT-SHARDING-GROUP_SIZE.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
import vllm_fake
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from two_ranks import SAME_STEP, evaluate, make_trainer, weights

from pangu_trl import PPOTrainer


def answers_of_unequal_shares(trainer: PPOTrainer) -> list[list[int]]:
    """Answers to two prompts on the first rank, and to three others on the second."""
    examples = list(trainer.train_dataset)
    own = examples[:2] if trainer.accelerator.is_main_process else examples[5:8]
    return trainer.collector.answer(trainer.model_wrapped, own).completions()


def main() -> None:
    torch.set_num_threads(1)
    folder, layout, sharding, group_size = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    if sharding == "fsdp2":
        sys.path.append(str(Path(__file__).parents[1] / "distributed"))
        from rank import shard_on_cpu

        shard_on_cpu()
    state = PartialState(cpu=True)
    out = folder / f"vllm-{layout}-{sharding}-{group_size}"
    # vLLM is to find GPTPangu's code in the policy's folder.
    config = folder / "policy" / "config.json"
    if state.is_main_process:
        code = {"auto_map": {"AutoModel": "modeling_gptpangu.GPTPanguModel"}}
        config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | code), "utf-8")
    state.wait_for_everyone()
    # Two rollouts, of which the second wants other weights.
    options = SAME_STEP | dict(num_generations=2, num_rollout_batches=2, max_steps=8)
    setup = dict(layout=layout, zero_stage=3 if sharding == "zero3" else 0, **options)
    vllm = dict(
        rollout_engine="vllm", vllm_mode="colocate", vllm_model_impl="transformers", vllm_trust_remote_code=True
    )
    vllm |= dict(vllm_tensor_parallel_size=group_size, vllm_enable_sleep_mode=True)
    started = vllm_fake.install(pytest.MonkeyPatch())
    colocated = make_trainer(folder, out.name, **vllm, **setup)
    colocated.train()
    parameters = list(colocated.model_wrapped.parameters())
    assert any(hasattr(parameter, "ds_tensor") for parameter in parameters) is (sharding == "zero3")
    assert any(isinstance(parameter, DTensor) for parameter in parameters) is (sharding == "fsdp2")
    found = {"served": weights(colocated)}
    metrics, answers = evaluate(colocated), answers_of_unequal_shares(colocated)
    (llm,) = started
    found["received"] = llm.received[-1]
    # What a group's ranks ask for must be the same, or each would sample answers of its own.
    asked = gather_object([[(tuple(prompt), params.seed) for prompt, params in llm.requests]])
    assert (asked[0] == asked[1]) is (group_size == 2)
    generated = make_trainer(folder, out.name, **setup)
    generated.train()
    found["generated"] = weights(generated)
    assert metrics == evaluate(generated)
    assert answers == answers_of_unequal_shares(generated)
    if state.is_main_process:
        out.mkdir(exist_ok=True)
        for name, tensors in found.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / f"{name}.safetensors")
    assert state.num_processes == 2
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
