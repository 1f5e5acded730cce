"""GPTPangu (PanGu-alpha) for transformers: configuration, models, tokenizer and their registration."""

import re

from peft.utils import constants as peft_constants
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from .configuration_gptpangu import MODEL_TYPES, GPTPanguConfig
from .modeling_gptpangu import (
    GPTPanguForCausalLM,
    GPTPanguForSequenceClassification,
    GPTPanguForTokenClassification,
    GPTPanguModel,
)
from .tokenization_gptpangu import GPTPanguTokenizer

__all__ = [
    "GPTPanguConfig",
    "GPTPanguForCausalLM",
    "GPTPanguForSequenceClassification",
    "GPTPanguForTokenClassification",
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
    # AutoConfig.register refuses a second name.
    for model_type in MODEL_TYPES:
        CONFIG_MAPPING.register(model_type, GPTPanguConfig, exist_ok=True)
    for auto_class, class_names, model_class in (
        (AutoModel, MODEL_MAPPING_NAMES, GPTPanguModel),
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, GPTPanguForCausalLM),
        (
            AutoModelForSequenceClassification,
            MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            GPTPanguForSequenceClassification,
        ),
        (
            AutoModelForTokenClassification,
            MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
            GPTPanguForTokenClassification,
        ),
    ):
        auto_class.register(GPTPanguConfig, model_class, exist_ok=True)
        # Registering leaves these tables alone, but Trainer asks them for the class: without an entry, label smoothing
        # would score the logits against labels that are not shifted by one.
        class_names[GPTPanguConfig.model_type] = model_class.__name__
    AutoTokenizer.register(_TokenizerOnlyConfig, GPTPanguTokenizer, exist_ok=True)
    _give_peft_targets()


def _give_peft_targets() -> None:
    """Tells PEFT what each of its methods changes in a GPTPangu whose `target_modules` nobody named.

    What fits LoRA fits every method that changes linear layers; IA3 scales keys, values and the inside of the MLP, LN
    tuning the norms of the blocks.
    """
    linear = ["q_proj", "k_proj", "v_proj", "c_proj", "c_fc"]
    others = {
        "IA3": ["k_proj", "v_proj", "mlp.c_proj"],
        "LNTUNING": ["ln_1", "ln_2", "ln_f"],
        "BEFT": ["v_proj"],
    }
    for name, targets in vars(peft_constants).items():
        match = re.fullmatch("TRANSFORMERS_MODELS_TO_(.+)_TARGET_MODULES_MAPPING", name)
        if match:
            targets[GPTPanguConfig.model_type] = others.get(match[1], linear)
    peft_constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[GPTPanguConfig.model_type] = ["mlp.c_proj"]
