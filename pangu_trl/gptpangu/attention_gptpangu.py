"""Causal self-attention of GPTPangu, through the attention interface of transformers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .arguments_gptpangu import CACHE_ARGUMENT
from .configuration_gptpangu import GPTPanguConfig


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain softmax attention: (B, heads, T, head width) each -> (B, T, heads, head width) and the probabilities."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


def attention_function(config: GPTPanguConfig) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function of the attention implementation that a model was set to."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)


class GPTPanguAttention(nn.Module):
    """Causal self-attention; the query may be computed from another tensor than keys and values."""

    is_causal = True

    def __init__(self, config: GPTPanguConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_heads
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.c_proj.ends_branch = True
        # A module rather than a number, because disabling dropout means setting `p` on nn.Dropout modules.
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        query_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states (B, T, H) -> (B, T, H), attention probabilities where the implementation gives them."""
        cache = kwargs.pop(CACHE_ARGUMENT, None)
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states if query_states is None else query_states).view(head_shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(head_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        if cache is not None:
            # A paged cache changes the keywords for the attention function.
            key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)

        output, probabilities = attention_function(self.config)(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attn_dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = self.c_proj(output.reshape(*input_shape, -1).contiguous())
        return self.resid_dropout(output), probabilities
