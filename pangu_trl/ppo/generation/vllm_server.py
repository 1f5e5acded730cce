"""Answers sampled by a vLLM server, which TRL's client talks to.

Tested against the protocol that the client speaks, never against a real server: there was no GPU.
"""

import json
import logging
import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl.import_utils import is_requests_available, is_vllm_available

from pangu_trl.data.answer_end import stop_tokens
from pangu_trl.models.score_head import innermost
from pangu_trl.models.sharding import whole_weights
from pangu_trl.models.vocabulary import known_ids

from ..actor_critic.policy_value import PolicyAndValue
from ..config import PPOConfig
from ..rollout import Rollout
from .plain_weights import check_plain_weights, plain_weights
from .sampled_logprobs import SampledLogprobs

if TYPE_CHECKING:
    from trl.generation.vllm_client import VLLMClient

logger = logging.getLogger(__name__)

START_SERVER = (
    'Start one with: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs"
)
# As many connections as the client keeps open.
MAX_REQUESTS_AT_ONCE = 64
MAX_SEED = 2**31


class VLLMServer(TrainerCallback):
    """Has a vLLM server sample the policy's answers. The first rank talks to it, for all.

    As a callback of the Trainer it notes when the policy changes, so that weights are sent only then.

    Args:
        args: Options.
        accelerator: Knows device and ranks.
        tokenizer: The policy's.
        models: Policy and critic, before an engine wraps them.

    Attributes:
        gives_logprobs: Whether the server's log-probabilities of sampled tokens are those of the distribution that is
            learnt, so that the two can be compared.

    Raises:
        ValueError: The policy's adapter cannot be sent.
        RuntimeError: There is no client, no such server, or it serves another model.
    """

    def __init__(
        self,
        args: PPOConfig,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        models: PolicyAndValue,
    ) -> None:
        self.args, self.accelerator, self.tokenizer = args, accelerator, tokenizer
        check_plain_weights(models.policy)
        for module, is_available in (("vllm", is_vllm_available()), ("requests", is_requests_available())):
            if not is_available:
                raise ImportError(
                    f"PPOTrainer: rollout_engine='vllm' needs the package {module} in the environment of the training "
                    "too. Install it with: pip install 'trl[vllm]'"
                )
        self._vocab_size = innermost(models.policy).config.get_text_config().vocab_size
        self._num_known_ids = known_ids(models.policy) or self._vocab_size
        self._client: VLLMClient | None = None
        self._has_current_weights = False
        self.gives_logprobs = self._on_first_rank(self._connect, hint=START_SERVER)

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
            watch: Gets the log-probabilities that the server gives, if it gives those that are learnt.
        """
        models, device = self.accelerator.unwrap_model(model), self.accelerator.device
        stop_token_ids = stop_tokens(self.tokenizer, models.policy.generation_config)
        if not self._has_current_weights:
            self._send_weights(models)
            self._has_current_weights = True
        # Of this rank's random numbers, so that they are those of a resumed run and of every evaluation.
        seeds = torch.randint(MAX_SEED, (len(prompts),)).tolist()
        requests = gather_object(list(zip(prompts, seeds, strict=True)))
        first = sum(gather_object([len(prompts)])[: self.accelerator.process_index])
        found = self._on_first_rank(lambda: self._sample(requests, stop_token_ids))[first : first + len(prompts)]
        answers, logprobs = zip(*found, strict=True)
        if watch is not None and self.gives_logprobs:
            watch.rows = list(range(len(prompts)))
            watch.logprobs = pad_sequence([torch.tensor(row) for row in logprobs], batch_first=True).to(device)
        return Rollout.from_answers(prompts, list(answers), stop_token_ids, self.tokenizer.pad_token_id, device)

    def _connect(self) -> bool:
        # Loads requests, which takes longer than the rest of this package.
        from trl.generation.vllm_client import VLLMClient

        args = self.args
        self._client = VLLMClient(
            base_url=args.vllm_server_base_url.rstrip("/"),
            group_port=args.vllm_group_port,
            connection_timeout=args.vllm_server_timeout,
        )
        served = self._client.get_server_info()["model_config"]
        self._check_served_model(served)
        self._client.init_communicator(device=self.accelerator.device)
        gives_logprobs = {
            "processed_logprobs": args.top_p == 1 and args.top_k == 0,
            "raw_logprobs": args.temperature == 1,
        }.get(served["logprobs_mode"], False)
        if not gives_logprobs and args.vllm_importance_sampling_correction:
            raise ValueError(
                f"vllm_importance_sampling_correction compares with the server's log-probabilities, and with "
                f"{served['logprobs_mode']} those are of another distribution than the one that is learnt. Start it "
                "with --logprobs-mode processed_logprobs and leave top_p and top_k alone, or leave the correction out."
            )
        if not gives_logprobs:
            logger.warning(
                "policy/sampling_gap is left out: with %s the vLLM server gives log-probabilities of another "
                "distribution than the one that is learnt, which temperature=%s shapes and top_p and top_k do not. "
                "processed_logprobs without top_p and top_k, or raw_logprobs with temperature=1, can be compared.",
                served["logprobs_mode"],
                args.temperature,
            )
        return gives_logprobs

    def _check_served_model(self, served: dict[str, Any]) -> None:
        length = self.args.max_prompt_length + self.args.max_completion_length
        if served["max_model_len"] < length:
            raise ValueError(
                f"max_prompt_length + max_completion_length = {length} is more than the {served['max_model_len']} "
                "tokens that it takes. Lower one of the two, or raise its --max-model-len."
            )
        # A dictionary or the text of one, according to the server's version; a default size may be left out.
        vocab_size = re.search(r'"vocab_size": (\d+)', _as_text(served.get("hf_text_config", served.get("hf_config"))))
        if vocab_size is not None and int(vocab_size[1]) != self._vocab_size:
            raise ValueError(
                f"it serves a model with a vocabulary of {vocab_size[1]} tokens, the policy has {self._vocab_size}. "
                "Serve the model that the policy was loaded from."
            )

    def _send_weights(self, models: PolicyAndValue) -> None:
        """Sends the policy's weights, never the critic's, one at a time; all ranks gather the parts together."""
        with whole_weights(models, models.policy):
            weights = plain_weights(models.policy)
            tensors = ((weight.name, weight.read()) for weight in weights)
            if self.accelerator.is_main_process:
                announced = [weight.announcement for weight in weights]
                self._client.update_named_params(announced, tensors)
                self._client.reset_prefix_cache()
            else:
                for _ in tensors:
                    pass

    def _sample(
        self, requests: list[tuple[list[int], int]], stop_token_ids: list[int]
    ) -> list[tuple[list[int], list[float]]]:
        """Token ids of each answer and, if they can be compared, the log-probabilities of its tokens."""
        args = self.args

        def ask(request: tuple[list[int], int]) -> tuple[list[int], list[float]]:
            prompt, seed = request
            # One request each: vLLM would give all prompts of a request the same random numbers.
            found = self._client.generate(
                [prompt],
                temperature=args.temperature,
                top_p=args.top_p,
                top_k=args.top_k,
                max_tokens=args.max_completion_length,
                logprobs=0 if self.gives_logprobs else None,
                # What ends an answer is what ends it here, not the served model's own settings.
                generation_kwargs={"seed": seed, "stop_token_ids": stop_token_ids, "ignore_eos": True},
            )
            answer = found["completion_ids"][0]
            self._check_answer(answer, prompt, stop_token_ids)
            if not self.gives_logprobs:
                return answer, []
            return answer, _logprobs_of(answer, found["logprobs"][0], found["logprob_token_ids"][0])

        with ThreadPoolExecutor(max_workers=MAX_REQUESTS_AT_ONCE) as executor:
            return list(executor.map(ask, requests))

    def _check_answer(self, answer: list[int], prompt: list[int], stop_token_ids: list[int]) -> None:
        """Refuses what no policy of ours could have said."""
        limit = self.args.max_completion_length
        stops = [token in stop_token_ids for token in answer]
        ends_well = len(answer) <= limit and not any(stops[:-1]) and (len(answer) == limit or any(stops))
        if not answer or not ends_well or not 0 <= min(answer) <= max(answer) < self._num_known_ids:
            raise ValueError(
                f"an answer must be up to {limit} tokens below {self._num_known_ids} and end with the first stop token "
                f"({', '.join(map(str, stop_token_ids))}) or at that length; got {answer} for the prompt {prompt}."
            )

    def _on_first_rank(self, task: Callable[[], Any], hint: str = "") -> Any:
        """Does something on the first rank and gives all ranks what came of it, be it an error, so that none waits."""
        outcome, cause = [None, None], None
        if self.accelerator.is_main_process:
            try:
                outcome[0] = task()
            except Exception as error:  # The client raises bare ones.
                outcome[1], cause = f"{error} {hint}".strip(), error
        result, failure = broadcast_object_list(outcome)
        if failure is not None:
            raise RuntimeError(f"PPOTrainer: vLLM server at {self.args.vllm_server_base_url}: {failure}") from cause
        return result


def _logprobs_of(answer: list[int], logprobs: list[list[float | None]], token_ids: list[list[int]]) -> list[float]:
    """Log-probability of each token of an answer among those that the server gives for its place."""
    found = []
    for token, values, candidates in zip(answer, logprobs, token_ids, strict=True):
        value = values[candidates.index(token)]
        found.append(math.nan if value is None else value)
    return found


def _as_text(config: Any) -> str:
    return config if isinstance(config, str) else json.dumps(config)
