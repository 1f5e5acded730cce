"""What a PPO run keeps on disk: policy and critic as `from_pretrained` reads them, and the rollout in use."""

import json
import logging
from dataclasses import fields
from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from .config import PPOConfig
from .policy_value import PolicyAndValue
from .rollout import Rollout

logger = logging.getLogger(__name__)

STATE_FILE = "ppo_state.json"
VALUE_MODEL_FOLDER = "value_model"


def save_policy_and_value(models: PolicyAndValue, output_dir: str | Path, state_dict: dict[str, Tensor] | None) -> None:
    """Writes the policy (or its adapter) into `output_dir` and the critic into `output_dir/value_model`.

    Args:
        models: The unwrapped module.
        output_dir: A folder, made if missing.
        state_dict: Whole weights of `models` as an engine gathered them; None takes them from `models`, and without
            any tensor (ZeRO-3 that does not gather) nothing is written but a warning.
    """
    if state_dict is None:
        state_dict = models.state_dict()
    elif not state_dict:
        logger.warning(
            "%s: policy and critic are not written here, since ZeRO-3 did not gather their weights; the engine's own "
            "files hold them (zero_to_fp32.py converts those). Set stage3_gather_16bit_weights_on_model_save "
            "(zero3_save_16bit_model in accelerate's configuration) to have them written.",
            output_dir,
        )
        return
    for prefix, model, folder in (
        ("policy.", models.policy, Path(output_dir)),
        ("value_model.", models.value_model, Path(output_dir) / VALUE_MODEL_FOLDER),
    ):
        part = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        model.save_pretrained(folder, state_dict=part)


def load_policy_and_value(models: PolicyAndValue, checkpoint_dir: str | Path) -> None:
    """Reads back what `save_policy_and_value` wrote, into the same models.

    Raises:
        RuntimeError: The folder holds another architecture or misses weights.
    """
    _load_into(models.policy, Path(checkpoint_dir))
    _load_into(models.value_model, Path(checkpoint_dir) / VALUE_MODEL_FOLDER)


def _load_into(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    if isinstance(model, PeftModel):
        result = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        if result.unexpected_keys:
            raise RuntimeError(f"{folder}: adapter weights that the model does not have: {result.unexpected_keys}")
        return
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    with torch.no_grad():
        model.load_state_dict(saved.state_dict())


def save_rollout_state(folder: Path, rank: int, rollout: Rollout, kl_coef: float, options: dict[str, int]) -> None:
    """Adds to a checkpoint what a run needs to go on in the middle of a rollout: one rollout file per rank.

    Args:
        folder: The checkpoint, made if missing.
        rank: Number of this process.
        rollout: The rollout in use on this rank.
        kl_coef: Current weight of the KL penalty.
        options: What `rollout_options` gave.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {field.name: getattr(rollout, field.name).contiguous() for field in fields(rollout)}
    save_file(tensors, folder / f"rollout-{rank}.safetensors")
    if rank == 0:
        (folder / STATE_FILE).write_text(json.dumps({"kl_coef": kl_coef, "options": options}, indent=2))


def load_rollout_state(
    folder: str | Path, rank: int, device: torch.device, options: dict[str, int]
) -> tuple[Rollout, float]:
    """Reads back what `save_rollout_state` wrote.

    Raises:
        FileNotFoundError: The checkpoint has no rollout.
        ValueError: It was written under other `options`, so that its rollout and its step mean something else.
    """
    folder = Path(folder)
    path = folder / f"rollout-{rank}.safetensors"
    state = json.loads((folder / STATE_FILE).read_text()) if (folder / STATE_FILE).is_file() else None
    for name, value in options.items():
        if state is not None and state["options"][name] != value:
            raise ValueError(
                f"{folder}: written with {name}={state['options'][name]}; this run has {name}={value}. Resume with the "
                "same value: the order of prompts and mini-batches depends on it."
            )
    if state is None or not path.is_file():
        raise FileNotFoundError(
            f"{path if state else folder / STATE_FILE}: missing. Resume with the number of processes that wrote the "
            "checkpoint, and from one that was written by PPOTrainer without save_only_model."
        )
    return Rollout(**{name: tensor.to(device) for name, tensor in load_file(path).items()}), state["kl_coef"]


def rollout_options(args: PPOConfig) -> dict[str, int]:
    """The options on which the order of prompts and mini-batches depends, as a run must keep them on resume."""
    names = ("per_device_train_batch_size", "num_rollout_batches", "num_ppo_epochs", "gradient_accumulation_steps")
    return {"world_size": args.world_size} | {name: getattr(args, name) for name in names}
