"""Answers of the current policy, sampled in the training's own processes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase

from pangu_trl.data.answer_end import stop_tokens
from pangu_trl.data.collators import pad_sequences
from pangu_trl.models.adapter_selection import merged_policy_adapter, selected_adapter
from pangu_trl.models.cached_reading import reads_right_from_cache
from pangu_trl.models.modes import contiguous_states, evaluation_mode, without_generation_defaults
from pangu_trl.models.sharding import gathered, runs_zero3, whole_weights
from pangu_trl.models.vocabulary import known_ids, padding_ids

from ..config import PPOConfig
from ..rollout import Rollout
from .continuous import RunningBatch
from .engines import chosen_engine
from .sampled_logprobs import SampledLogprobs


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
        tokenizer: Gives the padding token, and with the policy's generation config the tokens that end an answer.
        prompts: Token ids of N prompts.
        args: Sampling options.
        accelerator: Knows the engine and the device.
        watch: Gets the log-probabilities of the last batch, or of all answers, as they were when these were sampled.
        reference: Answers in the policy's place: a model, or the policy with its adapter off.
    """
    device = accelerator.device
    gathers = args.ds3_gather_for_generation and runs_zero3(accelerator.state)
    with _generator(model, accelerator, args, gathers, reference) as policy:
        stop_token_ids = stop_tokens(tokenizer, policy.generation_config)
        config = GenerationConfig(
            max_new_tokens=args.max_completion_length,
            do_sample=True,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            eos_token_id=stop_token_ids,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=padding_ids(policy, known_ids(policy)),
        )
        rows_at_once = args.generation_batch_size or args.per_device_train_batch_size
        with torch.no_grad(), without_generation_defaults(policy):
            if chosen_engine(args, accelerator.state, policy) == "continuous":
                answers = _sample_continuously(policy, prompts, config, rows_at_once, watch)
            else:
                config.use_cache = reads_right_from_cache(policy, tokenizer)
                waits = runs_zero3(accelerator.state) and not gathers
                answers = _sample_batches(policy, prompts, config, rows_at_once, watch, waits)
    return Rollout.from_answers(prompts, answers, stop_token_ids, tokenizer.pad_token_id, device)


def _sample_continuously(
    policy: nn.Module,
    prompts: list[list[int]],
    config: GenerationConfig,
    rows_at_once: int,
    watch: SampledLogprobs | None,
) -> list[list[int]]:
    batch = RunningBatch(policy, prompts, config, rows_at_once)
    batch.run()
    if watch is not None:
        watch.rows = list(range(len(prompts)))
        logprobs = [torch.tensor(row, device=policy.device) for row in batch.logprobs]
        watch.logprobs = pad_sequence(logprobs, batch_first=True, padding_value=torch.nan)
    return batch.answers


def _sample_batches(
    policy: nn.Module,
    prompts: list[list[int]],
    config: GenerationConfig,
    rows_at_once: int,
    watch: SampledLogprobs | None,
    waits: bool,
) -> list[list[int]]:
    """Samples by `generate`.

    Args:
        waits: Whether a rank whose answers have ended must go on until all ranks' have, as weights that every rank
            holds a part of are gathered for each token.
    """
    # Prompts of like length share a batch: little padding, and a batch too large for the memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[list[int]] = [[]] * len(prompts)
    for start in range(0, len(prompts), rows_at_once):
        rows = order[start : start + rows_at_once]
        # The shortest prompts, which learning batches pad most.
        is_watched = watch is not None and (watch.sees_all or start + rows_at_once >= len(prompts))
        if is_watched:
            watch.begin(rows)
        input_ids, attention_mask = pad_sequences([prompts[row] for row in rows], config.pad_token_id, side="left")
        sequences = policy.generate(
            input_ids=input_ids.to(policy.device),
            attention_mask=attention_mask.to(policy.device),
            generation_config=config,
            synced_gpus=None if waits else False,
            logits_processor=LogitsProcessorList([watch] if is_watched else []),
        )
        new_tokens = sequences[:, input_ids.shape[1] :]
        if is_watched:
            watch.finish(new_tokens)
        for row, tokens in zip(rows, new_tokens.tolist(), strict=True):
            answers[row] = _until_stop(tokens, config.eos_token_id)
    return answers


def _until_stop(tokens: list[int], stop_token_ids: list[int]) -> list[int]:
    """Cuts what `generate` pads with after the stop token; a pad token that the policy chose itself stays."""
    for index, token in enumerate(tokens):
        if token in stop_token_ids:
            return tokens[: index + 1]
    return tokens


def generation_mode(model: nn.Module, args: PPOConfig, accelerator: Accelerator) -> str:
    """How answers are sampled, in words for the log."""
    if args.rollout_engine == "vllm":
        lora = ", LoRA added" if isinstance(accelerator.unwrap_model(model).policy, PeftModel) else ""
        is_server = args.vllm_mode == "server"
        where = f"vLLM server at {args.vllm_server_base_url}" if is_server else "vLLM in the training's processes"
        return f"{where}, which gets the policy's weights before each rollout{lora}"
    if not runs_zero3(accelerator.state):
        weights = "whole weights on every device"
    elif args.ds3_gather_for_generation:
        weights = "ZeRO-3 weights gathered once per rollout"
    else:
        weights = "ZeRO-3 weights gathered layer by layer for every token"
    policy = accelerator.unwrap_model(model).policy
    merged = ", LoRA merged" if _merges(policy, args, accelerator) else ""
    return f"{chosen_engine(args, accelerator.state, policy)}, {weights}{merged}"


def _merges(policy: nn.Module, args: PPOConfig, accelerator: Accelerator) -> bool:
    whole = args.ds3_gather_for_generation or not runs_zero3(accelerator.state)
    return isinstance(policy, PeftModel) and args.merge_lora_for_generation and whole


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
            stack.enter_context(gathered(list(generator.parameters()), engine))
        stack.enter_context(whole_weights(unwrapped, generator))
        stack.enter_context(contiguous_states(generator))
        if reference == "adapter off":
            stack.enter_context(selected_adapter(generator, None))
        elif _merges(generator, args, accelerator):
            stack.enter_context(merged_policy_adapter(generator))
        yield generator
