"""What GPTPangu's `forward` takes besides tensors: the cache, which has two names, and keywords of other layers.

transformers 5.24 calls `cache` what 5.23 calls `past_key_values`. Here both names are taken under both versions, and a
keyword that nothing would read is an error: the next new name of something that matters must not get lost.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.masking_utils import create_causal_mask
from transformers.utils import TransformersKwargs

# What the installed transformers calls the cache in its mask functions, layers and outputs.
CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

_LOSS_KEYWORDS = {"ignore_index", "shift_labels"}
_PAGED_KEYWORDS = {"read_index", "write_index", "block_table", "logits_indices", "logits_processor_args"}
_PACKING_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
# What a layer hands to its attention function itself, so that a caller's would be lost.
_OWN_OF_ATTENTION = {"module", "query", "key", "value", "attention_mask", "scaling", "dropout", "kwargs"}
# Read by nothing here, and without an effect on the result; TRL's RewardTrainer hands its margins to the model too.
_HARMLESS_KEYWORDS = {"return_dict", "margin"}


def resolve_cache(past_key_values: Any, cache: Any) -> Any:
    """Returns the one cache that a caller passed under either name, or None.

    Raises:
        ValueError: Two caches, or something that is none, such as a tuple of keys and values.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError(
            "GPTPangu: cache and past_key_values are two names of one argument, and got two different caches. Pass one."
        )
    given = past_key_values if cache is None else cache
    if given is not None and not isinstance(given, (Cache, PagedAttentionCache)):
        raise ValueError(
            f"GPTPangu: cache (or past_key_values) must be a transformers Cache, such as DynamicCache(); got "
            f"{type(given).__name__}."
        )
    return given


def paged_cache(cache: Any) -> dict[str, PagedAttentionCache]:
    """The cache of continuous batching as an argument of a block, empty for any other cache.

    Its name is `cache` in every version. Up to 5.23 the attention function writes to it, from 5.24 on the layer.
    """
    return {"cache": cache} if isinstance(cache, PagedAttentionCache) else {}


def check_checkpointing(cache: Any, checkpointed: bool) -> None:
    """Refuses a cache where the layers would drop it, and compute the new tokens without their past.

    Args:
        cache: The cache, as `forward` was given it.
        checkpointed: Whether a layer is in training mode with gradient checkpointing. From transformers 5.24 on it
            keeps the cache where no gradient is computed.

    Raises:
        ValueError: A cache that a layer would drop.
    """
    if cache is not None and checkpointed and (torch.is_grad_enabled() or CACHE_ARGUMENT == "past_key_values"):
        raise ValueError(
            "GPTPangu: gradient checkpointing in training mode cannot go with a cache. Call model.eval() before "
            "generate, or pass use_cache=False and no cache."
        )


def check_keywords(
    keywords: dict[str, Any], position_ids: Tensor | None, cache: Any, attention: Callable[..., Any]
) -> None:
    """Refuses keywords that would be swallowed, or that would be obeyed by some attention implementations only.

    Args:
        keywords: What `forward` has no parameter for.
        position_ids: Positions, as `forward` was given them.
        cache: The cache, as `forward` was given it.
        attention: The attention function, which may take keywords of its own.

    Raises:
        ValueError: An unknown keyword that is not None; `is_causal=False`; the bounds of packed sequences without
            `position_ids`.
    """
    paged = isinstance(cache, PagedAttentionCache)
    known = set(TransformersKwargs.__annotations__) | _LOSS_KEYWORDS | _HARMLESS_KEYWORDS
    known |= inspect.signature(attention).parameters.keys() - _OWN_OF_ATTENTION
    if paged:
        known |= _PAGED_KEYWORDS
    unknown = sorted(name for name, value in keywords.items() if value is not None and name not in known)
    if unknown:
        raise ValueError(
            f"GPTPangu: forward does not know {', '.join(unknown)}, and would leave out what it stands for. Remove it; "
            "token_type_ids and head_mask are inputs of the published code only."
        )
    if paged:
        return
    if keywords.get("is_causal") is False:
        raise ValueError("GPTPangu: is_causal=False is not supported, the model is causal. Pass a 4-D attention_mask.")
    bounds = [name for name in _PACKING_KEYWORDS if keywords.get(name) is not None]
    if bounds and position_ids is None:
        raise ValueError(
            f"GPTPangu: {', '.join(bounds)} mark packed sequences; give position_ids too, which restart with each of "
            "them, or their positions would run on."
        )
