"""Which layers of a model LoRA is put on: attention and MLP of any family, and never a name that matches nothing."""

import logging
import re

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ALL_LINEAR = "all-linear"
# Of which a model reads the weights, past what LoRA adds.
STATE_SPACE_LAYERS = ("conv1d", "dt_proj", "x_proj", "out_proj")
PAST_LORA = rf".*\.(mamba|mixer)\.({'|'.join(STATE_SPACE_LAYERS)})|.*\.altup\.correction_coefs"

logger = logging.getLogger(__name__)


def resolve_single_target(config: LoraConfig) -> None:
    """Has one name in a list of targets be a name: TRL makes a word of it, which PEFT holds against whole paths."""
    targets = config.target_modules
    if isinstance(targets, str) and targets != ALL_LINEAR and re.fullmatch(r"\w+", targets):
        config.target_modules = {targets}


def resolve_lora_targets(config: LoraConfig, model: PreTrainedModel) -> None:
    """Has LoRA reach every linear layer of the text model where no targets are named.

    PEFT's own defaults are queries and values in most families, and an error in those that it does not list. Left out
    are a vision tower, to which no text gives gradients, heads, which learn as a whole, layers whose weights are read
    past LoRA (of a state space, of Gemma 3n), and linear layers that give more than a tensor, as some routers do.
    """
    resolve_single_target(config)
    if config.target_modules is None and not config.target_parameters:
        config.target_modules = ALL_LINEAR
    if config.target_modules == ALL_LINEAR and config.exclude_modules is None:
        backbone = _text_backbone_name(model)
        outside = rf"(?!{re.escape(backbone)}\.).*|" if backbone else ""
        routers = "".join(rf"|.*\.{re.escape(name)}" for name in sorted(_routers(model)))
        config.exclude_modules = f"{outside}{PAST_LORA}{routers}"


def check_lora_targets(config: LoraConfig, model: PreTrainedModel) -> list[str]:
    """Refuses names of targets that match nothing, of which PEFT says nothing as long as another one matches.

    Args:
        config: With targets.
        model: What the adapter will be put on.

    Returns:
        Names of weights that LoRA on layers cannot reach, since they are no layers: experts kept in one tensor.

    Raises:
        ValueError: The message names the targets and what there is.
    """
    if not isinstance(config.target_modules, str):
        names = [name for name, _ in model.named_modules()]
        unmatched = sorted(
            target
            for target in config.target_modules or []
            if not any(name == target or name.endswith(f".{target}") for name in names)
        )
        if unmatched:
            raise ValueError(
                f"lora_target_modules: {', '.join(unmatched)} match no layer of {type(model).__name__}, whose linear "
                f"layers are called {', '.join(_linear_names(model))}. Name those, or leave lora_target_modules out, "
                f"which takes all of them ({ALL_LINEAR})."
            )
    targeted = config.target_parameters or []
    weights = [name for name, _ in model.named_parameters()]
    unmatched = sorted(target for target in targeted if not any(name.endswith(target) for name in weights))
    if unmatched:
        raise ValueError(
            f"lora_target_parameters: {', '.join(unmatched)} match no weight of {type(model).__name__}. Give ends of "
            f"names such as {weights[-1]}, or leave lora_target_parameters out."
        )
    in_one_tensor = {
        re.sub(r"\.\d+\.", ".*.", name)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and "expert" in name and not any(name.endswith(target) for target in targeted)
    }
    if in_one_tensor:
        logger.warning(
            "LoRA on layers does not reach the experts of %s, which are no layers: %s. They stay as they are; name "
            "them in lora_target_parameters to have them learn.",
            type(model).__name__,
            ", ".join(sorted(in_one_tensor)),
        )
    return sorted(in_one_tensor)


def _text_backbone_name(model: PreTrainedModel) -> str | None:
    """Name of the module that holds the blocks of the text model; None where that is the model itself."""
    if model.config.get_text_config() is model.config:
        return model.base_model_prefix if hasattr(model, model.base_model_prefix) else None
    text_model = model.get_decoder()
    return next((name for name, module in model.named_modules() if name and module is text_model), None)


def _routers(model: nn.Module) -> set[str]:
    """Last names of routers that are linear layers of the model's own kind, whose output is more than a tensor."""
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).__module__.startswith("transformers.models.")
        and type(module).forward is not nn.Linear.forward
        and re.search(r"(router|gate)$", name)
    }


def _linear_names(model: nn.Module) -> list[str]:
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )
