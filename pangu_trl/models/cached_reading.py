"""Whether a model reads from its cache what it reads from the text, also where padding stands before it."""

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from pangu_trl.data.collators import pad_sequences

from .score_head import innermost
from .vocabulary import num_token_ids, padding_ids, plain_token_ids

logger = logging.getLogger(__name__)

# What is at fault is how a model is written, not its weights, so it is asked once.
_READS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
NUM_PADS = 3


def reads_right_from_cache(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether sampling with the model's cache gives what the model says of the text alone.

    A cache may forget how long its text is (that of MiniMax, whose first layer keeps no keys, counts from 0), and then
    takes padding for text from the second token on. Where it does so the log says it; sampling without a cache is right
    and slower. All ranks ask with the same text, and get the same answer.

    Args:
        model: Has `generate`, is in evaluation mode and has no generation settings of its own in the way.
        tokenizer: Gives a text to try, and the padding token.
    """
    key = innermost(model)
    if key not in _READS:
        _READS[key] = _is_right(model, tokenizer)
        if not _READS[key]:
            logger.warning(
                "%s reads padding for text once it reads from its cache, so answers are sampled without one, which is "
                "right and slower.",
                type(key).__name__,
            )
    return _READS[key]


@torch.no_grad()
def _is_right(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> bool:
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    options = dict(pad_token_id=pad_token_id, suppress_tokens=padding_ids(model, num_token_ids(tokenizer)))
    text = plain_token_ids(tokenizer, 4)
    if not text:
        return True
    # A longer row beside it has the text padded.
    padded, mask = pad_sequences([text, text[:1] * NUM_PADS + text], pad_token_id, side="left")
    cached = _generate(model, padded[:1], mask[:1], max_new_tokens=2, use_cache=True, **options)
    read = cached.sequences[:, NUM_PADS:-1]
    alone = _generate(model, read, torch.ones_like(read), max_new_tokens=1, use_cache=False, **options)
    distance = (cached.logits[1].float().softmax(-1) - alone.logits[0].float().softmax(-1)).abs().sum().item()
    return distance < (0.1 if model.dtype.itemsize == 2 else 1e-3)


def _generate(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, **options: Any) -> Any:
    """The likeliest next tokens of a row, and the logits that they were taken by."""
    config = GenerationConfig(
        do_sample=False,
        min_new_tokens=max_new_tokens,
        max_new_tokens=max_new_tokens,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=config,
        synced_gpus=False,
    )
