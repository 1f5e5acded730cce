"""Whether PPO computes log-probabilities tile by tile, found out as its trainer does, on a policy without weights."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import MoeModelOutputWithPast

from pangu_trl.models.padding_free import make_padding_free
from pangu_trl.models.score_head import backbone, innermost
from pangu_trl.ppo.actor_critic.tiled_head import allow_tiles, has_plain_head
from pangu_trl.ppo.actor_critic.token_logprobs import completion_logprobs

from .models import with_lora, without_weights

# Rows of the head in the trial, and the deviation of its logits: as large as those of trained models, so that a softcap
# that the kernel does not know of is seen.
NUM_ROWS, SPREAD = 8, 8.0


class _States(MoeModelOutputWithPast):
    """States of a backbone, and nothing of what else a model may pass on."""

    cross_attentions = None


def policy_with_tiles(
    config: PreTrainedConfig, lora: dict[str, Any] | None, attention: str | None, max_length: int
) -> nn.Module:
    """The policy on the meta device, let compute tiles where PPO's trainer would; asked again, it is remembered.

    What attention does without padding hangs on weights, and is taken to be as the configuration promises. What the
    head does is tried.

    Args:
        config: Configuration of the policy.
        lora: The options of LoRA as TRL's ModelConfig has them; None trains all weights.
        attention: `attn_implementation`; None for the model's own.
        max_length: Most tokens of a prompt with its answer.
    """
    question = (
        type(config),
        config.to_json_string(use_diff=False),
        json.dumps(lora, default=str),
        attention,
        max_length,
    )
    if question not in _tried:
        _tried[question] = _try(config, lora, attention, max_length)
    return _tried[question]


_tried: dict[tuple[Any, ...], nn.Module] = {}


def _try(config: PreTrainedConfig, lora: dict[str, Any] | None, attention: str | None, max_length: int) -> nn.Module:
    # The model sets the attention in its configuration.
    policy: nn.Module = without_weights(copy.deepcopy(config))
    if attention is not None:
        # Not as an argument, with which transformers asks whether this machine has that attention.
        policy.config.get_text_config()._attn_implementation = attention
    if lora is not None:
        policy = with_lora(policy, lora)
    if not has_plain_head(policy):
        return policy
    tokens, mask = torch.tensor([[1, 2, 3, 1], [1, 3, 1, 2]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    answers = torch.tensor([[False, True, True], [False, False, True]])

    def logprobs() -> Tensor:
        return completion_logprobs(policy, tokens, mask, answers, 1.0)[0][answers]

    try:
        with _head_alone(policy):
            make_padding_free(policy, max_length, logprobs)
            allow_tiles(policy, logprobs)
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError):
        # The trainer would not let it, or this model cannot be tried so.
        innermost(policy).most_logits = None
    return policy


@contextmanager
def _head_alone(policy: nn.Module) -> Iterator[None]:
    """Gives the head a few rows of numbers, and has the backbone answer each token with a state of its own."""
    head, below = innermost(policy).get_output_embeddings(), backbone(policy)
    numbers = torch.Generator().manual_seed(0)
    width = head.in_features
    states = torch.randn(NUM_ROWS, width, generator=numbers)
    rows = torch.randn(NUM_ROWS, width, generator=numbers) * SPREAD / width**0.5
    whole = dict(head._parameters)

    def answer(input_ids: Tensor, *_: Any, **__: Any) -> _States:
        return _States(last_hidden_state=F.embedding(input_ids, states))

    head.weight = nn.Parameter(rows)
    if head.bias is not None:
        head.bias = nn.Parameter(rows[:, 0].clone())
    below.forward = answer
    try:
        yield
    finally:
        del below.forward
        head._parameters.update(whole)
