"""GPTPangu (PanGu-alpha, arXiv:2104.12369) as a native transformers model.

What differs from GPT-2: separate q, k, v projections; the final LayerNorm `ln_f` stands BEFORE the last block; the
query of the last block comes from a learned table of positions (`wqe`), its keys, values and residual from the
normalised stream.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .arguments_gptpangu import CACHE_ARGUMENT, check_checkpointing, check_keywords, paged_cache, resolve_cache
from .attention_gptpangu import GPTPanguAttention, attention_function
from .configuration_gptpangu import GPTPanguConfig
from .masking_gptpangu import check_attention_mask, check_positions, derive_positions, make_attention_mask


class GPTPanguMLP(nn.Module):
    def __init__(self, config: GPTPanguConfig) -> None:
        super().__init__()
        intermediate_size = config.intermediate_size or 4 * config.hidden_size
        self.c_fc = nn.Linear(config.hidden_size, intermediate_size)
        self.c_proj = nn.Linear(intermediate_size, config.hidden_size)
        self.c_proj.ends_branch = True
        self.act = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden_states))))


class GPTPanguBlock(GradientCheckpointingLayer):
    """Pre-LN block. Tensors that need gradients are positional, as re-entrant checkpointing demands."""

    def __init__(self, config: GPTPanguConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = GPTPanguAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = GPTPanguMLP(config)

    def forward(self, hidden_states: Tensor, query_states: Tensor | None = None, **kwargs: Any) -> Tensor:
        """hidden_states (B, T, H), query_states (B, T, H) for the top query block only -> (B, T, H)."""
        attention_output, _ = self.attn(self.ln_1(hidden_states), query_states, **kwargs)
        hidden_states = hidden_states + attention_output
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class GPTPanguPreTrainedModel(PreTrainedModel):
    config: GPTPanguConfig
    config_class = GPTPanguConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTPanguBlock"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": GPTPanguBlock,
        "attentions": OutputRecorder(GPTPanguAttention, layer_name=".attn", index=1),
    }
    # Causal-mask buffers that published checkpoints carry.
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.bias$", r"\.attn\.masked_bias$"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # On the projection itself: transformers passes by modules without weights of their own, as attention and MLP
        # are, in every model that is not its own.
        if getattr(module, "ends_branch", False):
            # Two residual branches a block: scaled as in GPT-2, so that depth does not grow the stream.
            std = self.config.initializer_range / (2 * self.config.num_layers) ** 0.5
            init.normal_(module.weight, mean=0.0, std=std)


class GPTPanguModel(GPTPanguPreTrainedModel):
    """Embeddings and blocks; returns the output of the top query block, which no LayerNorm follows."""

    def __init__(self, config: GPTPanguConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.wqe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(GPTPanguBlock(config, layer_idx) for layer_idx in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Encodes a batch.

        Args:
            input_ids: Tokens, (B, T).
            attention_mask: True or nonzero for real tokens, (B, past + T). Or a ready 4-D mask, (B, 1 or heads, T,
                past + T): True or nonzero integer where a query sees a key, or floats that are added to the scores.
            position_ids: Positions, (B, T) or (1, T). Derived from a 2-D mask when not given, so that a left-padded
                row is computed as if it were alone. A position that does not rise starts a new packed sequence,
                which does not see the earlier ones. A 4-D mask is taken as it is.
            past_key_values: Keys and values of earlier tokens.
            inputs_embeds: Embedded tokens in place of `input_ids`, (B, T, H).
            use_cache: Whether to return keys and values.
            cache: Another name of `past_key_values`.

        Raises:
            ValueError: Neither or both of `input_ids` and `inputs_embeds`; two caches, or one under gradient
                checkpointing; a keyword that nothing reads; a position that the tables do not have; a mask of another
                shape; packed sequences where they cannot be kept apart.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("GPTPanguModel: pass exactly one of input_ids and inputs_embeds.")
        cache = resolve_cache(past_key_values, cache)
        check_keywords(kwargs, position_ids, cache, attention_function(self.config))
        check_checkpointing(cache, self.training and any(block.gradient_checkpointing for block in self.h))
        paged = paged_cache(cache)
        past_key_values = None if paged else cache
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        check_attention_mask(attention_mask, inputs_embeds, past_key_values)
        given_position_ids = position_ids
        if position_ids is None:
            position_ids = derive_positions(inputs_embeds, attention_mask, past_key_values)
        limit = self.config.max_position_embeddings
        check_positions(position_ids, limit, past_key_values, derived=given_position_ids is None)
        # Before a cache is made: transformers keeps packed sequences apart only where there is none.
        causal_mask = make_attention_mask(
            self.config, inputs_embeds, attention_mask, past_key_values, given_position_ids
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        block_inputs = {CACHE_ARGUMENT: past_key_values} | paged
        block_inputs |= dict(attention_mask=causal_mask, position_ids=position_ids)
        hidden_states = self.drop(inputs_embeds + self.wpe(position_ids))
        for block in self.h[:-1]:
            hidden_states = block(hidden_states, None, **block_inputs, **kwargs)
        top_query = self.wqe(position_ids).expand_as(hidden_states)
        hidden_states = self.h[-1](self.ln_f(hidden_states), top_query, **block_inputs, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE_ARGUMENT: past_key_values})


class GPTPanguForCausalLM(GPTPanguPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: GPTPanguConfig) -> None:
        super().__init__(config)
        self.transformer = GPTPanguModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Ties the output head to the word embedding, unless a file that is being loaded holds two different ones.

        transformers then leaves them apart with a warning, but under ZeRO-3, where it compares empty parts, ties them
        all the same. Here the configuration follows, so that neither a later call (resizing makes one) nor loading the
        saved model ties them after all.
        """
        if missing_keys is not None and is_deepspeed_zero3_enabled() and self._partitioned_head_differs(missing_keys):
            self.all_tied_weights_keys.pop("lm_head.weight", None)
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)
        if missing_keys is not None and not self.all_tied_weights_keys:
            self.config.tie_word_embeddings = False

    def _partitioned_head_differs(self, missing_keys: set[str]) -> bool:
        import deepspeed

        if missing_keys & {"lm_head.weight", "transformer.wte.weight"}:
            return False
        weights = [self.lm_head.weight, self.transformer.wte.weight]
        with deepspeed.zero.GatheredParameters(weights):
            return not torch.equal(*weights)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Next-token logits (B, T, V) and, with `labels` (B, T; -100 is ignored), the mean cross entropy.

        Differs from the published code, which ignores the pad id in the labels instead of -100.
        """
        outputs: BaseModelOutputWithPast = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_ARGUMENT: getattr(outputs, CACHE_ARGUMENT)},
        )


class _BothCacheNames:
    """Gives the generic heads, whose `forward` knows the name of one version, the cache under either."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Any:
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **{CACHE_ARGUMENT: resolve_cache(past_key_values, cache)},
            **kwargs,
        )


# The constructors of the generic classes ask AutoModel for the backbone, which, for custom code on the Hub, wants to be
# told again that it is trusted. These name the class, and set up the rest alike.
class GPTPanguForSequenceClassification(_BothCacheNames, GenericForSequenceClassification, GPTPanguPreTrainedModel):
    """A score head (no bias) at the last real token; with `num_labels=1` a reward or value model."""

    # The generic class, first in the resolution order, calls its backbone "model".
    base_model_prefix = "transformer"

    def __init__(self, config: GPTPanguConfig) -> None:
        GPTPanguPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.transformer = GPTPanguModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class GPTPanguForTokenClassification(_BothCacheNames, GenericForTokenClassification, GPTPanguPreTrainedModel):
    """A linear head (with bias) at every token, after dropout of `classifier_dropout` (0.1)."""

    base_model_prefix = "transformer"

    def __init__(self, config: GPTPanguConfig) -> None:
        GPTPanguPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.transformer = GPTPanguModel(config)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()
