"""The one way to read the score of a whole text: what a reward model's head gives at its last real token."""

import inspect

from torch import Tensor, nn

from .padding_free import PackedBatch, is_padding_free
from .score_head import at_last_token, innermost, padded_on_the_right, token_scores


def _no_cache(model: nn.Module) -> dict[str, bool]:
    """Has a model that can keep its states for later tokens keep none; others do not know the word."""
    parameters = inspect.signature(innermost(model).forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {"use_cache": False} if takes_any or "use_cache" in parameters else {}


def sequence_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Reward of each text, (B,): what the score head gives at its last real token; of a head with A attributes (B, A).

    transformers takes the last token that is not the pad token instead. Where a tokenizer pads with its end of sequence
    that is another one, the token before the end.

    Args:
        model: A sequence classification model with one label, or what training wrapped around it. Of one without such
            a head, as encoders that score a whole text, the score is what it returns.
        input_ids: Texts, padded on either side, (B, T).
        attention_mask: 1 for real tokens, (B, T).
    """
    if is_padding_free(model):
        packed = PackedBatch.of(input_ids, attention_mask)
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
