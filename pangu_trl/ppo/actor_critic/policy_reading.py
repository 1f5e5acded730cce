"""Whether a model can be a policy: it must read what stands before a token, and of that only the text."""

import torch
from torch import nn

from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.sharding import is_sharded

from .token_logprobs import completion_logprobs


@torch.no_grad()
def wrong_reading(model: nn.Module, text: list[int], pad_token_id: int) -> str | None:
    """What a policy reads of a text that it must not: padding before it, or later tokens; None if neither.

    Some models take padding into their recurrent state, and encoders see what is still to be said. None as well where
    it cannot be tried, as with sharded weights or an attention that the model's device has not.

    Args:
        model: Causal language model.
        text: A few token ids.
        pad_token_id: Stands before the text.
    """
    if is_sharded(model):
        return None
    num_scored = len(text) - 2
    rows = {
        "": (text[:-1], 0),
        "padding before it": ([pad_token_id] * 3 + text[:-1], 3),
        "the tokens behind it": (text, 0),
    }
    found = {}
    with evaluation_mode(model):
        for what, (row, num_pads) in rows.items():
            ids = torch.tensor([row], device=model.device)
            mask = torch.tensor([[0] * num_pads + [1] * (len(row) - num_pads)], device=model.device)
            scored = torch.ones(1, len(row) - num_pads - 1, dtype=torch.bool, device=model.device)
            try:
                logprobs, _ = completion_logprobs(model, ids, mask, scored, 1.0)
            except (RuntimeError, NotImplementedError, ImportError):
                return None
            found[what] = logprobs[0, :num_scored]
    limit = 0.2 if model.dtype.itemsize == 2 else 1e-3
    expected = found.pop("")
    return next((what for what, logprobs in found.items() if (logprobs - expected).abs().max() > limit), None)
