"""The one way to read the score of a whole text: what a reward model's head gives at its last real token."""

import inspect

import torch
from torch import Tensor, nn

from .padding_free import LEAST_SHARED, OPTION, PackedBatch, is_padding_free, make_padding_free, token_places
from .score_head import at_last_token, innermost, padded_on_the_right, token_scores
from .sharding import is_sharded

# The attribute of a model that tells whether it counts positions on in padding behind a text.
PADDING_COUNTS = "padding_counts_positions"


def _no_cache(model: nn.Module) -> dict[str, bool]:
    """Has a model that can keep its states for later tokens keep none; others do not know the word."""
    parameters = inspect.signature(innermost(model).forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {"use_cache": False} if takes_any or "use_cache" in parameters else {}


def sequence_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, kept: Tensor | None = None) -> Tensor:
    """Reward of each text, (B,): what the score head gives at its last real token; of a head with A attributes (B, A).

    transformers takes the last token that is not the pad token instead. Where a tokenizer pads with its end of sequence
    that is another one, the token before the end.

    Without gradients a model that does without padding computes once what neighbouring texts begin with, such as the
    prompt of several answers.

    Args:
        model: A sequence classification model with one label, or what training wrapped around it. Of one without such
            a head, as encoders that score a whole text, the score is what it returns.
        input_ids: Texts, padded on either side, (B, T).
        attention_mask: 1 for real tokens, (B, T).
        kept: True for what a model without padding is to compute, real tokens and padding behind them (B, T), for
            those who collect `token_scores`; None for real tokens alone.
    """
    if is_padding_free(model):
        if kept is None and not torch.is_grad_enabled():
            input_ids, attention_mask = padded_on_the_right(input_ids, attention_mask)
            packed = PackedBatch.sharing(input_ids, attention_mask)
        else:
            packed = PackedBatch.of(input_ids, attention_mask, kept, getattr(innermost(model), PADDING_COUNTS, False))
        with token_scores(model) as collected:
            model(**packed.arguments(model), **_no_cache(model))
        return at_last_token(collected[0][0][packed.places], attention_mask).squeeze(-1)
    # Encoders score the first column, and every model's own positions count from there.
    input_ids, attention_mask = padded_on_the_right(input_ids, attention_mask)
    with token_scores(model) as collected:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, **_no_cache(model)).logits
    if not collected or collected[0].shape[:2] != input_ids.shape:
        return logits[:, 0]
    return at_last_token(collected[0], attention_mask).squeeze(-1)


def score_without_padding(model: nn.Module, max_length: int | None, scores_padding: bool = False) -> None:
    """Lets a reward model score without padding, if that gives the same scores; see `make_padding_free`.

    Args:
        model: A sequence classification model, or one with an adapter.
        max_length: Most tokens of a text, None if there is no limit.
        scores_padding: Whether what the head gives at padding behind a text is read too, and must be the same.

    Raises:
        ValueError: It gives others, or cannot; the message says why, and the model is as it was.
    """
    inner = innermost(model)
    if not isinstance(getattr(inner, "score", None), nn.Module):
        raise ValueError(
            f"{OPTION}: the score head must be the module 'score' of the model; {type(inner).__name__} has none. "
            f"Switch {OPTION} off."
        )
    if scores_padding and is_sharded(model):
        raise ValueError(
            f"{OPTION}: what the model gives at padding cannot be tried where ZeRO-3 has sharded it. Switch {OPTION} "
            "off."
        )
    # Two texts of four and two tokens, on either side; and two that share their beginning.
    tokens = torch.tensor([[1, 2, 3, 1], [1, 3, 1, 2]], device=model.device)
    masks = [torch.tensor([[1, 1, 1, 1], row], device=model.device) for row in ([0, 0, 1, 1], [1, 1, 0, 0])]
    alike = torch.tensor([[1, 2] * LEAST_SHARED + ends for ends in ([3, 1], [2, 3])], device=model.device)

    def scores() -> Tensor:
        batches = [*((tokens, mask) for mask in masks), (alike, torch.ones_like(alike))]
        return torch.cat([sequence_scores(model, *batch) for batch in batches])

    def scores_with_padding() -> Tensor:
        kept = torch.ones_like(tokens, dtype=torch.bool)
        with token_scores(model) as collected:
            sequence_scores(model, tokens, masks[1], kept)
        return torch.cat([scores(), collected[0].flatten(0, 1)[token_places(model, kept)].flatten()])

    if not scores_padding:
        make_padding_free(model, max_length, scores)
        return
    setattr(inner, PADDING_COUNTS, True)
    try:
        make_padding_free(model, max_length, scores_with_padding)
    except ValueError:
        # GPTPangu, say, gives padding the position of the last real token.
        setattr(inner, PADDING_COUNTS, False)
        make_padding_free(model, max_length, scores_with_padding)
