"""What the files of a model or an adapter say it is: a language model, or one that scores."""

from peft import PeftConfig
from transformers import PreTrainedConfig

# What PEFT calls the head of a sequence classifier that it saves whole.
_SCORE_HEADS = {"score", "classifier"}


def modules_saved_whole(config: PeftConfig) -> tuple[str, ...]:
    """Modules that an adapter brings whole, so that its base model need not have them."""
    return tuple(getattr(config, "modules_to_save", None) or ())


def refuse_scoring_adapter(name: str, config: PeftConfig) -> None:
    """Refuses the adapter of a reward model or critic as one of a language model.

    Raises:
        ValueError: The message says what to give instead.
    """
    if config.task_type == "SEQ_CLS":
        _refuse_scoring(name, "an adapter of type SEQ_CLS")
    if config.task_type is None and _SCORE_HEADS.intersection(modules_saved_whole(config)):
        _refuse_scoring(name, "an adapter with a score head")


def refuse_scoring_model(name: str, config: PreTrainedConfig) -> None:
    """Refuses a reward model or critic as a language model: with a tied head it would load, and its score be dropped.

    Raises:
        ValueError: The message says what to give instead.
    """
    architecture = _architecture(config)
    if architecture.endswith("ForSequenceClassification"):
        _refuse_scoring(name, architecture)


def language_model_kind(config: PreTrainedConfig | PeftConfig) -> str | None:
    """What sort of language model a configuration is of, for messages; None if it does not say that it is one."""
    if isinstance(config, PeftConfig):
        return "an adapter of type CAUSAL_LM" if config.task_type == "CAUSAL_LM" else None
    architecture = _architecture(config)
    return architecture if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None


def _architecture(config: PreTrainedConfig) -> str:
    return next(iter(config.architectures or ()), "")


def _refuse_scoring(name: str, kind: str) -> None:
    raise ValueError(
        f"{name}: a reward model or critic ({kind}), not a language model: it scores answers and writes none. Give the "
        "folder of a language model, as SFT or PPO wrote it; PPO's is the one around its critic, value_model"
    )
