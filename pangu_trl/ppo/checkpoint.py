"""What a PPO run keeps on disk: policy and critic as `from_pretrained` reads them, and the rollout in use."""

import json
from dataclasses import fields
from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from .policy_value import PolicyAndValue
from .rollout import Rollout

VALUE_MODEL_FOLDER = "value_model"


def save_policy_and_value(models: PolicyAndValue, output_dir: str | Path, state_dict: dict[str, Tensor] | None) -> None:
    """Writes the policy (or its adapter) into `output_dir` and the critic into `output_dir/value_model`.

    Args:
        models: The unwrapped module.
        output_dir: A folder, made if missing.
        state_dict: Whole weights of `models` as an engine gathered them; None takes them from `models`.
    """
    if state_dict is None:
        state_dict = models.state_dict()
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


def save_rollout_state(folder: Path, rank: int, rollout: Rollout, kl_coef: float) -> None:
    """Adds to a checkpoint what a run needs to go on in the middle of a rollout: one rollout file per rank."""
    tensors = {field.name: getattr(rollout, field.name).contiguous() for field in fields(rollout)}
    save_file(tensors, folder / f"rollout-{rank}.safetensors")
    if rank == 0:
        (folder / "ppo_state.json").write_text(json.dumps({"kl_coef": kl_coef}))


def load_rollout_state(folder: str | Path, rank: int, device: torch.device) -> tuple[Rollout, float]:
    """Reads back what `save_rollout_state` wrote.

    Raises:
        FileNotFoundError: The checkpoint was made by another number of ranks, or not by PPOTrainer.
    """
    path = Path(folder) / f"rollout-{rank}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing. Resume with the number of processes that wrote the checkpoint.")
    tensors = {name: tensor.to(device) for name, tensor in load_file(path).items()}
    return Rollout(**tensors), json.loads((Path(folder) / "ppo_state.json").read_text())["kl_coef"]
