"""The published sizes of PanGu-alpha."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..configuration_gptpangu import GPTPanguConfig

# Blocks, the top query block included; hidden size; attention heads.
SIZES = {"350m": (24, 1024, 16), "2.6b": (32, 2560, 32), "13b": (40, 5120, 40)}


def named_config(size: str) -> "GPTPanguConfig":
    """The configuration of a published model.

    Args:
        size: A key of `SIZES`.

    Raises:
        ValueError: There is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}.")
    from ..configuration_gptpangu import GPTPanguConfig

    num_layers, hidden_size, num_heads = SIZES[size]
    return GPTPanguConfig(num_layers=num_layers, hidden_size=hidden_size, num_heads=num_heads)
