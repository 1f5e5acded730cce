"""Numbers of a model that memory depends on, counted on the model itself without its weights."""

import copy
import json
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, get_peft_config

from pangu_trl.gptpangu.conversion import named_config
from pangu_trl.models.adapter_selection import can_merge
from pangu_trl.models.loading import refuse_missing_folder
from pangu_trl.models.lora_targets import resolve_single_target

from .settings import SIZES, TINY

# As PEFT calls an adapter that was given no name.
DEFAULT_ADAPTER = "default"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model.

    Attributes:
        num_parameters: Weights, tied ones once, adapters included.
        num_trainable: Those that learn.
        num_in_blocks: Weights of all blocks.
        largest_block: Weights of the largest block, or of the embedding if that is larger.
        hidden_size: Width of the residual stream, H.
        num_blocks: Blocks, L.
        num_key_value_features: Width of the keys of a block, and of its values.
        intermediate_size: Width of the MLP.
        vocab_size: Rows of the embedding, V.
        num_lora_inputs: Features that the LoRA layers of a block read, all layers together.
        num_mergeable: Weights that LoRA can be added to for generation.
        num_quantisable: Weights of linear layers but the head, which `load_in_4bit` and `load_in_8bit` quantise.
        largest_matrix: Weights of the largest of these layers.
    """

    num_parameters: int
    num_trainable: int
    num_in_blocks: int
    largest_block: int
    hidden_size: int
    num_blocks: int
    num_key_value_features: int
    intermediate_size: int
    vocab_size: int
    num_lora_inputs: int = 0
    num_mergeable: int = 0
    num_quantisable: int = 0
    largest_matrix: int = 0

    @property
    def num_frozen(self) -> int:
        return self.num_parameters - self.num_trainable


def load_config(model: str) -> PreTrainedConfig:
    """The configuration of a folder or Hub id, or of one of the published sizes.

    Raises:
        ValueError: There is none that can be loaded.
    """
    import pangu_trl

    if model not in SIZES:
        refuse_missing_folder(model)
        try:
            return AutoConfig.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{model}: no model whose config.json can be loaded; give a folder, a Hub id that can be reached from "
                f"here, or one of {', '.join(SIZES)}. {error}"
            ) from error
    if model == TINY:
        return pangu_trl.GPTPanguConfig(hidden_size=256, num_layers=4, num_heads=4)
    return named_config(model.removeprefix("pangu-"))


def count(
    config: PreTrainedConfig, is_scoring: bool = False, lora: dict[str, Any] | None = None, trains: bool = True
) -> ModelShape:
    """Builds the model on the meta device and counts; asked again, as advice is by trial, it knows.

    Args:
        config: Configuration of the language model.
        is_scoring: A sequence classification model with one label in place of a language model.
        lora: The options of LoRA as TRL's ModelConfig has them; None trains all weights.
        trains: False for a model that is only asked.
    """
    question = (type(config), config.to_json_string(use_diff=False), is_scoring, json.dumps(lora, default=str), trains)
    if question not in _counted:
        _counted[question] = _count(config, is_scoring, lora, trains)
    return _counted[question]


_counted: dict[tuple[Any, ...], ModelShape] = {}


def without_weights(config: PreTrainedConfig, is_scoring: bool = False) -> PreTrainedModel:
    """The model of a configuration on the meta device."""
    auto_class = AutoModelForSequenceClassification if is_scoring else AutoModelForCausalLM
    with torch.device("meta"):
        return auto_class.from_config(config)


def with_lora(model: PreTrainedModel, lora: dict[str, Any]) -> PeftModel:
    """A model on the meta device with the adapter that these options of TRL's ModelConfig ask for."""
    with torch.device("meta"):
        adapter = get_peft_config(ModelConfig(use_peft=True, **lora))
        resolve_single_target(adapter)
        return get_peft_model(model, adapter)


def _count(config: PreTrainedConfig, is_scoring: bool, lora: dict[str, Any] | None, trains: bool) -> ModelShape:
    if is_scoring:
        config = copy.deepcopy(config)
        config.num_labels = 1
    model: nn.Module = without_weights(config, is_scoring)
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    matrices = [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(module is head for head in heads)
    ]
    if not trains:
        model.requires_grad_(False)
    elif lora is not None:
        model = with_lora(model, lora | {"lora_task_type": "SEQ_CLS"} if is_scoring else lora)
    text = config.get_text_config()
    num_heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // num_heads
    blocks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    block_sizes = [sum(p.numel() for p in block.parameters()) for group in blocks for block in group]
    own = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    embedding = model.get_input_embeddings().weight
    mergeable = [layer for layer in adapted if can_merge(layer, DEFAULT_ADAPTER, embedding)]
    return ModelShape(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_in_blocks=sum(block_sizes),
        largest_block=max(block_sizes + own),
        hidden_size=text.hidden_size,
        num_blocks=text.num_hidden_layers,
        num_key_value_features=(getattr(text, "num_key_value_heads", None) or num_heads) * head_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocab_size=text.vocab_size,
        num_lora_inputs=sum(layer.in_features for layer in adapted) // text.num_hidden_layers,
        num_mergeable=sum(layer.get_base_layer().weight.numel() for layer in mergeable),
        num_quantisable=sum(matrices),
        largest_matrix=max(matrices),
    )
