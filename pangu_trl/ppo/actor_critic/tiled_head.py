"""Log-probabilities from hidden states tile by tile: the logits of all answer tokens are never in memory at once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from trl.kernels import ChunkedLogProbFunction

from pangu_trl.models.padding_free import difference
from pangu_trl.models.score_head import innermost
from pangu_trl.models.sharding import is_sharded
from pangu_trl.models.vocabulary import known_ids

# Above this many logits (256 MB in float32) they are computed tile by tile, and once more in the backward pass.
MOST_LOGITS = 2**26
# Columns of the vocabulary in a tile, of which the kernel takes 4,096 rows: 16 MiB, and on a CPU five times that.
TILE = 1024


def allow_tiles(model: nn.Module, compute: Callable[[], Tensor]) -> None:
    """Lets a model compute log-probabilities tile by tile where there are many, if that gives the same figures.

    It does not where the head is more than a linear layer (an adapter on it, quantised weights, logits that the model
    changes in a way of its own). A head that is sharded is left alone.

    Args:
        model: A causal language model, or one with an adapter.
        compute: Log-probabilities of a small batch by this model.
    """
    inner = innermost(model)
    if not has_plain_head(inner) or is_sharded(inner):
        return
    with torch.no_grad():
        expected = compute()
        inner.most_logits = 0
        inner.most_logits = MOST_LOGITS if difference(compute, expected) is None else None


def has_plain_head(model: nn.Module) -> bool:
    """Whether the head is a linear layer and nothing more, as far as its type tells."""
    return type(innermost(model).get_output_embeddings()) is nn.Linear


def needs_tiles(model: nn.Module, num_tokens: int) -> bool:
    """Whether the logits of so many tokens would be too many, for a model that `allow_tiles` let compute tiles."""
    inner = innermost(model)
    most = getattr(inner, "most_logits", None)
    return most is not None and num_tokens * inner.get_output_embeddings().weight.shape[0] > most


def tiled_logprobs(model: nn.Module, states: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, (n,) each in float32 nats, by TRL's kernel.

    Args:
        model: Has the head.
        states: What the head reads, (n, H).
        tokens: Token ids, (n,).
        temperature: Divides the logits.
    """
    inner, size = innermost(model), known_ids(model)
    head, config = inner.get_output_embeddings(), inner.config.get_text_config()
    logprobs, entropy, *_ = ChunkedLogProbFunction.apply(
        states,
        head.weight[:size],
        None if head.bias is None else head.bias[:size],
        tokens,
        temperature,
        TILE,
        getattr(config, "final_logit_softcapping", None),
        getattr(config, "logit_scale", None) or 1.0,
        ("entropy",),
    )
    return logprobs, entropy.detach()
