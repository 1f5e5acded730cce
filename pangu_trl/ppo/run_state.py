"""The state of a PPO run on disk: what it needs beside models and optimiser to go on in the middle of a rollout."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pangu_trl.models.sharding import is_sharded
from pangu_trl.runs.checkpoints import MARK

from .config import PPOConfig
from .control import RunningStd
from .rollout import Rollout

if TYPE_CHECKING:
    from .trainer import PPOTrainer

STATE_FILE = "ppo_state.json"


@dataclass
class RunState:
    """What a run needs, beside models, optimiser and random numbers, to go on in the middle of a rollout.

    Attributes:
        rollout: The rollout in use on this rank.
        kl_coef: Weight of the KL penalty.
        score_statistics: Count, mean and squared deviations of all scores.
        micro_step: Mini-batches since the start of the run.
        passes_stopped: Whether `target_kl` has ended the passes over the rollout.
        options: What `rollout_options` gave.
        average: Moving average of the policy's weights, this rank's part; None without `ema_decay`.
    """

    rollout: Rollout
    kl_coef: float
    score_statistics: dict[str, float]
    micro_step: int
    passes_stopped: bool
    options: dict[str, int | None]
    average: dict[str, Tensor] | None = None

    def save(self, folder: Path, rank: int, is_shared_part_ours: bool) -> None:
        """Writes what differs between the ranks, and on one rank what all share; the folder is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        held = {f.name: getattr(self.rollout, f.name) for f in fields(self.rollout)}
        tensors = {name: tensor.contiguous() for name, tensor in held.items() if tensor is not None}
        save_file(tensors, _rollout_file(folder, rank))
        if self.average is not None:
            save_file(self.average, _average_file(folder, rank))
        if is_shared_part_ours:
            shared = {key: value for key, value in vars(self).items() if key not in ("rollout", "average")}
            (folder / STATE_FILE).write_text(json.dumps(shared, indent=2))

    @classmethod
    def load(
        cls, folder: str | Path, rank: int, device: torch.device, options: dict[str, int | None], sharded_average: bool
    ) -> "RunState":
        """Reads back what was saved; an average that is not sharded was written by the first rank for all.

        Raises:
            FileNotFoundError: The checkpoint has no rollout, or its saving was interrupted.
            ValueError: It was written under other `options`, so that its rollout and its step mean something else.
        """
        folder = Path(folder)
        path = _rollout_file(folder, rank)
        state = json.loads((folder / STATE_FILE).read_text()) if (folder / STATE_FILE).is_file() else None
        for name, value in options.items():
            if state is not None and state["options"][name] != value:
                raise ValueError(
                    f"{folder}: written with {name}={state['options'][name]}; this run has {name}={value}. Resume with "
                    "the same value: the order of prompts, mini-batches and texts depends on it."
                )
        # Without its mark a checkpoint can hold all this and lack the optimiser.
        missing = next((file for file in (folder / STATE_FILE, path, folder / MARK) if not file.is_file()), None)
        if missing is not None:
            raise FileNotFoundError(
                f"{missing}: missing. Resume with the number of processes that wrote the checkpoint, and from one that "
                "was written by PPOTrainer without save_only_model. If the run was killed while it saved, "
                "resume_from_checkpoint=True takes the last whole checkpoint."
            )
        rollout = Rollout(**{name: tensor.to(device) for name, tensor in load_file(path).items()})
        average_file = _average_file(folder, rank if sharded_average else 0)
        average = load_file(average_file) if average_file.is_file() else None
        return cls(rollout=rollout, average=average, **state)


def _rollout_file(folder: Path, rank: int) -> Path:
    return folder / f"rollout-{rank}.safetensors"


def _average_file(folder: Path, rank: int) -> Path:
    return folder / f"ema-{rank}.safetensors"


def rollout_options(args: PPOConfig, num_prompts: int | None, num_texts: int | None) -> dict[str, int | None]:
    """On what the order of prompts, mini-batches and texts depends, as a run must keep it on resume.

    The numbers are None for streams, which have none.
    """
    names = (
        "per_device_train_batch_size",
        "num_rollout_batches",
        "num_generations",
        "num_ppo_epochs",
        "gradient_accumulation_steps",
        "world_size",
        "seed",
        "data_seed",
    )
    return {name: getattr(args, name) for name in names} | {"num_prompts": num_prompts, "num_texts": num_texts}


def state_of(trainer: "PPOTrainer") -> RunState:
    """The state of a run as it stands."""
    # Where no rank holds a part of its own, one writes the average for all.
    keeps_average = trainer.average is not None and (trainer.args.should_save or is_sharded(trainer.model))
    return RunState(
        rollout=trainer.passes.rollout,
        kl_coef=trainer.collector.kl_controller.coefficient,
        score_statistics=asdict(trainer.collector.score_statistics),
        micro_step=trainer.passes.micro_step,
        passes_stopped=trainer.passes.is_stopped,
        options=trainer.rollout_options,
        average=trainer.average.state_dict() if keeps_average else None,
    )


def take_up(trainer: "PPOTrainer", checkpoint: str) -> RunState:
    """Puts a run where a checkpoint left it, but for the average, which waits until the engine has the weights.

    Raises:
        FileNotFoundError: As `RunState.load`.
        ValueError: As `RunState.load`; or the temperature changes in the middle of a rollout.
    """
    rank, device = trainer.accelerator.process_index, trainer.accelerator.device
    state = RunState.load(checkpoint, rank, device, trainer.rollout_options, is_sharded(trainer.model))
    trainer.passes.resume(state.rollout, state.micro_step, state.passes_stopped)
    if "temperature" in trainer.changed_options and not trainer.passes.need_rollout:
        steps = trainer.args.mini_batches_per_rollout // trainer.args.gradient_accumulation_steps
        raise ValueError(
            f"{checkpoint} is in the middle of a rollout, which was sampled at another temperature. Change it at a "
            f"step that is a multiple of {steps}."
        )
    if "kl_coef" not in trainer.changed_options:
        trainer.collector.kl_controller.coefficient = state.kl_coef
    trainer.collector.score_statistics = RunningStd(**state.score_statistics)
    return state
