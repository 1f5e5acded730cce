"""Samples K answers to every prompt, and keeps them in files: the raw material of rankings and evaluations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pangu_trl.data.collators import pad_sequences
from pangu_trl.data.jsonl import read_numbered_jsonl
from pangu_trl.data.records import RecordError, answer_text, is_finite_number, validate_record
from pangu_trl.data.tokenizing import encode_prompt
from pangu_trl.reward.scoring import evaluation_mode, position_limit

Record = dict[str, Any]
Scores = list[list[float]]


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are drawn. Settings in the model's own generation config are not used.

    Attributes:
        max_new_tokens: Longest answer, eos included.
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
    """One answer as text without special tokens; `finished` says whether the model ended it itself, with eos."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Answers:
    """The records of an answers file, {"prompt", "responses": [K], ...}, and the places they stand at.

    Attributes:
        records: One record a prompt.
        places: Place of each record for errors, such as `answers.jsonl:3`.
    """

    records: list[Record]
    places: list[str]

    @classmethod
    def load(cls, path: str | Path) -> "Answers":
        """Reads an answers file and checks prompts and responses; unlike a ranking's, responses may be empty.

        Raises:
            RecordError: Naming file, line and field, if a record is malformed or there is none.
        """
        answers = cls([], [])
        for line, record in read_numbered_jsonl(path):
            place = f"{path}:{line}"
            _check_answers(validate_record(record, "prompt", place), place)
            answers.records.append(record)
            answers.places.append(place)
        return answers

    def scores(self, column: str) -> Scores | None:
        """Takes the scores of all answers from `column`; None if no record has it.

        Raises:
            RecordError: If only some records have it, or a score is missing or no finite number.
        """
        if not any(column in record for record in self.records):
            return None
        for record, place in zip(self.records, self.places, strict=True):
            if not _holds_numbers(record.get(column), len(record["responses"])):
                raise RecordError(
                    f"{place}: {column!r} must be a list of {len(record['responses'])} finite numbers, one an answer; "
                    f"got {record.get(column)!r}"
                )
        return [record[column] for record in self.records]

    @property
    def num_empty(self) -> int:
        """Number of empty answers."""
        return sum(is_empty(response) for record in self.records for response in record["responses"])

    @property
    def num_duplicates(self) -> int:
        """Number of answers that repeat an earlier answer to the same prompt."""
        responses_of_prompts = [record["responses"] for record in self.records]
        return sum(len(responses) - len(first_occurrences(responses)) for responses in responses_of_prompts)


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
) -> list[list[SampledAnswer]]:
    """Draws `num_answers` independent answers to each prompt.

    Answer k to prompt i draws its random numbers from (seed, i, k) alone. It is therefore the same whatever the
    batch size, the number of answers or the prompts that follow, as far as the model computes the same logits: a
    different device, dtype or padded length may round differently and tip a token now and then.

    Args:
        model: Causal language model, may be a PEFT model.
        tokenizer: Its tokenizer; an answer ends at the tokenizer's eos token.
        prompts: N prompts, each a text or a list of messages.
        num_answers: Answers to each prompt, K.
        config: How to draw them.
        batch_size: Number of answers (not prompts) that are generated together.
        seed: Any integer from 0.
        where: Place of each prompt for errors, such as `prompts.jsonl:3`; its row from 0 if None.
        show_progress: Whether to draw a progress bar.

    Returns:
        N lists of K answers, in the order of the prompts. Empty answers are kept.

    Raises:
        ValueError: If there are no prompts, or one is empty or leaves no room for `max_new_tokens`. Raised before
            anything is generated.
    """
    if not prompts:
        raise ValueError("sampling needs at least one prompt; got none")
    _check_settings(tokenizer, num_answers, config, seed)
    if where is None:
        where = [f"prompt {row}" for row in range(len(prompts))]
    encoded_prompts = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    _check_prompt_lengths(encoded_prompts, model, config.max_new_tokens, where)

    jobs = [(row, answer) for row in range(len(prompts)) for answer in range(num_answers)]
    # Longest first: little padding, and a batch that does not fit into memory fails at once rather than at the end.
    jobs.sort(key=lambda job: -len(encoded_prompts[job[0]]))
    sampled: dict[tuple[int, int], SampledAnswer] = {}
    with (
        evaluation_mode(model),
        _without_generation_defaults(model),
        tqdm(total=len(jobs), desc="sampling", unit="answer", disable=not show_progress) as progress,
    ):
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            streams = [np.random.default_rng([seed, row, answer]) for row, answer in batch]
            uniforms = np.stack([stream.random(config.max_new_tokens, dtype=np.float32) for stream in streams])
            batch_prompts = [encoded_prompts[row] for row, _ in batch]
            answers = _sample_batch(model, tokenizer, batch_prompts, config, torch.from_numpy(uniforms))
            sampled.update(zip(batch, answers, strict=True))
            progress.update(len(batch))
    return [[sampled[row, answer] for answer in range(num_answers)] for row in range(len(prompts))]


def without_empty_answers(answers: Answers) -> Answers:
    """Leaves out empty answers with their entries in per-answer columns, and records with fewer than two others."""
    kept_answers = Answers([], [])
    for record, place in zip(answers.records, answers.places, strict=True):
        kept = [index for index, response in enumerate(record["responses"]) if not is_empty(response)]
        if len(kept) >= 2:
            names = {"responses"} | per_answer_columns(record)
            kept_answers.records.append(
                {name: [value[index] for index in kept] if name in names else value for name, value in record.items()}
            )
            kept_answers.places.append(place)
    return kept_answers


def per_answer_columns(record: Record) -> set[str]:
    """Names of the columns that hold one number or boolean for each of the record's answers."""
    responses = record.get("responses") or []
    return {name for name, value in record.items() if responses and _holds_numbers(value, len(responses))}


def first_occurrences(responses: Sequence[Any]) -> list[int]:
    """Places of the answers to one prompt that repeat none before them."""
    return [index for index, response in enumerate(responses) if responses.index(response) == index]


def is_empty(response: Any) -> bool:
    """Whether an answer holds nothing but blanks."""
    return not answer_text(response).strip()


def _check_settings(tokenizer: PreTrainedTokenizerBase, num_answers: int, config: SamplingConfig, seed: int) -> None:
    if config.temperature == 0 and num_answers > 1:
        raise ValueError(
            f"temperature 0 gives the same answer every time; got num_answers {num_answers}. "
            "Ask for 1 answer, or for a temperature above 0"
        )
    if seed < 0:
        raise ValueError(f"seed must be 0 or greater; got {seed}")
    if tokenizer.eos_token_id is None:
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
    prompts: list[list[int]],
    config: SamplingConfig,
    uniforms: Tensor,
) -> list[SampledAnswer]:
    """Generates one answer to each of B encoded prompts, drawing its tokens with its row of `uniforms`, (B, C)."""
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    input_ids, attention_mask = pad_sequences(prompts, pad_token_id, side="left")
    width = input_ids.shape[1]
    generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=config.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_token_id,
    )
    generated = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        generation_config=generation_config,
        logits_processor=_logits_processors(config, uniforms.to(model.device), width),
    )
    answers = []
    for answer_ids in generated[:, width:].tolist():
        finished = tokenizer.eos_token_id in answer_ids
        if finished:
            answer_ids = answer_ids[: answer_ids.index(tokenizer.eos_token_id)]
        answers.append(SampledAnswer(tokenizer.decode(answer_ids, skip_special_tokens=True), finished))
    return answers


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


@contextmanager
def _without_generation_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Hides the model's own generation config, whose settings (a repetition penalty, say) `generate` would add."""
    # A PEFT model copies whatever it finds here, on its base model, before it generates.
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    generation_config = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = generation_config


def _check_answers(record: Record, place: str) -> None:
    responses = record.get("responses")
    form = type(record["prompt"])
    if (
        not isinstance(responses, list)
        or not responses
        or not all(isinstance(response, form) for response in responses)
    ):
        raise RecordError(
            f"{place}: 'responses' must be a list of one or more answers, text or messages as the prompt is; "
            f"got {responses!r}. `pangu-trl sample` writes such files"
        )
    for index, response in enumerate(responses):
        if not isinstance(response, str) and not all(_is_message(message) for message in response):
            raise RecordError(f"{place}: 'responses[{index}]' must hold messages with a text; got {response!r}")
    finished = record.get("finished")
    if finished is not None and not _holds_numbers(finished, len(responses)):
        raise RecordError(f"{place}: 'finished' must hold one true or false an answer; got {finished!r}")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _holds_numbers(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(is_finite_number, value))
