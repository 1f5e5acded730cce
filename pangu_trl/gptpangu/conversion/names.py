"""What each checkpoint format calls the tensors of GPTPangu."""

from dataclasses import dataclass

# Of an ordinary block: transformers, MindSpore (numpy), whether MindSpore stores the transpose, Megatron, and the
# dimension that Megatron's tensor parallelism splits (None: every rank holds the whole tensor).
_BLOCK = (
    ("ln_1.weight", "layernorm1.gamma", False, "input_layernorm.weight", None),
    ("ln_1.bias", "layernorm1.beta", False, "input_layernorm.bias", None),
    ("attn.q_proj.weight", "attention.dense1.weight", False, "attention.query.weight", 0),
    ("attn.q_proj.bias", "attention.dense1.bias", False, "attention.query.bias", 0),
    ("attn.k_proj.weight", "attention.dense2.weight", False, "attention.key.weight", 0),
    ("attn.k_proj.bias", "attention.dense2.bias", False, "attention.key.bias", 0),
    ("attn.v_proj.weight", "attention.dense3.weight", False, "attention.value.weight", 0),
    ("attn.v_proj.bias", "attention.dense3.bias", False, "attention.value.bias", 0),
    ("attn.c_proj.weight", "attention.projection.weight", True, "attention.dense.weight", 1),
    ("attn.c_proj.bias", "attention.projection.bias", False, "attention.dense.bias", None),
    ("ln_2.weight", "layernorm2.gamma", False, "post_attention_layernorm.weight", None),
    ("ln_2.bias", "layernorm2.beta", False, "post_attention_layernorm.bias", None),
    ("mlp.c_fc.weight", "output.mapping.weight", True, "mlp.dense_h_to_4h.weight", 0),
    ("mlp.c_fc.bias", "output.mapping.bias", False, "mlp.dense_h_to_4h.bias", 0),
    ("mlp.c_proj.weight", "output.projection.weight", True, "mlp.dense_4h_to_h.weight", 1),
    ("mlp.c_proj.bias", "output.projection.bias", False, "mlp.dense_4h_to_h.bias", None),
)


@dataclass(frozen=True)
class TensorName:
    """One tensor in three formats.

    Attributes:
        hf: Name in GPTPanguForCausalLM.
        mindspore: Name of the numpy file, without `.npy`.
        mindspore_transposed: Whether the numpy file holds the transpose.
        megatron: Keys below `checkpoint["model"]["language_model"]`; the last one may hold dots.
        split_dim: Dimension that is divided between tensor-parallel ranks in Megatron, or None.
    """

    hf: str
    mindspore: str
    mindspore_transposed: bool
    megatron: tuple[str, ...]
    split_dim: int | None = None


WORD_EMBEDDING = TensorName(
    "transformer.wte.weight",
    "backbone.word_embedding.embedding_table",
    False,
    ("embedding", "word_embeddings", "weight"),
    0,
)


def tensor_names(num_layers: int) -> list[TensorName]:
    """All tensors of a model with a tied head.

    Args:
        num_layers: Blocks, the top query block included; MindSpore and Megatron count it apart.
    """
    names = [
        WORD_EMBEDDING,
        TensorName(
            "transformer.wpe.weight",
            "backbone.position_embedding.embedding_table",
            False,
            ("embedding", "position_embeddings", "weight"),
        ),
        TensorName(
            "transformer.wqe.weight",
            "backbone.top_query_embedding.embedding_table",
            False,
            ("topQueryEmbedding", "top_query_embeddings", "weight"),
        ),
    ]
    for layer in range(num_layers):
        is_top = layer == num_layers - 1
        mindspore_block = "backbone.top_query_layer" if is_top else f"backbone.blocks.{layer}"
        megatron_block = "topQueryLayer" if is_top else f"layers.{layer}"
        names += [
            TensorName(
                f"transformer.h.{layer}.{hf}",
                f"{mindspore_block}.{mindspore}",
                transposed,
                ("transformer", f"{megatron_block}.{megatron}"),
                split_dim,
            )
            for hf, mindspore, transposed, megatron, split_dim in _BLOCK
        ]
    for hf, mindspore in (("weight", "gamma"), ("bias", "beta")):
        megatron = ("transformer", f"final_layernorm.{hf}")
        names.append(TensorName(f"transformer.ln_f.{hf}", f"backbone.layernorm.{mindspore}", False, megatron))
    return names
