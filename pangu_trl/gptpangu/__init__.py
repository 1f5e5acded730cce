"""GPTPangu (PanGu-alpha) for transformers: configuration, models, tokenizer and their registration."""

from peft.utils import constants as peft_constants
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)

from .configuration_gptpangu import GPTPanguConfig
from .modeling_gptpangu import GPTPanguForCausalLM, GPTPanguForSequenceClassification, GPTPanguModel
from .tokenization_gptpangu import GPTPanguTokenizer

__all__ = [
    "GPTPanguConfig",
    "GPTPanguForCausalLM",
    "GPTPanguForSequenceClassification",
    "GPTPanguModel",
    "GPTPanguTokenizer",
    "register",
]


class _TokenizerOnlyConfig(PreTrainedConfig):
    """Key under which the tokenizer is registered.

    AutoTokenizer prefers a folder's own remote code when the model's configuration class has a registered tokenizer
    and `trust_remote_code=True`. Under a configuration that no folder has, the tokenizer is found by its class name
    and the remote code of published folders never runs.
    """

    model_type = "gpt_pangu_tokenizer"


def register() -> None:
    """Makes the Auto classes, and PEFT's default target modules, know GPTPangu. Calling it again changes nothing."""
    # Published checkpoints say "pangu" where their class said "gpt_pangu"; AutoConfig.register refuses a second name.
    for model_type in (GPTPanguConfig.model_type, "pangu"):
        CONFIG_MAPPING.register(model_type, GPTPanguConfig, exist_ok=True)
    AutoModel.register(GPTPanguConfig, GPTPanguModel, exist_ok=True)
    AutoModelForCausalLM.register(GPTPanguConfig, GPTPanguForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(GPTPanguConfig, GPTPanguForSequenceClassification, exist_ok=True)
    AutoTokenizer.register(_TokenizerOnlyConfig, GPTPanguTokenizer, exist_ok=True)
    target_modules = ["q_proj", "k_proj", "v_proj", "c_proj", "c_fc"]
    peft_constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[GPTPanguConfig.model_type] = target_modules
