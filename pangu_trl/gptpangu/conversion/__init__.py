"""Conversion of PanGu-alpha checkpoints: published HF files, MindSpore, Megatron, DeepSpeed-Chat.

A source (`sources.py`) shows a checkpoint's tensors under the names of our classes without reading them; `convert`
checks names and shapes; a target (`targets.py`) reads and writes them one file after the other.

The names of `__init__.pyi` are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
