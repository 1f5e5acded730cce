"""Log-probabilities of answer tokens under a language model, and the entropy of what they were drawn from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pangu_trl.models.padding_free import PackedBatch, is_padding_free
from pangu_trl.models.score_head import backbone, innermost, position_arguments
from pangu_trl.models.vocabulary import known_ids

from .tiled_head import needs_tiles, tiled_logprobs

# Logits that are turned into log-probabilities at a time: 64 MB of float32.
PIECE = 2**24


def completion_logprobs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and entropy of its distribution, both (B, C) in float32 nats.

    Arguments as in `PolicyAndValue.forward`; the logits of the prompt are never computed, and without padding those of
    no padding. The distribution is over `known_ids`, from which answers are sampled.
    """
    return logprobs_and_states(model, input_ids, attention_mask, completion_mask, temperature)[:2]


def logprobs_and_states(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `completion_logprobs` gives, and the states (n, H) before the n answer tokens, which the head read."""
    width = completion_mask.shape[1]
    tokens = input_ids[:, -width:]
    if is_padding_free(model):
        packed = PackedBatch.of(input_ids, attention_mask)
        arguments = packed.arguments(model) | {"use_cache": False}
        places, tokens = packed.places[:, -width - 1 : -1][completion_mask], tokens[completion_mask]
        if needs_tiles(model, len(places)):
            states = backbone(model)(**arguments).last_hidden_state[0][places]
            logprobs, entropy = tiled_logprobs(model, states, tokens, temperature)
        else:
            with _head_inputs(model) as inputs:
                logits = model(**arguments, logits_to_keep=places).logits[0]
            states = inputs[0][0]
            logprobs, entropy = token_logprobs(logits[:, : known_ids(model)], tokens, temperature)
        return in_columns(logprobs, completion_mask), in_columns(entropy, completion_mask), states
    with _head_inputs(model) as inputs:
        logits = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            logits_to_keep=width + 1,
            **position_arguments(model, attention_mask),
        ).logits[:, :-1, : known_ids(model)]
    rows = [token_logprobs(*row, temperature) for row in zip(logits, tokens, strict=True)]
    logprobs, entropy = (torch.stack(figures) for figures in zip(*rows, strict=True))
    return logprobs, entropy, inputs[0][:, :-1][completion_mask]


def in_columns(figures: Tensor, completion_mask: Tensor) -> Tensor:
    """Figures (n,) of the answer tokens where the mask (B, C) has them, 0 elsewhere: (B, C)."""
    return figures.new_zeros(completion_mask.shape).masked_scatter(completion_mask, figures)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, (n,) each, from logits (n, V).

    A piece at a time, so that what float32, temperature and softmax need on the way is one piece's; of the whole, a
    learning pass keeps one float32 copy at most, and a pass without gradients none.
    """
    logprobs, entropy = [], []
    size = max(1, PIECE // logits.shape[-1])
    for piece, piece_tokens in zip(logits.split(size), tokens.split(size), strict=True):
        piece = piece.float()
        if temperature != 1.0:
            piece = piece / temperature
        normaliser = piece.logsumexp(dim=-1)
        logprobs.append(piece.gather(-1, piece_tokens.unsqueeze(-1)).squeeze(-1) - normaliser)
        with torch.no_grad():
            entropy.append(normaliser - (piece.softmax(dim=-1) * piece).sum(dim=-1))
    return torch.cat(logprobs), torch.cat(entropy)


@contextmanager
def _head_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the hidden states that a causal language model hands to its head: those of the kept logits."""
    inputs: list[Tensor] = []
    head = innermost(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()
