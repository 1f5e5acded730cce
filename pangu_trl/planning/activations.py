"""Bytes of activations, logits and key-value caches.

Counted from the tensors that a pre-LN block saves for its backward pass under a fused attention kernel: both inputs of
the LayerNorms, what they give to the projections, query, key, value, the attention's output, and the input and output
of the MLP's activation function.
"""

from .models import ModelShape
from .states import Precision

# At the peak of PPO's backward pass: the logits, and the gradients of rows and of all of them, in float32.
FLOAT32_LOGITS = 3
# TRL's kernel never holds all logits: it goes through tiles of so many tokens, on CPU with so many float32 copies of a
# tile. TRL's trainers take so many columns of the vocabulary at a time.
TILE_TOKENS, TRL_COLUMNS = 4096, 32768
TILE_COPIES_ON_CPU = 7


def block_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes that one block saves for each token."""
    in_stream = 2 * shape.hidden_size * precision.residual
    features = 4 * shape.hidden_size + 2 * shape.num_key_value_features + 2 * shape.intermediate_size
    return in_stream + features * precision.compute


def activation_bytes(
    shape: ModelShape, precision: Precision, num_tokens: int, checkpoints: bool, has_lora_dropout: bool = False
) -> int:
    """Bytes that a forward pass saves.

    Args:
        shape: The model.
        precision: Of what is saved.
        num_tokens: Tokens of the batch, padding included.
        checkpoints: Whether only the inputs of the blocks are kept, and one block at a time is computed again.
        has_lora_dropout: Whether every LoRA layer keeps an input of its own, and which features dropout left.
    """
    block = block_bytes(shape, precision)
    if has_lora_dropout:
        block += shape.num_lora_inputs * (precision.compute + 1)
    if not checkpoints:
        return shape.num_blocks * block * num_tokens
    return (shape.num_blocks * shape.hidden_size * precision.residual + block) * num_tokens


def logit_bytes(shape: ModelShape, precision: Precision, num_predictions: int) -> int:
    """Bytes of the logits of a batch, and of what the loss makes of them."""
    cast = 0 if precision.compute == 4 else precision.compute
    return num_predictions * shape.vocab_size * (4 * FLOAT32_LOGITS + cast)


def tile_bytes(shape: ModelShape, precision: Precision, num_predictions: int, columns: int, on_cpu: bool) -> int:
    """Bytes of the tile of logits that TRL's kernel works on, and of the gradient of the head in float32.

    Args:
        shape: The model.
        precision: Of the tile.
        num_predictions: Tokens that are predicted.
        columns: Columns of the vocabulary in a tile.
        on_cpu: Whether the kernel is made of torch's operations, with copies of the tile.
    """
    tokens = min(num_predictions, TILE_TOKENS)
    copies = TILE_COPIES_ON_CPU * min(shape.vocab_size, columns) * 4 if on_cpu else 0
    return tokens * (columns * precision.compute + copies) + _gradient_of_head(shape)


def best_answer_bytes(shape: ModelShape, precision: Precision, num_answers: int, num_tokens: int) -> int:
    """Bytes of the language-model loss of a K-wise reward model, which takes one answer of each prompt at a time.

    Args:
        shape: The model.
        precision: Of the logits; what the loss keeps of them until its backward pass is in float32.
        num_answers: Answers that have it, one of each prompt.
        num_tokens: Tokens of one of them.
    """
    cast = 0 if precision.compute == 4 else precision.compute
    # Kept of all; of one the gradients of its likelihoods and of its logits.
    size = num_tokens * shape.vocab_size * (4 * num_answers + 8 + cast)
    return size + _gradient_of_head(shape)


def _gradient_of_head(shape: ModelShape) -> int:
    """Bytes of the gradient of an output head that learns, in float32, before it joins that of the weight."""
    return 4 * shape.vocab_size * shape.hidden_size if shape.num_frozen == 0 else 0


def cache_bytes(shape: ModelShape, element_size: int, num_tokens: int) -> int:
    """Bytes of the key-value cache of a batch with so many tokens at its longest."""
    return 2 * shape.num_blocks * shape.num_key_value_features * num_tokens * element_size
