"""Sampling in segments, between which answers that have ended leave the batch."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, LogitsProcessorList

from pangu_trl.gptpangu.arguments_gptpangu import CACHE_ARGUMENT

from .roomy_cache import make_roomy_cache
from .sampled_logprobs import SampledLogprobs

# Short enough that answers of other lengths than the longest save much, long enough that moving the cache costs little.
SEGMENT_TOKENS = 8


def generate_in_segments(
    policy: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: GenerationConfig,
    whole: bool,
    watch: SampledLogprobs | None = None,
) -> list[list[int]]:
    """Samples an answer to each prompt.

    `generate` carries every row on until the last one has ended. Here it is called again and again for a few tokens,
    with the cache of the rows that go on; models without a cache that rows can be taken from read all tokens again.

    Args:
        policy: Has `generate`.
        input_ids: Prompts, padded on the left, (B, P).
        attention_mask: 1 for real tokens, (B, P).
        config: Sampling options, stop tokens, and most tokens of an answer.
        whole: Whether the whole answer is one segment. Where weights are sharded, ranks that are done then go on
            until all are.
        watch: Sees the logits of the first segment, or of all.

    Returns:
        Token ids of each answer up to and including its stop token.
    """
    answers: list[list[int]] = [[] for _ in input_ids]
    active = torch.arange(len(input_ids), device=input_ids.device)
    cache = make_roomy_cache(policy, config.max_new_tokens)
    remaining, is_first = config.max_new_tokens, True
    segment = copy.deepcopy(config)
    segment.return_dict_in_generate = True
    while len(active) and remaining > 0:
        segment.max_new_tokens = remaining if whole else min(SEGMENT_TOKENS, remaining)
        is_watched = watch is not None and (is_first or watch.sees_all)
        output = policy.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=segment,
            # With whole weights a rank that is done need not wait for the others at every token.
            synced_gpus=None if whole else False,
            logits_processor=LogitsProcessorList([watch] if is_watched else []),
            **({} if cache is None else {CACHE_ARGUMENT: cache}),
        )
        new_tokens = output.sequences[:, input_ids.shape[1] :]
        if is_watched:
            watch.finish(new_tokens, active)
        goes_on = []
        for row, tokens in zip(active.tolist(), new_tokens.tolist(), strict=True):
            tokens = _until_stop(tokens, config.eos_token_id)
            answers[row] += tokens
            goes_on.append(tokens[-1] not in config.eos_token_id)
        kept = torch.tensor(goes_on, device=active.device).nonzero().flatten()
        active, input_ids = active[kept], output.sequences[kept]
        attention_mask = torch.cat([attention_mask[kept], torch.ones_like(new_tokens[kept])], dim=1)
        cache, remaining, is_first = _cache_of(output, kept), remaining - new_tokens.shape[1], False
    return answers


def _cache_of(output: Any, rows: Tensor) -> Cache | None:
    """The cache that `generate` gives back, of some rows; None where there is none, or a layer's cannot be split."""
    cache = output.get(CACHE_ARGUMENT)
    if not isinstance(cache, Cache) or not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        return None
    if cache.get_seq_length() == 0:
        # Made by `generate` for a model that keeps nothing in it.
        return None
    cache.batch_select_indices(rows)
    return cache


def _until_stop(tokens: list[int], stop_token_ids: list[int]) -> list[int]:
    """Cuts what `generate` pads with after the stop token; a pad token that the policy chose itself stays."""
    for index, token in enumerate(tokens):
        if token in stop_token_ids:
            return tokens[: index + 1]
    return tokens
