"""What a vLLM server and a colocated vLLM have in common: when they need weights, and how answers are checked."""

import logging
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, TrainerCallback

from pangu_trl.data.answer_end import stop_tokens
from pangu_trl.models.score_head import innermost
from pangu_trl.models.vocabulary import known_ids

from ..actor_critic.policy_value import PolicyAndValue
from ..config import PPOConfig
from ..rollout import Rollout
from .plain_weights import check_plain_weights
from .sampled_logprobs import SampledLogprobs

logger = logging.getLogger(__name__)

MAX_SEED = 2**31

# Token ids of an answer and, if they can be compared, the log-probabilities of its tokens.
Answer = tuple[list[int], list[float]]


class VLLMSampler(TrainerCallback, ABC):
    """Has vLLM sample the policy's answers.

    As a callback of the Trainer it notes when the policy changes, so that weights are sent only then.

    Args:
        args: Options.
        accelerator: Knows device and ranks.
        tokenizer: The policy's.
        models: Policy and critic, before an engine wraps them.

    Attributes:
        gives_logprobs: Whether vLLM's log-probabilities of sampled tokens are those of the distribution that is learnt,
            so that the two can be compared.

    Raises:
        ValueError: The policy's adapter cannot be sent.
    """

    gives_logprobs: bool

    def __init__(
        self,
        args: PPOConfig,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        models: PolicyAndValue,
    ) -> None:
        self.args, self.accelerator, self.tokenizer = args, accelerator, tokenizer
        check_plain_weights(models.policy)
        self._vocab_size = innermost(models.policy).config.get_text_config().vocab_size
        self._num_known_ids = known_ids(models.policy) or self._vocab_size
        self._has_current_weights = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """By now a checkpoint has been loaded, if there is one."""
        self._has_current_weights = False

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The policy has learnt."""
        self._has_current_weights = False

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """`load_best_model_at_end` may have brought older weights back."""
        self._has_current_weights = False

    def answer(self, model: nn.Module, prompts: list[list[int]], watch: SampledLogprobs | None = None) -> Rollout:
        """Samples one answer to each prompt of this rank; all ranks call it together.

        Args:
            model: PolicyAndValue, as its engine wraps it.
            prompts: Token ids of N prompts.
            watch: Gets the log-probabilities that vLLM gives, if it gives those that are learnt.
        """
        models, device = self.accelerator.unwrap_model(model), self.accelerator.device
        stop_token_ids = stop_tokens(self.tokenizer, models.policy.generation_config)
        self._bring_weights(models)
        self._has_current_weights = True
        # Of this rank's random numbers, so that they are those of a resumed run and of every evaluation.
        seeds = torch.randint(MAX_SEED, (len(prompts),)).tolist()
        answers, logprobs = zip(*self._sample(prompts, seeds, stop_token_ids), strict=True)
        if watch is not None and self.gives_logprobs:
            watch.rows = list(range(len(prompts)))
            watch.logprobs = pad_sequence([torch.tensor(row) for row in logprobs], batch_first=True).to(device)
        return Rollout.from_answers(prompts, list(answers), stop_token_ids, self.tokenizer.pad_token_id, device)

    @abstractmethod
    def _bring_weights(self, models: PolicyAndValue) -> None:
        """Sees to it that vLLM samples from the policy's weights, never the critic's; all ranks call it together."""

    @abstractmethod
    def _sample(self, prompts: list[list[int]], seeds: list[int], stop_token_ids: list[int]) -> list[Answer]:
        """Asks for an answer to each prompt of this rank, each with its seed, and checks the answers."""

    def _can_be_compared(self, logprobs_mode: str) -> bool:
        """Whether log-probabilities of vLLM's mode are of the distribution that is learnt.

        Raises:
            ValueError: They are not, and the correction needs them.
        """
        args = self.args
        can_be_compared = {
            "processed_logprobs": args.top_p == 1 and args.top_k == 0,
            "raw_logprobs": args.temperature == 1,
        }.get(logprobs_mode, False)
        if not can_be_compared and args.vllm_importance_sampling_correction:
            raise ValueError(
                f"vllm_importance_sampling_correction compares with vLLM's log-probabilities, and with {logprobs_mode} "
                "those are of another distribution than the one that is learnt. Leave top_p and top_k alone (and start "
                "a server with --logprobs-mode processed_logprobs), or leave the correction out."
            )
        if not can_be_compared:
            logger.warning(
                "policy/sampling_gap is left out: with %s vLLM gives log-probabilities of another distribution than "
                "the one that is learnt, which temperature=%s shapes and top_p and top_k do not. processed_logprobs "
                "without top_p and top_k, or raw_logprobs with temperature=1, can be compared.",
                logprobs_mode,
                args.temperature,
            )
        return can_be_compared

    def _checked(
        self,
        prompt: list[int],
        answer: list[int],
        logprobs: list[list[float | None]] | None,
        token_ids: list[list[int]] | None,
        stop_token_ids: list[int],
    ) -> Answer:
        """Refuses what no policy of ours could have said, and finds the log-probabilities of an answer's tokens.

        Args:
            prompt: What is answered.
            answer: Token ids, C of them.
            logprobs: For each place the log-probabilities of some tokens, among them the answer's.
            token_ids: Which tokens those are.
            stop_token_ids: What ends an answer.

        Raises:
            ValueError: With the answer.
        """
        limit = self.args.max_completion_length
        stops = [token in stop_token_ids for token in answer]
        ends_well = len(answer) <= limit and not any(stops[:-1]) and (len(answer) == limit or any(stops))
        if not answer or not ends_well or not 0 <= min(answer) <= max(answer) < self._num_known_ids:
            raise ValueError(
                f"an answer must be up to {limit} tokens below {self._num_known_ids} and end with the first stop token "
                f"({', '.join(map(str, stop_token_ids))}) or at that length; got {answer} for the prompt {prompt}."
            )
        if not self.gives_logprobs:
            return answer, []
        return answer, _logprobs_of(answer, logprobs, token_ids)


def _logprobs_of(answer: list[int], logprobs: list[list[float | None]], token_ids: list[list[int]]) -> list[float]:
    """Log-probability of each token of an answer among those that vLLM gives for its place."""
    found = []
    for token, values, candidates in zip(answer, logprobs, token_ids, strict=True):
        value = values[candidates.index(token)]
        found.append(math.nan if value is None else value)
    return found
