"""Answers of the current policy and everything that is known about them before learning starts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl.models.utils import add_hooks, remove_hooks

from pangu_trl.data.collators import pad_sequences

from .adapter_selection import merged_policy_adapter, selected_adapter
from .config import PPOConfig
from .policy_value import completion_logprobs
from .sampled_logprobs import SampledLogprobs
from .segments import generate_in_segments
from .whole_weights import whole_weights


@dataclass
class Rollout:
    """N answers on this rank; prompts are padded on the left to P, answers on the right to C, T = P + C.

    The fields after `ended` are None until the answers have been scored.
    """

    input_ids: Tensor  # (N, T) prompt and answer
    attention_mask: Tensor  # (N, T) 1 for real tokens
    completion_mask: Tensor  # (N, C) True up to and including the last answer token
    ended: Tensor  # (N,) True where the answer ended with a stop token
    logprobs: Tensor | None = None  # (N, C) under the policy that sampled
    ref_logprobs: Tensor | None = None  # (N, C) under the reference
    entropy: Tensor | None = None  # (N, C) of the policy that sampled, nats
    values: Tensor | None = None  # (N, C) of the critic at rollout
    source_scores: Tensor | None = None  # (N, S) of each part of the reward
    scores: Tensor | None = None  # (N,) their weighted sum, before scaling, clipping and penalties
    advantages: Tensor | None = None  # (N, C)
    returns: Tensor | None = None  # (N, C) targets of the critic

    @classmethod
    def from_answers(
        cls,
        prompts: list[list[int]],
        answers: list[list[int]],
        stop_token_ids: list[int],
        pad_token_id: int,
        device: torch.device,
    ) -> "Rollout":
        """N prompts and their answers, token ids each; an answer has ended if its last token is a stop token."""
        prompt_ids, prompt_mask = pad_sequences(prompts, pad_token_id, side="left")
        answer_ids, answer_mask = pad_sequences(answers, pad_token_id, side="right")
        return cls(
            input_ids=torch.cat([prompt_ids, answer_ids], dim=1).to(device),
            attention_mask=torch.cat([prompt_mask, answer_mask], dim=1).to(device),
            completion_mask=answer_mask.bool().to(device),
            ended=torch.tensor([answer[-1] in stop_token_ids for answer in answers], device=device),
        )

    def select(self, rows: Tensor) -> "Rollout":
        """The given rows, each moved to end in the last column, without the columns that are padding in all of them.

        Padding then stands on the left alone, and a batch of like lengths has hardly any. Scoring and learning select
        alike, so both compute the same numbers.
        """
        chosen = {f.name: getattr(self, f.name)[rows] for f in fields(self) if getattr(self, f.name) is not None}
        num_tokens, num_answer_tokens = chosen["attention_mask"].sum(dim=1), chosen["completion_mask"].sum(dim=1)
        width, answer_width = int(num_tokens.max()), int(num_answer_tokens.max())
        ends = self.input_ids.shape[1] - self.completion_width + num_answer_tokens
        for name, tensor in chosen.items():
            if name in ("input_ids", "attention_mask"):
                chosen[name] = _moved(tensor, ends - width, width)
            elif tensor.ndim == 2 and name != "source_scores":
                chosen[name] = _moved(tensor, num_answer_tokens - answer_width, answer_width)
        return Rollout(**chosen)

    def in_place_of(self, rows: Tensor, tensor: Tensor) -> Tensor:
        """Moves per-token values (B, .) of selected rows back to where a rollout has them, (B, C)."""
        offsets = tensor.shape[1] - self.completion_mask[rows].sum(dim=1)
        return _moved(tensor, offsets, self.completion_width)

    @property
    def lengths(self) -> Tensor:
        """Tokens of prompt and answer of each row, (N,)."""
        return self.attention_mask.sum(dim=1)

    @property
    def completion_width(self) -> int:
        """Columns of the answers, C."""
        return self.completion_mask.shape[1]

    def completions(self) -> list[list[int]]:
        """Token ids of each answer, without padding."""
        ids = self.input_ids[:, -self.completion_width :]
        return [row[mask].tolist() for row, mask in zip(ids, self.completion_mask, strict=True)]


def _moved(tensor: Tensor, offsets: Tensor, width: int) -> Tensor:
    """Columns `offset` to `offset + width` of each row of (B, .), 0 where there are none: (B, width)."""
    columns = torch.arange(width, device=tensor.device) + offsets.unsqueeze(1)
    exists = (columns >= 0) & (columns < tensor.shape[1])
    return tensor.gather(1, columns.clamp(0, tensor.shape[1] - 1)).masked_fill(~exists, 0)


def generate_rollout(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    args: PPOConfig,
    accelerator: Accelerator,
    watch: SampledLogprobs | None = None,
    reference: nn.Module | Literal["adapter off"] | None = None,
) -> Rollout:
    """Samples one answer to each prompt.

    Args:
        model: PolicyAndValue, as its engine wraps it.
        tokenizer: Gives the padding token, and the stop token unless the policy's generation config lists its own.
        prompts: Token ids of N prompts.
        args: Sampling options.
        accelerator: Knows the engine and the device.
        watch: Notes the log-probabilities of the last batch as they were when it was sampled.
        reference: Answers in the policy's place: a model, or the policy with its adapter off.
    """
    device = accelerator.device
    gathered = args.ds3_gather_for_generation and _is_zero3(accelerator)
    batch_size = args.generation_batch_size or args.per_device_train_batch_size
    # Prompts of like length share a batch: little padding, and a batch too large for the memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[list[int]] = [[]] * len(prompts)
    with _generator(model, accelerator, args, gathered, reference) as policy:
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
                rows = order[start : start + batch_size]
                # The shortest prompts, which learning batches pad most.
                is_watched = watch is not None and start + batch_size >= len(prompts)
                if is_watched:
                    watch.rows = rows
                input_ids, attention_mask = pad_sequences(
                    [prompts[row] for row in rows], tokenizer.pad_token_id, side="left"
                )
                found = generate_in_segments(
                    policy,
                    input_ids.to(device),
                    attention_mask.to(device),
                    config,
                    # With whole weights a rank that is done need not wait for the others at every token.
                    synced=_is_zero3(accelerator) and not gathered,
                    watch=watch if is_watched else None,
                )
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer
    return Rollout.from_answers(prompts, answers, stop_token_ids, tokenizer.pad_token_id, device)


def generation_mode(model: nn.Module, args: PPOConfig, accelerator: Accelerator) -> str:
    """How answers are sampled, in words for the log."""
    if args.use_vllm:
        lora = ", LoRA added" if isinstance(accelerator.unwrap_model(model).policy, PeftModel) else ""
        return f"vLLM server at {args.vllm_server_base_url}, which gets the policy's weights before each rollout{lora}"
    if not _is_zero3(accelerator):
        weights = "whole weights on every device"
    elif args.ds3_gather_for_generation:
        weights = "ZeRO-3 weights gathered once per rollout"
    else:
        weights = "ZeRO-3 weights gathered layer by layer for every token"
    policy = accelerator.unwrap_model(model).policy
    return f"{weights}{', LoRA merged' if _merges(policy, args, accelerator) else ''}"


def _merges(policy: nn.Module, args: PPOConfig, accelerator: Accelerator) -> bool:
    whole = args.ds3_gather_for_generation or not _is_zero3(accelerator)
    return isinstance(policy, PeftModel) and args.merge_lora_for_generation and whole


def stop_tokens(policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: those of the policy's generation config, and the tokenizer's eos."""
    configured = policy.generation_config.eos_token_id
    configured = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return sorted({*configured, tokenizer.eos_token_id})


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
def _generator(
    model: nn.Module,
    accelerator: Accelerator,
    args: PPOConfig,
    gather: bool,
    reference: nn.Module | Literal["adapter off"] | None,
) -> Iterator[nn.Module]:
    """Yields the model that answers, unwrapped and in evaluation mode, with its LoRA merged if there is one.

    With `gather`, under ZeRO-3, its weights (and only its) are whole on every rank inside the context.
    """
    engine = reference if isinstance(reference, nn.Module) else model
    unwrapped = accelerator.unwrap_model(engine)
    generator = unwrapped if engine is reference else unwrapped.policy
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(unwrapped))
        if gather:
            stack.enter_context(_gathered(engine, list(generator.parameters())))
        stack.enter_context(whole_weights(unwrapped, generator))
        if reference == "adapter off":
            stack.enter_context(selected_adapter(generator, None))
        elif _merges(generator, args, accelerator):
            stack.enter_context(merged_policy_adapter(generator))
        yield generator


@contextmanager
def _gathered(engine: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        remove_hooks(engine)
        try:
            yield
        finally:
            add_hooks(engine)


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


def score_tokens(
    model: nn.Module, ref_model: nn.Module | None, rollout: Rollout, batches: list[Tensor], temperature: float
) -> None:
    """Fills in log-probabilities of policy and reference, entropy and values of the answer tokens.

    Args:
        model: PolicyAndValue, as its engine wraps it.
        ref_model: The reference; None takes the policy with its adapter off.
        rollout: N answers.
        batches: Rows of each forward pass, every row once.
        temperature: As when the answers were sampled.
    """
    for rows in batches:
        batch = rollout.select(rows)
        arguments = (batch.input_ids, batch.attention_mask, batch.completion_width, temperature)
        with torch.no_grad():
            outputs = model(*arguments)
            if ref_model is None:
                outputs["ref_logprobs"] = model(*arguments, part="reference")["logprobs"]
            else:
                outputs["ref_logprobs"], _ = completion_logprobs(ref_model, *arguments)
        for name, tensor in outputs.items():
            if getattr(rollout, name) is None:
                setattr(rollout, name, tensor.new_zeros(rollout.completion_mask.shape))
            getattr(rollout, name)[rows] = rollout.in_place_of(rows, tensor)
