"""Configuration of GPTPangu (PanGu-alpha)."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

# What config.json may call the model: published checkpoints say "pangu" where their class said "gpt_pangu".
MODEL_TYPES = ("gpt_pangu", "pangu")


@strict
class GPTPanguConfig(PreTrainedConfig):
    """Describes a GPTPangu model: a pre-LN GPT whose last block takes its query from a learned position table.

    The keys of the published checkpoints are kept (`num_layers`, `num_heads`, `*_pdrop`, `activation_function`,
    `intermediate_size: null` for four times the hidden size); `attribute_map` adds the usual names. A published
    `model_type: pangu` loads too.

    Args:
        vocab_size: Rows of the word embedding.
        hidden_size: Width of the residual stream; divisible by `num_heads`.
        num_layers: Blocks, the top query block included.
        num_heads: Attention heads of each block.
        intermediate_size: Width of the MLP; None means `4 * hidden_size`.
        max_position_embeddings: Rows of the two position tables; a later position is a ValueError.
        activation_function: `gelu` (erf) as the published HF-format checkpoints say, or `gelu_pytorch_tanh` as the
            official weights were trained.
        resid_pdrop: Dropout after the attention projection and the MLP.
        embd_pdrop: Dropout after the embeddings.
        attn_pdrop: Dropout of the attention probabilities.
        layer_norm_epsilon: Epsilon of every LayerNorm.
        scale_attn_weights: Whether scores are divided by the square root of the head width.
        initializer_range: Standard deviation of the initial weights.
        use_cache: Whether `forward` returns keys and values by default.
        tie_word_embeddings: Whether the output head shares the word embedding.
    """

    model_type = MODEL_TYPES[0]
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    # TRL's create_model_from_path reads `config.auto_map` of every class that is not in the transformers namespace.
    auto_map: ClassVar[dict[str, Any]] = {}
    base_model_tp_plan = {
        "wte": "embedding_rowwise",
        "h.*.attn.q_proj": "colwise",
        "h.*.attn.k_proj": "colwise",
        "h.*.attn.v_proj": "colwise",
        "h.*.attn.c_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    }

    vocab_size: int = 40000
    hidden_size: int = 2560
    num_layers: int = 32
    num_heads: int = 32
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    activation_function: str = "gelu"
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = 6
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 9
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # Saving with custom code writes into this dictionary: each instance needs its own.
        self.auto_map = dict(self.auto_map)
        if self.num_heads < 1 or self.num_layers < 1:
            raise ValueError(
                f"GPTPanguConfig: num_heads and num_layers must be 1 or more; got num_heads={self.num_heads}, "
                f"num_layers={self.num_layers}."
            )
        if self.activation_function not in ACT2FN:
            raise ValueError(
                "GPTPanguConfig: activation_function must be one that transformers knows, such as gelu or "
                f"gelu_pytorch_tanh; got {self.activation_function!r}."
            )
        if self.hidden_size % self.num_heads != 0:
            raise ValueError(
                f"GPTPanguConfig: hidden_size must be divisible by num_heads; "
                f"got hidden_size={self.hidden_size}, num_heads={self.num_heads}."
            )

    def to_dict(self) -> dict[str, Any]:
        """As every configuration's, without `auto_map` unless the class is registered to be saved with its code.

        A copy of a folder with custom code would otherwise name files that only the original has.
        """
        output = super().to_dict()
        if not self.is_remote_code():
            output.pop("auto_map", None)
        return output
