"""RLHF for causal language models: supervised fine-tuning, a K-wise reward model, PPO; first-class for GPTPangu.

Importing the package registers GPTPangu with the Auto classes of transformers. The trainers, which import TRL, load
when they are first used.
"""

from importlib import import_module
from typing import Any

from pangu_trl.gptpangu import (
    GPTPanguConfig,
    GPTPanguForCausalLM,
    GPTPanguForSequenceClassification,
    GPTPanguForTokenClassification,
    GPTPanguModel,
    GPTPanguTokenizer,
    register,
)

__version__ = "0.1.0"

register()

_LAZY = {
    "KWiseRewardConfig": "pangu_trl.reward.config",
    "KWiseRewardTrainer": "pangu_trl.reward.trainer",
    "PPOConfig": "pangu_trl.ppo.config",
    "PPOTrainer": "pangu_trl.ppo.trainer",
}

__all__ = [
    "GPTPanguConfig",
    "GPTPanguForCausalLM",
    "GPTPanguForSequenceClassification",
    "GPTPanguForTokenClassification",
    "GPTPanguModel",
    "GPTPanguTokenizer",
    "KWiseRewardConfig",
    "KWiseRewardTrainer",
    "PPOConfig",
    "PPOTrainer",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'pangu_trl' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
