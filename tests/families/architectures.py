"""Architectures of the installed transformers, tiny: one of each way to know positions, to attend, to route, to end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers

import pangu_trl

WINDOW = 8


@dataclass(frozen=True)
class Architecture:
    """A model family and what is particular about it.

    Attributes:
        name: As docs/models.md lists it.
        config: Makes its configuration for V tokens, an end of sequence and a pad token.
        trait: Positions, attention, experts, head.
        is_encoder: Reads an answer as a whole; can only be a reward model.
        refusal: What PPO says of it as a policy (of an encoder, as a reward model), before it learns anything.
    """

    name: str
    config: Callable[[int, int, int], Any]
    trait: str
    is_encoder: bool = False
    refusal: str | None = None


def _of(
    name: str,
    trait: str,
    without: tuple[str, ...] = (),
    encoder: bool = False,
    refusal: str | None = None,
    **options: Any,
) -> Architecture:
    """A configuration class that takes the names of Llama's, and more."""

    def make(vocab_size: int, eos_token_id: int, pad_token_id: int) -> Any:
        sizes = dict(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=160,
            bos_token_id=None,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )
        sizes = {key: value for key, value in sizes.items() if key not in without}
        return getattr(pangu_trl if name == "GPTPangu" else transformers, f"{name}Config")(**sizes | options)

    label = name.removesuffix("Text") + (" (text)" if name.endswith("Text") else "")
    label += " (ALiBi)" if options.get("alibi") else ""
    return Architecture(label, make, trait, encoder, refusal)


def _gemma3(vocab_size: int, eos_token_id: int, pad_token_id: int) -> Any:
    text = dict(vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    text |= dict(num_key_value_heads=1, head_dim=16, sliding_window=WINDOW, max_position_embeddings=160)
    text |= dict(layer_types=["sliding_attention", "full_attention"], eos_token_id=eos_token_id)
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return transformers.Gemma3Config(
        text_config=text | dict(pad_token_id=pad_token_id, bos_token_id=None),
        vision_config=vision | dict(image_size=28, patch_size=14),
        mm_tokens_per_image=4,
        image_token_index=vocab_size - 1,
        boi_token_index=vocab_size - 2,
        eoi_token_index=vocab_size - 3,
        eos_token_id=eos_token_id,
        bos_token_id=None,
        pad_token_id=pad_token_id,
    )


def _llava(vocab_size: int, eos_token_id: int, pad_token_id: int) -> Any:
    text = _of("Llama", "").config(vocab_size, eos_token_id, pad_token_id)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    return transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocab_size - 1)


_GPT = ("num_key_value_heads", "intermediate_size")
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
_WINDOWED = dict(sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])

ARCHITECTURES = [
    _of("GPTPangu", "learned positions, a query of its own on top, tied head", ("num_key_value_heads",)),
    _of("GPT2", "learned positions, tied head", _GPT),
    _of("GPTNeo", "learned positions, local attention", (*_GPT, "num_attention_heads"), num_heads=2, num_layers=2,
        attention_types=[[["global", "local"], 1]], window_size=WINDOW),
    _of("GPTBigCode", "learned positions, one key head", _GPT, multi_query=True),
    _of("OPT", "learned positions from 2 on", _GPT, ffn_dim=64, word_embed_proj_dim=32),
    _of("BioGpt", "learned positions from 2 on", ("num_key_value_heads",)),
    _of("XGLM", "sinusoidal positions from 2 on",
        ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        d_model=32, ffn_dim=64, num_layers=2, attention_heads=2),
    _of("CTRL", "sinusoidal positions", ("intermediate_size", "num_key_value_heads"), dff=64),
    _of("OpenAIGPT", "learned positions, no cache", _GPT),
    _of("Bloom", "ALiBi, tied head", (*_GPT, "num_attention_heads", "max_position_embeddings"), n_head=2),
    _of("Mpt", "ALiBi, tied head",
        (*_GPT, "hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings"),
        d_model=32, n_heads=2, n_layers=2, max_seq_len=160),
    _of("Falcon", "rotary, one key head", _GPT),
    _of("Falcon", "ALiBi", _GPT, alibi=True),
    _of("GPTJ", "rotary in part, untied head", _GPT, rotary_dim=8),
    _of("CodeGen", "rotary in part", (*_GPT, "num_attention_heads"), n_head=4, rotary_dim=4),
    _of("GPTNeoX", "rotary in part, parallel residual", ("num_key_value_heads",)),
    _of("Llama", "rotary, grouped keys, untied head"),
    _of("Mistral", "sliding window", sliding_window=WINDOW),
    _of("Mixtral", "experts, router logits", num_local_experts=4, output_router_logits=True),
    _of("Qwen2", "rotary, bias on queries and keys"),
    _of("Qwen2Moe", "experts and a shared one, router logits", **_EXPERTS, shared_expert_intermediate_size=32,
        output_router_logits=True),
    _of("Qwen3", "norms of queries and keys", head_dim=16),
    _of("Qwen3Moe", "experts", head_dim=16, **_EXPERTS),
    _of("Qwen3Next", "linear attention, experts", head_dim=16, layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, **_EXPERTS,
        shared_expert_intermediate_size=32),
    _of("Gemma", "scaled embeddings, tied head", head_dim=16),
    _of("Gemma2", "softcaps, sliding window", head_dim=16, sliding_window=WINDOW, final_logit_softcapping=5.0,
        attn_logit_softcapping=5.0, query_pre_attn_scalar=16),
    _of("Gemma3Text", "two rotary bases, sliding window", head_dim=16, **_WINDOWED),
    Architecture("Gemma3", _gemma3, "composite: a vision tower beside the text"),
    Architecture("Llava", _llava, "composite: a vision tower beside a Llama"),
    _of("Phi", "rotary in part"),
    _of("Phi3", "fused projections, sliding window", sliding_window=WINDOW),
    _of("Phimoe", "experts drawn by chance while it learns", refusal="policy gives other log-probabilities while it",
        num_local_experts=4, output_router_logits=True),
    _of("StableLm", "rotary in part"),
    _of("Starcoder2", "sliding window, tied head", sliding_window=WINDOW),
    _of("Olmo", "norms without weights"),
    _of("Olmo2", "norms behind the layers"),
    _of("Olmoe", "experts", num_experts=4, num_experts_per_tok=2),
    _of("Cohere", "parallel layers, scaled logits", logit_scale=0.5),
    _of("Cohere2", "sliding window, no positions in full layers", **_WINDOWED),
    _of("Granite", "multipliers", attention_multiplier=0.2, logits_scaling=2.0),
    _of("Glm", "rotary in part, fused MLP", head_dim=16),
    _of("SmolLM3", "no positions in some layers", no_rope_layers=[0, 1]),
    _of("Nemotron", "squared ReLU"),
    _of("GptOss", "attention sinks, experts, sliding window", head_dim=16, num_local_experts=4, sliding_window=WINDOW),
    _of("DeepseekV3", "latent attention, experts", num_key_value_heads=2, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8),
    _of("Lfm2", "convolutions", layer_types=["conv", "full_attention"]),
    _of("Jamba", "no positions: state space and attention, experts", attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, num_experts=2, use_mamba_kernels=False, mamba_d_state=8,
        mamba_dt_rank=4),
    _of("Mamba", "no positions: state space", ("intermediate_size", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings"), state_size=8),
    _of("Mamba2", "no positions: state space", ("intermediate_size", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings"), state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=8),
    _of("FalconMamba", "no positions: state space", ("intermediate_size", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings"), state_size=8),
    _of("RecurrentGemma", "linear recurrences, local attention", head_dim=16, lru_width=32,
        attention_window_size=WINDOW, block_types=["recurrent", "attention"]),
    _of("Bamba", "state space and attention", attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16,
        mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8),
    _of("Dbrx", "experts with noise, clipped queries",
        ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size",
        "max_position_embeddings"), d_model=32, n_heads=2, n_layers=2,
        max_seq_len=160, attn_config=dict(kv_n_heads=1, clip_qkv=8.0, rope_theta=10000.0),
        ffn_config=dict(ffn_hidden_size=32, moe_num_experts=2, moe_top_k=1, moe_jitter_eps=0.1, hidden_size=32)),
    _of("Rwkv", "no positions: recurrent state", refusal="RwkvForCausalLM, whose log-probabilities .* hang on padding",
        without=("num_attention_heads", "num_key_value_heads",
        "max_position_embeddings"), attention_hidden_size=32, context_length=160),
    _of("Exaone4", "sliding window, no positions in full layers", **_WINDOWED),
    _of("FalconH1", "state space and attention side by side", mamba_n_heads=4, mamba_d_head=16, mamba_d_ssm=64,
        mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8),
    # Without a pad token, whose row of zeros in the embedding would make its gradients NaN.
    _of("Gemma3nText", "several streams, embeddings for every layer, shared keys", head_dim=16, pad_token_id=None,
        sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"] * 2, num_hidden_layers=4,
        num_kv_shared_layers=2, hidden_size_per_layer_input=8, laurel_rank=4, vocab_size_per_layer_input=400),
    _of("MiniMax", "linear attention, experts; its cache reads padding", head_dim=16, num_local_experts=2,
        layer_types=["linear_attention", "full_attention"], num_experts_per_tok=1),
    _of("GraniteMoe", "experts, multipliers", num_local_experts=2, num_experts_per_tok=1),
    _of("Bert", "encoder, learned positions", ("num_key_value_heads",), encoder=True),
    _of("Roberta", "encoder, positions behind the pad id", ("num_key_value_heads",), encoder=True),
    _of("DistilBert", "encoder, learned positions", _GPT + ("num_hidden_layers", "num_attention_heads", "hidden_size"),
        encoder=True, dim=32, hidden_dim=64, n_layers=2, n_heads=2),
    _of("Electra", "encoder, learned positions", ("num_key_value_heads",), encoder=True),
    _of("DebertaV2", "encoder, relative positions", ("num_key_value_heads",), encoder=True, relative_attention=True,
        pos_att_type=["p2c", "c2p"]),
    _of("ModernBert", "encoder, rotary, local attention", ("num_key_value_heads",), encoder=True,
        local_attention=WINDOW, global_attn_every_n_layers=2),
    _of("Longformer", "encoder, windows of attention", ("num_key_value_heads",), encoder=True, attention_window=WINDOW),
    _of("Canine", "encoder of characters, four at a time", ("num_key_value_heads", "vocab_size"), encoder=True,
        refusal="cannot score a text of three tokens: .* Take another model"),
]  # fmt: skip
