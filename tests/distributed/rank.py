"""What the launcher starts in place of a recipe: the recipe, and notes of what its ranks really were.

    accelerate launch ... tests/distributed/rank.py recipes/sft.py --config ...

Each rank leaves `rank-N.json` in the output folder: how it held the model, and what that gave for a fixed input before
it was saved.
"""

import json
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from collectives import CountSteps
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer

from pangu_trl.gptpangu.modeling_gptpangu import GPTPanguBlock
from pangu_trl.runs import hang_guard
from pangu_trl.runs.hang_guard import HangGuard
from pangu_trl.runs.process import run_recipe

# Rows of one length, so that no stage pads.
PROBE = torch.tensor([list(range(10, 22)), list(range(40, 52))])
PROBE_COMPLETION = 4


def shard_on_cpu() -> None:
    """Has accelerate take FSDP on CPU, where it would leave it out without a word and run DDP."""
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        is_first = AcceleratorState._shared_state == {}
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if is_first and fsdp_plugin is not None:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def how_it_is_held(trainer: Trainer) -> dict[str, Any]:
    """Facts that no option can claim: how many tensors this rank holds only a part of, in what dtype."""
    parameters = list(trainer.model_wrapped.parameters())
    state = trainer.accelerator.state
    return {
        "distributed_type": str(state.distributed_type),
        "num_processes": state.num_processes,
        "local_process_index": state.local_process_index,
        "wrapper": type(trainer.model_wrapped).__name__,
        "zero_stage": trainer.accelerator.deepspeed_plugin.zero_stage if trainer.is_deepspeed_enabled else None,
        "parameters": len(parameters),
        "zero3_parts": sum(hasattr(parameter, "ds_tensor") for parameter in parameters),
        "dtensors": sum(isinstance(parameter, DTensor) for parameter in parameters),
        "fsdp_blocks": sum(
            isinstance(module, FSDPModule) and isinstance(module, GPTPanguBlock)
            for module in trainer.model_wrapped.modules()
        ),
        "dtypes": sorted({str(parameter.dtype) for parameter in parameters}),
        "optimizer": type(innermost_optimizer(trainer.optimizer)).__name__,
    }


def innermost_optimizer(optimizer: Any) -> Any:
    """The optimiser inside those of accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


@torch.no_grad()
def probe(model: nn.Module) -> dict[str, list]:
    """What the model gives for the fixed input: logits, or of PPO log-probabilities and values."""
    was_training = model.training
    model.eval()
    if hasattr(getattr(model, "module", model), "policy"):
        outputs = model(PROBE, torch.ones_like(PROBE), PROBE_COMPLETION)
        found = {"logprobs": outputs["logprobs"], "values": outputs["values"]}
    else:
        found = {"logits": model(input_ids=PROBE, attention_mask=torch.ones_like(PROBE)).logits}
    model.train(was_training)
    return {name: tensor.float().tolist() for name, tensor in found.items()}


def plan_fault(fault: str, step: int, rank: int) -> None:
    """Has something go wrong in the step after `step`: kill or hang the rank, or refuse what the first one writes."""

    def fail(owner: Any, name: str, happen: Any) -> None:
        original = getattr(owner, name)

        def failing(self: Trainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == step and self.args.process_index == rank:
                happen()
            return original(self, *args, **kwargs)

        setattr(owner, name, failing)

    if fault == "kill":
        fail(Trainer, "training_step", lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif fault == "hang":
        fail(Trainer, "training_step", lambda: time.sleep(600))
    elif fault == "disk":
        # No file may grow beyond this many bytes, as on a disk that is full.
        fail(Trainer, "_save_checkpoint", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    else:
        raise ValueError(fault)


class FaultInPhase(list):
    """In the place of the guard's list of phases: what is entered after the first step goes wrong on one rank.

    Args:
        rank: Of this process.
        faulty: The rank on which it happens.
        phases: `die` in the one that is named, or `hang` in each of them until all ranks have reported, and then for
            ever in the first one.
        folder: Where ranks tell each other of their reports.
    """

    def __init__(self, fault: str, rank: int, faulty: int, phases: list[str], folder: Path) -> None:
        super().__init__()
        self.fault, self.is_faulty, self.phases, self.folder = fault, rank == faulty, phases, folder
        self.first, self.last_step = phases[0], 0
        report = HangGuard.report

        def tell_of_report(guard: HangGuard, waited: float) -> str:
            with (folder / f"reports-{rank}").open("a") as told:
                told.write("x")
            return report(guard, waited)

        HangGuard.report = tell_of_report

    def append(self, phase: str) -> None:
        super().append(phase)
        if not self.is_faulty or hang_guard._step < 2:
            return
        if self.fault == "die" and phase in self.phases:
            raise RuntimeError("out of memory, let us say")
        if self.fault == "hang" and phase in self.phases and hang_guard._step > self.last_step:
            # One in a step: between two of them the other rank gets through to what it waits for next.
            self.last_step = hang_guard._step
            self.phases.remove(phase)
            before = self._reports()
            while not all(now > then for now, then in zip(self._reports(), before, strict=True)):
                time.sleep(0.2)
        elif self.fault == "hang" and phase == self.first and not self.phases:
            time.sleep(3600)

    def _reports(self) -> list[int]:
        paths = [self.folder / f"reports-{rank}" for rank in range(2)]
        return [path.stat().st_size if path.exists() else 0 for path in paths]


def noting_main() -> Callable[[], None]:
    """The `main` of the recipe that the arguments name, which leaves notes."""
    sys.argv = sys.argv[1:]
    if "FAULT_IN_PHASE" in os.environ:
        fault, rank, phases = os.environ["FAULT_IN_PHASE"].split(":")
        ours, folder = int(os.environ["RANK"]), Path(os.environ["FAULT_FOLDER"])
        hang_guard._entered = FaultInPhase(fault, ours, int(rank), phases.split(","), folder)
    if "FAULT" in os.environ:
        fault, step, rank = os.environ["FAULT"].split(":")
        plan_fault(fault, int(step), int(rank))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    run = runpy.run_path(sys.argv[0], run_name="recipe")["main"]
    guard, finish = run.__globals__["guard"], run.__globals__["finish"]
    counted = CountSteps()

    def guard_and_count(trainer: Trainer, *arguments: Any) -> None:
        guard(trainer, *arguments)
        if "COUNT_COLLECTIVES" in os.environ:
            trainer.add_callback(counted)

    def finish_with_notes(trainer: Trainer) -> None:
        notes = how_it_is_held(trainer) | {"collectives": counted.per_step}
        notes["outputs"] = probe(trainer.model_wrapped)
        path = Path(trainer.args.output_dir) / f"rank-{trainer.args.process_index}.json"
        finish(trainer)
        path.write_text(json.dumps(notes))

    run.__globals__["guard"], run.__globals__["finish"] = guard_and_count, finish_with_notes
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_recipe(noting_main())
