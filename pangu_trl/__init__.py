"""RLHF for causal language models: supervised fine-tuning, a K-wise reward model, PPO; first-class for GPTPangu.

Importing the package registers GPTPangu with the Auto classes of transformers, whether they are there already or are
imported later, and loads nothing itself. The names of `__init__.pyi` are imported when they are first used.
"""

import lazy_loader

from pangu_trl.gptpangu.registration import register

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register()
