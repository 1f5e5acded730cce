"""Scores of whole answers: reward models and Python functions, one or several with weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pangu_trl.data.collators import pad_sequences
from pangu_trl.data.tokenizing import encode_completion, encode_prompt

from .policy_value import at_last_token, innermost, position_arguments
from .rollout import Rollout
from .sampler import batches_by_length

RewardFunction = Callable[..., list[float]]
# What a user may pass; a path is the folder of a reward adapter, for share_backbone='all'.
Reward = PreTrainedModel | PeftModel | RewardFunction | str | Path


@dataclass
class RewardSource:
    """One part of the reward.

    Attributes:
        name: For logs and errors.
        model: A sequence classification model with one label, a function
            `f(prompts, completions, **columns) -> list[float]`, or None for the reward adapter of the policy's own
            backbone.
        tokenizer: Tokenizer of the model where it is another than the policy's.
        weight: Factor of its scores in the sum.
    """

    name: str
    model: Reward | None
    tokenizer: PreTrainedTokenizerBase | None = None
    weight: float = 1.0


def reward_sources(
    reward_model: Reward | Sequence[Reward],
    reward_processing_class: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None,
    weights: list[float] | None,
) -> list[RewardSource]:
    """Lines up what the user passed as rewards, their tokenizers and weights.

    Raises:
        ValueError: They differ in number, or a reward is none.
    """
    rewards = list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    tokenizers = reward_processing_class
    if not isinstance(tokenizers, list | tuple):
        tokenizers = [tokenizers] * len(rewards)
    weights = [1.0] * len(rewards) if weights is None else weights
    if not rewards or len(tokenizers) != len(rewards) or len(weights) != len(rewards):
        raise ValueError(
            "PPOTrainer: every reward needs one tokenizer (None for the policy's) and one weight; got "
            f"{len(rewards)} rewards, {len(tokenizers)} in reward_processing_class, {len(weights)} in reward_weights."
        )
    sources, names = [], set()
    for index, (reward, tokenizer, weight) in enumerate(zip(rewards, tokenizers, weights, strict=True)):
        if not isinstance(reward, nn.Module | str | Path) and not callable(reward):
            raise ValueError(
                f"PPOTrainer: reward_model must be a model, a function or an adapter's folder; got {reward!r}."
            )
        kind = getattr(reward, "__name__", type(reward).__name__)
        name = "model" if isinstance(reward, nn.Module | str | Path) else kind
        name = name if name not in names else f"{name}_{index}"
        names.add(name)
        sources.append(RewardSource(name, reward, tokenizer if isinstance(reward, nn.Module) else None, weight))
    return sources


def score_completions(
    sources: list[RewardSource],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    examples: list[dict[str, Any]],
    batch_size: int,
) -> Tensor:
    """Scores whole answers by every source.

    Args:
        sources: S parts of the reward.
        model: PolicyAndValue, as its engine wraps it; scores for the source without a model.
        tokenizer: The policy's; decodes for functions.
        rollout: N answers.
        examples: The prompt records that were answered, one per answer.
        batch_size: Answers per forward pass of a model.

    Returns:
        Scores (N, S) in float32, before weights.

    Raises:
        ValueError: A score is NaN or infinite, or a function returns another number of scores than answers; the
            message shows the prompt and the answer.
    """
    columns = []
    for source in sources:
        if source.model is None:
            scores = _scores_by_length(rollout, batch_size, partial(_adapter_scores, model))
        elif not isinstance(source.model, nn.Module):
            scores = _function_scores(source.model, tokenizer, rollout, examples)
        elif source.tokenizer is None:
            scores = _scores_by_length(rollout, batch_size, partial(_model_scores, source.model))
        else:
            scores = _scores_of_texts(source, tokenizer, rollout, examples, batch_size)
        _check_finite(source.name, scores, tokenizer, rollout, examples)
        columns.append(scores)
    return torch.stack(columns, dim=1)


def weighted_sum(scores: Tensor, sources: list[RewardSource]) -> Tensor:
    """Sums the scores (N, S) of the sources by their weights: (N,)."""
    return scores @ scores.new_tensor([source.weight for source in sources])


def completion_texts(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """The answers as text, without special tokens."""
    return tokenizer.batch_decode(rollout.completions(), skip_special_tokens=True)


def _function_scores(
    function: RewardFunction, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, examples: list[dict[str, Any]]
) -> Tensor:
    texts = completion_texts(tokenizer, rollout)
    columns = {key: [example[key] for example in examples] for key in examples[0]}
    prompts = columns.pop("prompt")
    returned = function(prompts, texts, **columns)
    if len(returned) != len(texts):
        raise ValueError(
            f"The reward function {getattr(function, '__name__', function)!r} must return one score per "
            f"answer; got {len(returned)} scores for {len(texts)} answers."
        )
    return torch.tensor(returned, dtype=torch.float32, device=rollout.input_ids.device)


def _scores_by_length(rollout: Rollout, batch_size: int, score: Callable[[Rollout], Tensor]) -> Tensor:
    """Scores (N,) of whole answers, those of like length together."""
    lengths = rollout.lengths.cpu()
    scores = torch.zeros(len(lengths), device=rollout.input_ids.device)
    for rows in batches_by_length(torch.arange(len(lengths)), lengths, batch_size, len(lengths)):
        rows = rows.to(scores.device)
        with torch.no_grad():
            scores[rows] = score(rollout.select(rows))
    return scores


def _adapter_scores(model: nn.Module, batch: Rollout) -> Tensor:
    return model(batch.input_ids, batch.attention_mask, part="reward")["scores"]


def _model_scores(reward_model: nn.Module, batch: Rollout) -> Tensor:
    return _forward_scores(reward_model, batch.input_ids, batch.attention_mask)


def _scores_of_texts(
    source: RewardSource,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    examples: list[dict[str, Any]],
    batch_size: int,
) -> Tensor:
    """Scores by a model that reads other tokens than the policy writes: prompts and answers are encoded anew."""
    sequences = []
    for example, text, ended in zip(
        examples, completion_texts(tokenizer, rollout), rollout.ended.tolist(), strict=True
    ):
        eos = [source.tokenizer.eos_token_id]
        answer = encode_completion(source.tokenizer, example["prompt"], text) if text.strip() else eos
        # An answer that was cut off has no end here either, except where nothing else would be left.
        sequences.append(encode_prompt(source.tokenizer, example["prompt"]) + (answer if ended else answer[:-1] or eos))
    scores = []
    for start in range(0, len(sequences), batch_size):
        pad_token_id = innermost(source.model).config.get_text_config().pad_token_id
        batch = pad_sequences(sequences[start : start + batch_size], pad_token_id, side="right")
        scores.append(_forward_scores(source.model, *(tensor.to(rollout.input_ids.device) for tensor in batch)))
    return torch.cat(scores)


def _forward_scores(reward_model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    with torch.no_grad(), _head_outputs(reward_model) as head_outputs:
        logits = reward_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            **position_arguments(reward_model, attention_mask),
        ).logits
    if len(head_outputs) == 1 and head_outputs[0].shape[:2] == input_ids.shape:
        # The model itself takes the last token that is not the pad token, but a policy can end with that one too.
        logits = at_last_token(head_outputs[0], attention_mask)
    return logits.squeeze(-1).float()


@contextmanager
def _head_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the score head of a sequence classification model gives at every position.

    A hook, since calling backbone and head one by one would pass by the engine that holds the weights.
    """
    outputs: list[Tensor] = []
    head = dict(innermost(model).named_children()).get("score")
    handle = None if head is None else head.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield outputs
    finally:
        if handle is not None:
            handle.remove()


def _check_finite(
    name: str, scores: Tensor, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, examples: list[dict[str, Any]]
) -> None:
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        answer = tokenizer.decode(rollout.completions()[bad[0]])
        raise ValueError(
            f"The reward ({name}) of {len(bad)} of {len(scores)} answers is not a finite number; the first is "
            f"{scores[bad[0]].item()} for prompt {examples[bad[0]]['prompt']!r} and answer {answer!r}. No update was "
            "made with them. Check the reward model's weights (a half-loaded or fp16 model often gives NaN)."
        )
