"""Conversion of PanGu-alpha checkpoints: published HF files, MindSpore, Megatron, DeepSpeed-Chat.

A source (`sources.py`) shows a checkpoint's tensors under the names of our classes without reading them; `convert`
checks names and shapes; a target (`targets.py`) reads and writes them one file after the other.
"""

from .configurations import Unsaid
from .convert import FORMATS, TARGETS, ConversionOptions, convert
from .sizes import SIZES, named_config
from .stored import ConversionError

__all__ = [
    "FORMATS",
    "SIZES",
    "TARGETS",
    "ConversionError",
    "ConversionOptions",
    "Unsaid",
    "convert",
    "named_config",
]
