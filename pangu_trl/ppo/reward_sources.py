"""The parts of the reward: what each one is decides how it scores whole answers."""

import copy
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pangu_trl.answers.judge import Judge
from pangu_trl.answers.python_scores import check_signature, check_steps
from pangu_trl.answers.rewards import GROUPWISE, STEPWISE, reward_kind
from pangu_trl.data.collators import pad_sequences
from pangu_trl.data.conversations import EncodingColumns
from pangu_trl.data.records import answer_as, messages_text
from pangu_trl.data.tokenizing import encode_prompt
from pangu_trl.models.modes import position_limit
from pangu_trl.models.padding_free import is_padding_free
from pangu_trl.models.reward_model import ScoringError, encode_response
from pangu_trl.models.score_head import innermost
from pangu_trl.models.sequence_scores import sequence_scores
from pangu_trl.models.sharding import prepare_frozen

from .rollout import Rollout
from .sampler import batches_by_length

RewardFunction = Callable[..., list[float]]
# What a user may pass; a path is the folder of a reward adapter, for share_backbone='all'.
Reward = PreTrainedModel | PeftModel | RewardFunction | str | Path


@dataclass
class RewardSource(ABC):
    """One part of the reward.

    Attributes:
        name: For logs and errors.
        weight: Factor of its scores in the sum.
    """

    name: str
    weight: float

    @abstractmethod
    def score(self, models: nn.Module, rollout: Rollout, examples: list[dict[str, Any]], batch_size: int) -> Tensor:
        """Scores whole answers, before the weight.

        Args:
            models: PolicyAndValue, as its engine wraps it.
            rollout: N answers.
            examples: The prompt records that were answered, one per answer.
            batch_size: Answers per forward pass of a model.

        Returns:
            Scores (N,) in float32.
        """


@dataclass
class ModelReward(RewardSource):
    """A sequence classification model with one label that reads the policy's own tokens."""

    model: nn.Module

    def prepare(self, accelerator: Accelerator) -> None:
        """Places or shards the model, which does not learn."""
        self.model = prepare_frozen(self.model, accelerator)

    def score(self, models: nn.Module, rollout: Rollout, examples: list[dict[str, Any]], batch_size: int) -> Tensor:
        """See `RewardSource.score`."""
        return _in_batches(
            rollout,
            batch_size,
            is_padding_free(self.model),
            lambda batch: sequence_scores(self.model, batch.input_ids, batch.attention_mask),
        )


@dataclass
class TextModelReward(ModelReward):
    """A sequence classification model that reads other tokens than the policy writes: all is encoded anew.

    Attributes:
        tokenizer: The model's own.
        policy_tokenizer: Wrote the answers.
    """

    tokenizer: PreTrainedTokenizerBase
    policy_tokenizer: PreTrainedTokenizerBase

    def score(self, models: nn.Module, rollout: Rollout, examples: list[dict[str, Any]], batch_size: int) -> Tensor:
        """See `RewardSource.score`."""
        texts = rollout.texts(self.policy_tokenizer)
        sequences = [
            self._encoded(example, text, ended)
            for example, text, ended in zip(examples, texts, rollout.ended.tolist(), strict=True)
        ]
        pad_token_id = innermost(self.model).config.get_text_config().pad_token_id
        limit = position_limit(innermost(self.model))
        for example, sequence in zip(examples, sequences, strict=True):
            if limit is not None and len(sequence) > limit:
                raise ValueError(
                    f"PPOTrainer: in its own tokens prompt and answer have {len(sequence)}, and the reward model takes "
                    f"{limit}; the prompt is {example['prompt']!r}. Nothing is cut, and no update was made with the "
                    "answers of this step. Leave long prompts out, or lower max_completion_length."
                )
        scores = []
        for start in range(0, len(sequences), batch_size):
            batch = pad_sequences(sequences[start : start + batch_size], pad_token_id, side="right")
            with torch.no_grad():
                scores.append(sequence_scores(self.model, *(tensor.to(rollout.input_ids.device) for tensor in batch)))
        return torch.cat(scores).float()

    def check_reads(self, example: dict[str, Any]) -> None:
        """Encodes a prompt with an answer of one letter.

        Raises:
            ValueError: It cannot be encoded, as messages without a chat template.
        """
        try:
            self._encoded(example, "a", ended=True)
        except ValueError as error:
            raise ValueError(f"PPOTrainer: reward_processing_class cannot encode the first prompt: {error}") from error

    def _encoded(self, example: dict[str, Any], text: str, ended: bool) -> list[int]:
        prompt, columns = example["prompt"], EncodingColumns.of(example)
        answer = encode_response(self.tokenizer, prompt, answer_as(prompt, text), columns)
        # An answer that was cut off has no end here either, except where nothing else would be left.
        return encode_prompt(self.tokenizer, prompt, columns) + (answer if ended else answer[:-1] or answer)


@dataclass
class AdapterReward(RewardSource):
    """A reward adapter on the policy's own base model, which scores through the policy's engine.

    Attributes:
        adapter: Its folder or its PeftModel, as the user passed it.
    """

    adapter: str | Path | PeftModel

    def score(self, models: nn.Module, rollout: Rollout, examples: list[dict[str, Any]], batch_size: int) -> Tensor:
        """See `RewardSource.score`."""
        return _in_batches(
            rollout,
            batch_size,
            is_padding_free(innermost(models).policy),
            lambda batch: models(batch.input_ids, batch.attention_mask, part="reward")["scores"],
        )


@dataclass
class FunctionReward(RewardSource):
    """A Python function `f(prompts, completions, **columns) -> list[float]`.

    Attributes:
        function: Gets prompts, answers and the records' other columns; may be asynchronous.
        policy_tokenizer: Wrote the answers.
        form: What it gets: `record`, prompts as the records have them and answers in the same form; or `text`.
    """

    function: RewardFunction
    policy_tokenizer: PreTrainedTokenizerBase
    form: str = "record"

    def __post_init__(self) -> None:
        check_signature(f"PPOTrainer: the reward function {self.name!r}", self.function)

    def score(self, models: nn.Module, rollout: Rollout, examples: list[dict[str, Any]], batch_size: int) -> Tensor:
        """See `RewardSource.score`; all answers at once.

        Raises:
            ValueError: Naming function and answer, if a score is missing or no finite number.
        """
        prompts, completions, columns = self._texts(rollout, examples)
        with _naming_prompts(prompts):
            scores = Judge(self.name, self.function, form=self.form)(prompts, completions, **columns)
        return torch.tensor(scores, dtype=torch.float32, device=rollout.input_ids.device)

    def _texts(self, rollout: Rollout, examples: list[dict[str, Any]]) -> tuple[list[Any], list[Any], dict[str, list]]:
        columns = {key: [example[key] for example in examples] for key in examples[0]}
        prompts = columns.pop("prompt")
        texts = rollout.texts(self.policy_tokenizer)
        return prompts, [answer_as(prompt, text) for prompt, text in zip(prompts, texts, strict=True)], columns


@dataclass
class GroupReward(FunctionReward):
    """A function that is marked `groupwise`: it judges the answers to one prompt against each other."""

    def score(self, models: nn.Module, rollout: Rollout, examples: list[dict[str, Any]], batch_size: int) -> Tensor:
        """See `RewardSource.score`; a call for each prompt.

        Raises:
            ValueError: As `FunctionReward.score`.
        """
        prompts, completions, columns = self._texts(rollout, examples)
        # The answers to a prompt stand side by side, and share the prompt's record itself.
        starts = [row for row in range(len(examples)) if row == 0 or examples[row] is not examples[row - 1]]
        scores: list[float] = []
        for start, end in zip(starts, [*starts[1:], len(examples)], strict=True):
            judge = Judge(self.name, self._of_group, form=self.form)
            of_group = {name: values[start:end] for name, values in columns.items()}
            with _naming_prompts(prompts[start:end]):
                scores += judge(prompts[start:end], completions[start:end], **of_group)
        return torch.tensor(scores, dtype=torch.float32, device=rollout.input_ids.device)

    def _of_group(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> Any:
        return self.function(prompts[0], completions, **{name: values[0] for name, values in columns.items()})


@dataclass
class StepReward(FunctionReward):
    """A function that is marked `stepwise`: it scores the steps of an answer, each at the token that completes it."""

    def score(self, models: nn.Module, rollout: Rollout, examples: list[dict[str, Any]], batch_size: int) -> Tensor:
        """See `RewardSource.score`; the sums over the steps."""
        return self.score_tokens(rollout, examples).sum(dim=1)

    def score_tokens(self, rollout: Rollout, examples: list[dict[str, Any]]) -> Tensor:
        """Scores of the steps at their tokens, (N, C) in float32, 0 elsewhere, before the weight.

        Raises:
            ValueError: Naming function and answer, if an end or a score of a step is none.
        """
        prompts, completions, columns = self._texts(rollout, examples)
        if self.form == "text":
            prompts, completions = list(map(messages_text, prompts)), list(map(messages_text, completions))
        texts = list(map(messages_text, completions))
        # As `Judge` does: the function may change what it gets.
        its_prompts, its_completions, its_columns = copy.deepcopy((prompts, completions, columns))
        steps = self.function(its_prompts, its_completions, **its_columns)
        with _naming_prompts(prompts):
            check_steps(f"reward {self.name}", steps, texts)
        placed = torch.zeros(rollout.completion_mask.shape, device=rollout.input_ids.device)
        for row, (ids, of_answer) in enumerate(zip(rollout.completions(), steps, strict=True)):
            for end, score in of_answer:
                placed[row, self._token_at(ids, end)] += score
        return placed

    def _token_at(self, ids: list[int], end: int) -> int:
        """Place of the token with which so many characters of the answer are written; of the last where none has."""
        decode = self.policy_tokenizer.decode

        def num_characters(num_tokens: int) -> int:
            return len(decode(ids[:num_tokens], skip_special_tokens=True))

        return min(bisect_left(range(len(ids) + 1), end, key=num_characters), len(ids)) - 1


@contextmanager
def _naming_prompts(prompts: list[Any]) -> Iterator[None]:
    """Adds the prompt to what is said of an answer that cannot be scored."""
    try:
        yield
    except ScoringError as error:
        raise ValueError(
            f"PPOTrainer: in the reward, {error}; the prompt is {prompts[error.index]!r}. No update was made with "
            "the answers of this step."
        ) from error


def reward_sources(
    reward_model: Reward | Sequence[Reward],
    reward_processing_class: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None,
    weights: list[float] | None,
    tokenizer: PreTrainedTokenizerBase,
    share_backbone: str = "none",
    function_form: str = "record",
) -> list[RewardSource]:
    """Lines up what the user passed as rewards, their tokenizers and weights.

    Args:
        reward_model: One reward or several.
        reward_processing_class: Tokenizers of models that read other tokens than the policy writes; None where not.
        weights: Of each reward; None weighs all alike.
        tokenizer: The policy's.
        share_backbone: With `all` the first adapter among the rewards belongs to the policy's backbone.
        function_form: What functions get, `record` or `text`.

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
    adapters = [reward for reward in rewards if isinstance(reward, str | Path | PeftModel)]
    on_backbone = adapters[:1] if share_backbone == "all" else []
    sources: list[RewardSource] = []
    for reward, its_tokenizer, weight in zip(rewards, tokenizers, weights, strict=True):
        name = _name(reward, {source.name for source in sources}, len(sources))
        if isinstance(reward, str | Path) or any(reward is adapter for adapter in on_backbone):
            sources.append(AdapterReward(name, weight, reward))
        elif isinstance(reward, nn.Module) and its_tokenizer is not None:
            sources.append(TextModelReward(name, weight, reward, its_tokenizer, tokenizer))
        elif isinstance(reward, nn.Module):
            sources.append(ModelReward(name, weight, reward))
        elif callable(reward):
            kinds = {GROUPWISE: GroupReward, STEPWISE: StepReward}
            source = kinds.get(reward_kind(reward), FunctionReward)
            sources.append(source(name, weight, reward, tokenizer, function_form))
        else:
            raise ValueError(
                f"PPOTrainer: reward_model must be a model, a function or an adapter's folder; got {reward!r}."
            )
    return sources


def _name(reward: Reward, taken: set[str], index: int) -> str:
    is_model = isinstance(reward, nn.Module | str | Path)
    name = "model" if is_model else getattr(reward, "__name__", type(reward).__name__)
    return name if name not in taken else f"{name}_{index}"


def _in_batches(rollout: Rollout, batch_size: int, shares: bool, score: Callable[[Rollout], Tensor]) -> Tensor:
    """Scores (N,) of whole answers.

    Answers of like length together; or with `shares` as they stand, so that the answers to one prompt share it.
    """
    lengths = rollout.lengths.cpu()
    rows = torch.arange(len(lengths))
    batches = rows.split(batch_size) if shares else batches_by_length(rows, lengths, batch_size, len(lengths))
    scores = torch.zeros(len(lengths), device=rollout.input_ids.device)
    for of_batch in batches:
        of_batch = of_batch.to(scores.device)
        with torch.no_grad():
            scores[of_batch] = score(rollout.select(of_batch)).float()
    return scores
