"""How transformers and PEFT come to know GPTPangu, without being loaded for it.

The tables that have to be filled lie in modules of transformers whose import takes seconds, since it loads torch; and
transformers offers no entry point that it would read itself. So each table is filled right after its module was
imported, by whomever: `wrapt` has the hooks for that. Where the module is there already they run at once.
"""

import re
import sys
from importlib import import_module
from types import ModuleType

from wrapt import register_post_import_hook

_AUTO = "transformers.models.auto"
_LAYERS = "transformers.modeling_layers"
_MODELS = f"{__package__}.modeling_gptpangu"


def register() -> None:
    """Makes the Auto classes, and PEFT's default target modules, know GPTPangu, now or as soon as they are imported.

    Calling it again changes nothing.
    """
    for hook, name in (
        (_register_configuration, f"{_AUTO}.configuration_auto"),
        (_import_models, f"{_AUTO}.modeling_auto"),
        (_import_models, _LAYERS),
        (_register_models, _MODELS),
        (_register_tokenizer, f"{_AUTO}.tokenization_auto"),
        (_give_peft_targets, "peft.utils.constants"),
    ):
        register_post_import_hook(hook, name)


def _register_configuration(configuration_auto: ModuleType) -> None:
    from .configuration_gptpangu import MODEL_TYPES, GPTPanguConfig

    # AutoConfig.register refuses a second name.
    for model_type in MODEL_TYPES:
        configuration_auto.CONFIG_MAPPING.register(model_type, GPTPanguConfig, exist_ok=True)


def _import_models(_: ModuleType) -> None:
    """Imports the model classes once both the Auto classes and the layers that ours derive from are there.

    The layers import the Auto classes in the middle of their own import. They register when they are there themselves:
    who asks for ours first comes here in the middle of theirs.
    """
    auto, layers = sys.modules.get(f"{_AUTO}.modeling_auto"), sys.modules.get(_LAYERS)
    if auto is not None and (layers is None or hasattr(layers, "GenericForTokenClassification")):
        import_module(_MODELS)


def _register_models(models: ModuleType) -> None:
    from .configuration_gptpangu import GPTPanguConfig

    auto = import_module(f"{_AUTO}.modeling_auto")
    for auto_class, class_names, model_class in (
        (auto.AutoModel, auto.MODEL_MAPPING_NAMES, models.GPTPanguModel),
        (auto.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, models.GPTPanguForCausalLM),
        (
            auto.AutoModelForSequenceClassification,
            auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            models.GPTPanguForSequenceClassification,
        ),
        (
            auto.AutoModelForTokenClassification,
            auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
            models.GPTPanguForTokenClassification,
        ),
    ):
        auto_class.register(GPTPanguConfig, model_class, exist_ok=True)
        # Registering leaves these tables alone, but Trainer asks them for the class: without an entry, label smoothing
        # would score the logits against labels that are not shifted by one.
        class_names[GPTPanguConfig.model_type] = model_class.__name__


def _register_tokenizer(tokenization_auto: ModuleType) -> None:
    from transformers import PreTrainedConfig

    from .tokenization_gptpangu import GPTPanguTokenizer

    class TokenizerOnlyConfig(PreTrainedConfig):
        """Key under which the tokenizer is registered.

        AutoTokenizer prefers a folder's own remote code when the model's configuration class has a registered
        tokenizer and `trust_remote_code=True`. Under a configuration that no folder has, the tokenizer is found by its
        class name and the remote code of published folders never runs.
        """

        model_type = "gpt_pangu_tokenizer"

    tokenization_auto.AutoTokenizer.register(TokenizerOnlyConfig, GPTPanguTokenizer, exist_ok=True)


def _give_peft_targets(constants: ModuleType) -> None:
    """Tells PEFT what each of its methods changes in a GPTPangu whose `target_modules` nobody named.

    What fits LoRA fits every method that changes linear layers; IA3 scales keys, values and the inside of the MLP, LN
    tuning the norms of the blocks.
    """
    from .configuration_gptpangu import GPTPanguConfig

    model_type = GPTPanguConfig.model_type
    linear = ["q_proj", "k_proj", "v_proj", "c_proj", "c_fc"]
    others = {
        "IA3": ["k_proj", "v_proj", "mlp.c_proj"],
        "LNTUNING": ["ln_1", "ln_2", "ln_f"],
        "BEFT": ["v_proj"],
    }
    for name, targets in vars(constants).items():
        match = re.fullmatch("TRANSFORMERS_MODELS_TO_(.+)_TARGET_MODULES_MAPPING", name)
        if match:
            targets[model_type] = others.get(match[1], linear)
    constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type] = ["mlp.c_proj"]
