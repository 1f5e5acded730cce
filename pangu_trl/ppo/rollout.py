"""Answers of the current policy and everything that is known about them before learning starts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl.models.utils import add_hooks, remove_hooks

from pangu_trl.data.collators import pad_sequences

from .config import PPOConfig
from .policy_value import position_arguments

RewardFunction = Callable[..., list[float]]


@dataclass
class Rollout:
    """N answers on this rank; prompts are padded on the left to P, answers on the right to C, T = P + C.

    The fields after `completion_mask` are filled by the trainer once the answers exist.
    """

    input_ids: Tensor  # (N, T) prompt and answer
    attention_mask: Tensor  # (N, T) 1 for real tokens
    completion_mask: Tensor  # (N, C) True up to and including the last answer token
    ended: Tensor  # (N,) True where the answer ended with a stop token
    logprobs: Tensor | None = None  # (N, C) under the policy that sampled
    ref_logprobs: Tensor | None = None  # (N, C) under the reference
    entropy: Tensor | None = None  # (N, C) of the policy that sampled, nats
    values: Tensor | None = None  # (N, C) of the critic at rollout
    scores: Tensor | None = None  # (N,) of the reward model, before clipping and penalties
    advantages: Tensor | None = None  # (N, C)
    returns: Tensor | None = None  # (N, C) targets of the critic

    def select(self, rows: Tensor | slice) -> "Rollout":
        """The given rows, without the columns that are padding in all of them.

        Trimming keeps ragged batches cheap, and scoring and learning trim alike, so both compute the same numbers.
        """
        chosen = {f.name: getattr(self, f.name)[rows] for f in fields(self) if getattr(self, f.name) is not None}
        completion_width = chosen["completion_mask"].shape[1]
        prompt_width = chosen["input_ids"].shape[1] - completion_width
        prompt_start = prompt_width - int(chosen["attention_mask"][:, :prompt_width].sum(dim=1).max())
        kept_answer = int(chosen["completion_mask"].sum(dim=1).max())
        for name, tensor in chosen.items():
            if name in ("input_ids", "attention_mask"):
                chosen[name] = tensor[:, prompt_start : prompt_width + kept_answer]
            elif tensor.ndim == 2:
                chosen[name] = tensor[:, :kept_answer]
        return Rollout(**chosen)

    @property
    def completion_width(self) -> int:
        """Columns of the answers, C."""
        return self.completion_mask.shape[1]

    def completions(self) -> list[list[int]]:
        """Token ids of each answer, without padding."""
        ids = self.input_ids[:, -self.completion_width :]
        return [row[mask].tolist() for row, mask in zip(ids, self.completion_mask, strict=True)]


def generate_rollout(
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    args: PPOConfig,
    device: torch.device,
) -> Rollout:
    """Samples one answer to each prompt.

    Args:
        policy: The unwrapped policy, in evaluation mode.
        tokenizer: Gives the padding token, and the stop token unless the policy's generation config lists its own.
        prompts: Token ids of N prompts.
        args: Sampling options.
        device: Where the policy is.
    """
    stop_token_ids = stop_tokens(policy, tokenizer)
    config = GenerationConfig(
        max_new_tokens=args.max_completion_length,
        do_sample=True,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        eos_token_id=stop_token_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
    batch_size = args.generation_batch_size or args.per_device_train_batch_size
    answers: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        input_ids, attention_mask = pad_sequences(
            prompts[start : start + batch_size], tokenizer.pad_token_id, side="left"
        )
        with torch.no_grad():
            output = policy.generate(
                input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), generation_config=config
            )
        answers += [_until_stop(row, stop_token_ids) for row in output[:, input_ids.shape[1] :].tolist()]

    prompt_ids, prompt_mask = pad_sequences(prompts, tokenizer.pad_token_id, side="left")
    answer_ids, answer_mask = pad_sequences(answers, tokenizer.pad_token_id, side="right")
    return Rollout(
        input_ids=torch.cat([prompt_ids, answer_ids], dim=1).to(device),
        attention_mask=torch.cat([prompt_mask, answer_mask], dim=1).to(device),
        completion_mask=answer_mask.bool().to(device),
        ended=torch.tensor([answer[-1] in stop_token_ids for answer in answers], device=device),
    )


def stop_tokens(policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: those of the policy's generation config, and the tokenizer's eos."""
    configured = policy.generation_config.eos_token_id
    configured = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return sorted({*configured, tokenizer.eos_token_id})


def _until_stop(tokens: list[int], stop_token_ids: list[int]) -> list[int]:
    """Cuts what `generate` pads with after the stop token; a pad token that the policy chose itself stays."""
    for index, token in enumerate(tokens):
        if token in stop_token_ids:
            return tokens[: index + 1]
    return tokens


@contextmanager
def policy_for_generation(model: nn.Module, accelerator: Accelerator, gather: bool) -> Iterator[nn.Module]:
    """Yields the unwrapped policy of the wrapped PolicyAndValue, in evaluation mode.

    Under ZeRO-3 with `gather`, its weights (and only its) are whole on every rank inside the context.
    """
    unwrapped = accelerator.unwrap_model(model)
    was_training = unwrapped.training
    unwrapped.eval()
    plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == DistributedType.DEEPSPEED else None
    try:
        if plugin is not None and plugin.zero_stage == 3 and gather:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(unwrapped.policy.parameters())):
                remove_hooks(model)
                try:
                    yield unwrapped.policy
                finally:
                    add_hooks(model)
        else:
            yield unwrapped.policy
    finally:
        unwrapped.train(was_training)


def score_completions(
    reward_model: nn.Module | RewardFunction,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    examples: list[dict[str, Any]],
    batch_size: int,
) -> Tensor:
    """Scores whole answers.

    Args:
        reward_model: A sequence classification model with one label, or a function
            `f(prompts, completions, **columns) -> list[float]` of texts and the other columns of the prompts.
        tokenizer: Decodes for a function.
        rollout: N answers.
        examples: The N prompt records that were answered.
        batch_size: Answers per forward pass of a model.

    Returns:
        Scores (N,) in float32.

    Raises:
        ValueError: A score is NaN or infinite, or a function returns another number of scores than answers; the
            message shows the prompt and the answer.
    """
    if isinstance(reward_model, nn.Module):
        scores = _model_scores(reward_model, rollout, batch_size)
    else:
        texts = tokenizer.batch_decode(rollout.completions(), skip_special_tokens=True)
        columns = {key: [example[key] for example in examples] for key in examples[0]}
        prompts = columns.pop("prompt")
        returned = reward_model(prompts, texts, **columns)
        if len(returned) != len(texts):
            raise ValueError(
                f"The reward function {getattr(reward_model, '__name__', reward_model)!r} must return one score per "
                f"answer; got {len(returned)} scores for {len(texts)} answers."
            )
        scores = torch.tensor(returned, dtype=torch.float32, device=rollout.input_ids.device)
    _check_finite(scores, tokenizer, rollout, examples)
    return scores


def _model_scores(reward_model: nn.Module, rollout: Rollout, batch_size: int) -> Tensor:
    scores = []
    for start in range(0, len(rollout.input_ids), batch_size):
        batch = rollout.select(slice(start, start + batch_size))
        with torch.no_grad():
            output = reward_model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                **position_arguments(reward_model, batch.attention_mask),
            )
        scores.append(output.logits.squeeze(-1).float())
    return torch.cat(scores)


def _check_finite(
    scores: Tensor, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, examples: list[dict[str, Any]]
) -> None:
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        answer = tokenizer.decode(rollout.completions()[bad[0]])
        raise ValueError(
            f"The reward of {len(bad)} of {len(scores)} answers is not a finite number; the first is "
            f"{scores[bad[0]].item()} for prompt {examples[bad[0]]['prompt']!r} and answer {answer!r}. No update was "
            "made with them. Check the reward model's weights (a half-loaded or fp16 model often gives NaN)."
        )
