"""Log-probabilities of answer tokens under a language model, and the entropy of what they were drawn from."""

import torch
from torch import Tensor, nn

from pangu_trl.models.padding_free import PackedBatch, is_padding_free
from pangu_trl.models.score_head import position_arguments
from pangu_trl.models.vocabulary import known_ids


def completion_logprobs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer token and entropy of its distribution, both (B, C) in float32 nats.

    Arguments as in `PolicyAndValue.forward`; the logits of the prompt are never computed, and without padding those of
    no padding. The distribution is over `known_ids`, from which answers are sampled.
    """
    width = completion_mask.shape[1]
    if is_padding_free(model):
        packed = PackedBatch.of(input_ids, attention_mask)
        logits = model(
            **packed.arguments(model),
            use_cache=False,
            logits_to_keep=packed.places[:, -width - 1 : -1][completion_mask],
        ).logits[:, :, : known_ids(model)]
        found = token_logprobs(logits, input_ids[:, -width:][completion_mask].unsqueeze(0), temperature)
        return tuple(in_columns(figures[0], completion_mask) for figures in found)
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        use_cache=False,
        logits_to_keep=width + 1,
        **position_arguments(model, attention_mask),
    ).logits[:, :-1, : known_ids(model)]
    return token_logprobs(logits, input_ids[:, -width:], temperature)


def in_columns(figures: Tensor, completion_mask: Tensor) -> Tensor:
    """Figures (n,) of the answer tokens where the mask (B, C) has them, 0 elsewhere: (B, C)."""
    return figures.new_zeros(completion_mask.shape).masked_scatter(completion_mask, figures)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution, (R, C) each, from logits (R, C, V).

    Row by row, so that what float32, temperature and softmax need on the way is one row's (C, V); of the whole, a
    learning pass keeps one float32 copy at most, and a pass without gradients none.
    """
    logprobs, entropy = [], []
    for row, row_tokens in zip(logits, tokens, strict=True):
        row = row.float()
        if temperature != 1.0:
            row = row / temperature
        normaliser = row.logsumexp(dim=-1)
        logprobs.append(row.gather(-1, row_tokens.unsqueeze(-1)).squeeze(-1) - normaliser)
        with torch.no_grad():
            entropy.append(normaliser - (row.softmax(dim=-1) * row).sum(dim=-1))
    return torch.stack(logprobs), torch.stack(entropy)
