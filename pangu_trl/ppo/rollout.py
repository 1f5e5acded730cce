"""Answers of the current policy and everything that is known about them before learning starts."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl.models.utils import add_hooks, remove_hooks

from pangu_trl.data.collators import pad_sequences

from .config import PPOConfig
from .policy_value import completion_logprobs, innermost, position_arguments

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
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    args: PPOConfig,
    accelerator: Accelerator,
) -> Rollout:
    """Samples one answer to each prompt.

    Args:
        model: PolicyAndValue, as its engine wraps it.
        tokenizer: Gives the padding token, and the stop token unless the policy's generation config lists its own.
        prompts: Token ids of N prompts.
        args: Sampling options.
        accelerator: Knows the engine and the device.
    """
    device = accelerator.device
    gathered = args.ds3_gather_for_generation and _is_zero3(accelerator)
    batch_size = args.generation_batch_size or args.per_device_train_batch_size
    answers: list[list[int]] = []
    with _policy_for_generation(model, accelerator, gathered) as policy:
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
        with torch.no_grad(), _without_generation_defaults(policy):
            for start in range(0, len(prompts), batch_size):
                input_ids, attention_mask = pad_sequences(
                    prompts[start : start + batch_size], tokenizer.pad_token_id, side="left"
                )
                output = policy.generate(
                    input_ids=input_ids.to(device),
                    attention_mask=attention_mask.to(device),
                    generation_config=config,
                    # With whole weights a rank that is done need not wait for the others at every token.
                    synced_gpus=False if gathered else None,
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
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model (unwrapped: engines keep a mode of their own) into evaluation mode, and back afterwards.

    The Trainer chooses training mode before it asks for a mini-batch, that is before a rollout; a model left in
    evaluation mode would learn without gradient checkpointing.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _is_zero3(accelerator: Accelerator) -> bool:
    return (
        accelerator.distributed_type == DistributedType.DEEPSPEED and accelerator.state.deepspeed_plugin.zero_stage == 3
    )


@contextmanager
def _policy_for_generation(model: nn.Module, accelerator: Accelerator, gather: bool) -> Iterator[nn.Module]:
    """Yields the unwrapped policy of the wrapped PolicyAndValue, in evaluation mode.

    With `gather`, under ZeRO-3, its weights (and only its) are whole on every rank inside the context.
    """
    unwrapped = accelerator.unwrap_model(model)
    policy = unwrapped.policy
    with evaluation_mode(unwrapped):
        if not gather:
            yield policy
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(policy.parameters())):
            remove_hooks(model)
            try:
                yield policy
            finally:
                add_hooks(model)


@contextmanager
def _without_generation_defaults(policy: nn.Module) -> Iterator[None]:
    """Hides the policy's own generation settings, which `generate` would add to ours where ours say nothing.

    A repetition penalty, say, would sample from another distribution than the one whose log-probabilities are learnt.
    """
    # A PEFT model copies whatever it finds here, on its base model, before it generates.
    owner = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    saved = owner.generation_config
    owner.generation_config = GenerationConfig(
        bos_token_id=saved.bos_token_id, eos_token_id=saved.eos_token_id, pad_token_id=saved.pad_token_id
    )
    try:
        yield
    finally:
        owner.generation_config = saved


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
        with torch.no_grad(), _head_outputs(reward_model) as head_outputs:
            output = reward_model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                **position_arguments(reward_model, batch.attention_mask),
            )
        logits = output.logits
        if len(head_outputs) == 1 and head_outputs[0].shape[:2] == batch.input_ids.shape:
            # The model itself takes the last token that is not the pad token, but a policy can end with that one too.
            columns = torch.arange(batch.input_ids.shape[1], device=logits.device)
            last = (columns * batch.attention_mask).argmax(dim=1)
            logits = head_outputs[0][torch.arange(len(last), device=logits.device), last]
        scores.append(logits.squeeze(-1).float())
    return torch.cat(scores)


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


def score_tokens(
    model: nn.Module, ref_model: nn.Module | None, rollout: Rollout, batch_size: int, temperature: float
) -> None:
    """Fills in log-probabilities of policy and reference, entropy and values of the answer tokens.

    Args:
        model: PolicyAndValue, as its engine wraps it.
        ref_model: The reference; None takes the policy with its adapter off.
        rollout: N answers.
        batch_size: Answers per forward pass.
        temperature: As when the answers were sampled.
    """
    outputs = defaultdict(list)
    with torch.no_grad():
        for start in range(0, len(rollout.input_ids), batch_size):
            batch = rollout.select(slice(start, start + batch_size))
            arguments = (batch.input_ids, batch.attention_mask, batch.completion_width, temperature)
            scores = model(*arguments)
            if ref_model is None:
                scores["ref_logprobs"] = model(*arguments, use_reference=True, with_values=False)["logprobs"]
            else:
                scores["ref_logprobs"], _ = completion_logprobs(ref_model, *arguments)
            for name, tensor in scores.items():
                outputs[name].append(nn.functional.pad(tensor, (0, rollout.completion_width - tensor.shape[1])))
    for name, tensors in outputs.items():
        setattr(rollout, name, torch.cat(tensors))
