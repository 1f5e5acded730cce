"""What the score head of a reward model gives token by token, and at the last token of a text."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def token_scores(reward_model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collects what the score head gives at every token, (rows, T, 1) for each forward pass within the block.

    The model itself returns one score a row. A hook leaves the call to whatever is wrapped around the model, which
    DDP, FSDP and DeepSpeed need. Nothing is collected from models whose head is not called `score`.

    Args:
        reward_model: The sequence classification model itself.
    """
    collected: list[Tensor] = []
    head = getattr(reward_model, "score", None)
    if not isinstance(head, nn.Module):
        yield collected
        return
    handle = head.register_forward_hook(lambda module, inputs, output: collected.append(output))
    try:
        yield collected
    finally:
        handle.remove()


def last_token_scores(
    model: nn.Module, reward_model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Reward of each text, (N,): what the score head gives at its last token.

    transformers takes the last token that is not the pad token instead. Where a tokenizer pads with its end of sequence
    that is another one, the token before the end.

    Args:
        model: What to call: the reward model, or what training wrapped around it.
        reward_model: The sequence classification model itself. Of one without such a head, as encoders that score a
            whole text, the score is what it returns.
        input_ids: Texts, padded on the right with the config's pad id, (N, T).
        attention_mask: 1 for tokens, 0 for padding, (N, T).
    """
    with token_scores(reward_model) as collected:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    if not collected or collected[0].shape[:2] != input_ids.shape:
        return logits[:, 0]
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return collected[0][rows, attention_mask.sum(dim=1) - 1, 0]
