"""Samples K answers to every prompt, and keeps them in files: the raw material of rankings and evaluations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from pangu_trl.data.answer_end import sampled_text, stop_tokens
from pangu_trl.data.collators import pad_sequences
from pangu_trl.data.conversations import EncodingColumns
from pangu_trl.data.tokenizing import NOTHING_SAID, encode_prompt
from pangu_trl.models.cached_reading import reads_right_from_cache
from pangu_trl.models.loading import load_with_adapter
from pangu_trl.models.modes import contiguous_states, evaluation_mode, position_limit, without_generation_defaults
from pangu_trl.models.vocabulary import check_vocabulary, num_token_ids, padding_ids


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are drawn. Settings in the model's own generation config are not used.

    Attributes:
        max_new_tokens: Longest answer, its end included.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_p: Smallest probability that the kept, likeliest tokens hold together; 1 keeps all.
        top_k: Number of likeliest tokens to draw from; 0 keeps all.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or a positive number; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1; got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (keep all tokens) or a positive number; got {self.top_k}")


@dataclass(frozen=True)
class SampledAnswer:
    """One answer as text without special tokens; `finished` says whether the model ended it itself."""

    text: str
    finished: bool


def load_language_model(
    model_id: str, adapter: str | None = None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Loads a model to sample from, and an adapter over it.

    Raises:
        ValueError: It cannot be loaded, or is no language model.
    """
    model, tokenizer, missing = load_with_adapter(AutoModelForCausalLM, model_id, adapter)
    if missing:
        raise ValueError(f"{model_id}: no language model, its files hold no weights for {', '.join(missing)}")
    return model, tokenizer


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    num_answers: int,
    config: SamplingConfig,
    batch_size: int,
    seed: int,
    where: Sequence[str] | None = None,
    show_progress: bool = False,
    columns: Sequence[EncodingColumns] | None = None,
    known: Mapping[tuple[int, int], SampledAnswer] | None = None,
    keep: Callable[[dict[tuple[int, int], SampledAnswer]], None] | None = None,
    streamer: BaseStreamer | None = None,
) -> list[list[SampledAnswer]]:
    """Draws `num_answers` independent answers to each prompt.

    Answer k to prompt i draws its random numbers from (seed, i, k) alone. It is therefore the same whatever the
    batch size, the number of answers or the prompts that follow, as far as the model computes the same logits: a
    different device, dtype or padded length may round differently and tip a token now and then.

    Args:
        model: Causal language model, may be a PEFT model.
        tokenizer: Its tokenizer; an answer ends at one of `stop_tokens`.
        prompts: N prompts, each a text or a list of messages.
        num_answers: Answers to each prompt, K.
        config: How to draw them.
        batch_size: Number of answers (not prompts) that are generated together.
        seed: Any integer from 0.
        where: Place of each prompt for errors, such as `prompts.jsonl:3`; its row from 0 if None.
        show_progress: Whether to draw a progress bar.
        columns: What each record says beside its prompt: tools and the like; nothing if None.
        known: Answers of an earlier call with the same arguments, by row and number; they are not drawn again.
        keep: Gets the answers of each batch as they come.
        streamer: Gets the tokens as they come, prompt first; with batches of one answer only.

    Returns:
        N lists of K answers, in the order of the prompts. Empty answers are kept.

    Raises:
        ValueError: If there are no prompts, or one is empty or leaves no room for `max_new_tokens`. Raised before
            anything is generated.
    """
    if not prompts:
        raise ValueError("sampling needs at least one prompt; got none")
    ends = stop_tokens(tokenizer, model.generation_config)
    check_vocabulary(model, tokenizer, "sampling")
    _check_settings(ends, num_answers, config, seed)
    if where is None:
        where = [f"prompt {row}" for row in range(len(prompts))]
    encoded_prompts = _encode(tokenizer, prompts, columns or [NOTHING_SAID] * len(prompts), where)
    _check_prompt_lengths(encoded_prompts, model, config.max_new_tokens, where)

    sampled = dict(known or {})
    jobs = [(row, answer) for row in range(len(prompts)) for answer in range(num_answers)]
    jobs = [job for job in jobs if job not in sampled]
    # Longest first: little padding, and a batch that does not fit into memory fails at once rather than at the end.
    jobs.sort(key=lambda job: -len(encoded_prompts[job[0]]))
    with (
        evaluation_mode(model),
        without_generation_defaults(model),
        contiguous_states(model),
        torch.no_grad(),
        tqdm(total=len(jobs), desc="sampling", unit="answer", disable=not show_progress) as progress,
    ):
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            streams = [np.random.default_rng([seed, row, answer]) for row, answer in batch]
            uniforms = np.stack([stream.random(config.max_new_tokens, dtype=np.float32) for stream in streams])
            batch_prompts = [encoded_prompts[row] for row, _ in batch]
            answers = _sample_batch(model, tokenizer, ends, batch_prompts, config, torch.from_numpy(uniforms), streamer)
            drawn = dict(zip(batch, answers, strict=True))
            if keep is not None:
                keep(drawn)
            sampled |= drawn
            progress.update(len(batch))
    return [[sampled[row, answer] for answer in range(num_answers)] for row in range(len(prompts))]


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    columns: Sequence[EncodingColumns],
    where: Sequence[str],
) -> list[list[int]]:
    encoded = []
    for prompt, row_columns, place in zip(prompts, columns, where, strict=True):
        try:
            encoded.append(encode_prompt(tokenizer, prompt, row_columns))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return encoded


def _check_settings(ends: list[int], num_answers: int, config: SamplingConfig, seed: int) -> None:
    if config.temperature == 0 and num_answers > 1:
        raise ValueError(
            f"temperature 0 gives the same answer every time; got num_answers {num_answers}. "
            "Ask for 1 answer, or for a temperature above 0"
        )
    if seed < 0:
        raise ValueError(f"seed must be 0 or greater; got {seed}")
    if not ends:
        raise ValueError("the tokenizer has no eos token, so no answer could ever end; set 'eos_token' in its files")


def _check_prompt_lengths(
    encoded_prompts: list[list[int]], model: PreTrainedModel, max_new_tokens: int, where: Sequence[str]
) -> None:
    limit = position_limit(model)
    for row, prompt_ids in enumerate(encoded_prompts):
        if not prompt_ids:
            raise ValueError(f"{where[row]}: the prompt is empty; a model needs at least one token to go on from")
        if limit is not None and len(prompt_ids) + max_new_tokens > limit:
            raise ValueError(
                f"{where[row]}: the prompt has {len(prompt_ids)} tokens and max_new_tokens is {max_new_tokens}, "
                f"together more than the {limit} positions of the model; shorten the prompt or lower max_new_tokens"
            )


def _sample_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
    prompts: list[list[int]],
    config: SamplingConfig,
    uniforms: Tensor,
    streamer: BaseStreamer | None = None,
) -> list[SampledAnswer]:
    """Generates one answer to each of B encoded prompts, drawing its tokens with its row of `uniforms`, (B, C)."""
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    input_ids, attention_mask = pad_sequences(prompts, pad_token_id, side="left")
    width = input_ids.shape[1]
    generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=config.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad_token_id,
        use_cache=reads_right_from_cache(model, tokenizer),
        suppress_tokens=padding_ids(model, num_token_ids(tokenizer)),
    )
    generated = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=generation_config,
        logits_processor=_logits_processors(config, uniforms.to(model.device), width),
        streamer=streamer,
    )
    return [SampledAnswer(*sampled_text(tokenizer, ids, ends)) for ids in generated[:, width:].tolist()]


def _logits_processors(config: SamplingConfig, uniforms: Tensor, prompt_width: int) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if config.temperature == 0:
        return processors
    if config.temperature != 1:
        processors.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k > 0:
        processors.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        processors.append(TopPLogitsWarper(config.top_p))
    processors.append(_InverseCdfSampler(uniforms, prompt_width))
    return processors


class _InverseCdfSampler(LogitsProcessor):
    """Draws each token by inverting the cumulative distribution, and leaves only that token for the greedy search.

    `generate` with `do_sample` draws all rows from one random stream, so an answer would depend on its batch mates.

    Args:
        uniforms: Numbers from [0, 1) that decide the tokens, (B, C).
        prompt_width: Columns before the first answer token.
    """

    def __init__(self, uniforms: Tensor, prompt_width: int) -> None:
        self.uniforms = uniforms
        self.prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_width
        cumulative = scores.float().softmax(dim=-1).cumsum(dim=-1)
        # The sum ends a little off 1, and a uniform next to 1 may round up to it: both would point past the last token.
        thresholds = self.uniforms[:, step, None] * (1 - 1e-6) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, thresholds, right=True)
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens, 0.0)
