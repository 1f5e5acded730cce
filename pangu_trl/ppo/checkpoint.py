"""Policy and critic on disk, as `from_pretrained` reads them."""

import copy
import logging
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from pangu_trl.models.adapter_selection import VALUE_ADAPTER, active_adapter
from pangu_trl.models.loading import name_base_for_good
from pangu_trl.runs.folders import VALUE_HEAD_FILE, VALUE_MODEL_FOLDER

from .actor_critic.policy_value import PolicyAndValue

logger = logging.getLogger(__name__)

# The adapter that PEFT saves into the folder itself.
PEFT_DEFAULT = "default"
ADAPTER_FILE = "adapter_model.safetensors"
# As PEFT names the head of a sequence classification model in an adapter's file.
HEAD_KEY = "base_model.model.score.weight"


def save_policy_and_value(
    models: PolicyAndValue, output_dir: str | Path, state_dict: dict[str, Tensor] | None
) -> list[Path]:
    """Writes the policy (or its adapter) into `output_dir` and the critic beside it.

    A critic with a backbone of its own, and one that is an adapter, go into `output_dir/value_model`; a head on the
    policy's backbone is `output_dir/value_head.safetensors`. Without a critic there is nothing beside the policy.

    Args:
        models: The unwrapped module.
        output_dir: A folder, made if missing.
        state_dict: Whole weights of `models` as an engine gathered them; None takes them from `models`, and without
            any tensor (ZeRO-3 that does not gather) nothing is written but a warning.

    Returns:
        Folders of the models that were written, which want a tokenizer.
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
        return []
    output_dir = Path(output_dir)
    save_learnt(models.policy, output_dir, _part(state_dict, "policy."))
    if not models.has_critic:
        return [output_dir]
    critic_dir = output_dir / VALUE_MODEL_FOLDER
    if hasattr(models, "value_model"):
        save_learnt(models.value_model, critic_dir, _part(state_dict, "value_model."))
    elif models.has_value_adapter:
        _save_value_adapter(models.policy, critic_dir, state_dict)
    else:
        save_file({"weight": state_dict["value_head.weight"].contiguous()}, output_dir / VALUE_HEAD_FILE)
        return [output_dir]
    return [output_dir, critic_dir]


def save_learnt(model: PreTrainedModel | PeftModel, folder: Path, state_dict: dict[str, Tensor]) -> None:
    """Writes a model, or of a PEFT model the adapter that it learns, so that the folder itself can be loaded.

    PEFT writes an adapter that is not called `default` one folder deeper, where it does not look for it.

    Args:
        model: A model that learns.
        folder: Made if missing.
        state_dict: Its weights, whole.
    """
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=state_dict)
        return
    adapter = active_adapter(model)
    name_base_for_good(model)
    model.save_pretrained(folder, state_dict=state_dict, selected_adapters=[adapter])
    deeper = folder / adapter
    if adapter != PEFT_DEFAULT:
        for file in deeper.iterdir():
            file.replace(folder / file.name)
        deeper.rmdir()


def _save_value_adapter(policy: PeftModel, folder: Path, state_dict: dict[str, Tensor]) -> None:
    """Writes the critic as the adapter of a sequence classification model, which a reward model's adapter is too."""
    name_base_for_good(policy)
    weights = get_peft_model_state_dict(policy, _part(state_dict, "policy."), adapter_name=VALUE_ADAPTER)
    weights[HEAD_KEY] = state_dict["value_head.weight"]
    config = copy.deepcopy(policy.peft_config[VALUE_ADAPTER])
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", ["score"], True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / ADAPTER_FILE, metadata={"format": "pt"})


def _part(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def load_policy_and_value(models: PolicyAndValue, checkpoint_dir: str | Path) -> None:
    """Reads back what `save_policy_and_value` wrote, into the same models.

    Raises:
        RuntimeError: The folder holds another architecture or misses weights.
    """
    folder = Path(checkpoint_dir)
    _load_into(models.policy, folder)
    if not models.has_critic:
        return
    if hasattr(models, "value_model"):
        _load_into(models.value_model, folder / VALUE_MODEL_FOLDER)
        return
    if models.has_value_adapter:
        weights = load_peft_weights(str(folder / VALUE_MODEL_FOLDER), device="cpu")
        head = weights.pop(HEAD_KEY)
        _load_adapter(models.policy, folder / VALUE_MODEL_FOLDER, weights, VALUE_ADAPTER)
    else:
        head = load_file(folder / VALUE_HEAD_FILE)["weight"]
    with torch.no_grad():
        models.value_head.weight.copy_(head)


def _load_into(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    if isinstance(model, PeftModel):
        _load_adapter(model, folder, load_peft_weights(str(folder), device="cpu"), active_adapter(model))
        return
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    with torch.no_grad():
        model.load_state_dict(saved.state_dict())


def _load_adapter(model: PeftModel, folder: Path, weights: dict[str, Tensor], adapter: str) -> None:
    result = set_peft_model_state_dict(model, weights, adapter_name=adapter)
    if result.unexpected_keys:
        raise RuntimeError(f"{folder}: adapter weights that the model does not have: {result.unexpected_keys}")
