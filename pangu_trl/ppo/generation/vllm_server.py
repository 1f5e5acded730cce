"""Answers sampled by a vLLM server, which TRL's client talks to.

Tested against the protocol that the client speaks, never against a real server: there was no GPU.
"""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedTokenizerBase
from trl.import_utils import is_requests_available, is_vllm_available

from pangu_trl.models.sharding import whole_weights

from ..actor_critic.policy_value import PolicyAndValue
from ..config import PPOConfig
from .plain_weights import plain_weights
from .vllm_sampler import Answer, VLLMSampler

if TYPE_CHECKING:
    from trl.generation.vllm_client import VLLMClient

START_SERVER = (
    'Start one with: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs"
)
# As many connections as the client keeps open.
MAX_REQUESTS_AT_ONCE = 64


class VLLMServer(VLLMSampler):
    """Has a vLLM server sample the policy's answers. The first rank talks to it, for all.

    Args:
        args: Options.
        accelerator: Knows device and ranks.
        tokenizer: The policy's.
        models: Policy and critic, before an engine wraps them.

    Raises:
        ValueError: The policy's adapter cannot be sent.
        ImportError: A package is missing.
        RuntimeError: There is no such server, or it serves another model.
    """

    def __init__(
        self,
        args: PPOConfig,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        models: PolicyAndValue,
    ) -> None:
        super().__init__(args, accelerator, tokenizer, models)
        for module, is_available in (("vllm", is_vllm_available()), ("requests", is_requests_available())):
            if not is_available:
                raise ImportError(
                    f"PPOTrainer: rollout_engine='vllm' needs the package {module} in the environment of the training "
                    "too. Install it with: pip install 'trl[vllm]'"
                )
        self._client: VLLMClient | None = None
        self.gives_logprobs = self._on_first_rank(self._connect, hint=START_SERVER)

    def _bring_weights(self, models: PolicyAndValue) -> None:
        """Sends them one at a time; all ranks gather the parts together."""
        if self._has_current_weights:
            return
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

    def _sample(self, prompts: list[list[int]], seeds: list[int], stop_token_ids: list[int]) -> list[Answer]:
        requests = gather_object(list(zip(prompts, seeds, strict=True)))
        first = sum(gather_object([len(prompts)])[: self.accelerator.process_index])
        found = self._on_first_rank(lambda: self._ask(requests, stop_token_ids))
        return found[first : first + len(prompts)]

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
        return self._can_be_compared(served["logprobs_mode"])

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

    def _ask(self, requests: list[tuple[list[int], int]], stop_token_ids: list[int]) -> list[Answer]:
        """Answers of all ranks."""
        args = self.args

        def ask(request: tuple[list[int], int]) -> Answer:
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
            logprobs = token_ids = None
            if self.gives_logprobs:
                logprobs, token_ids = found["logprobs"][0], found["logprob_token_ids"][0]
            return self._checked(prompt, found["completion_ids"][0], logprobs, token_ids, stop_token_ids)

        with ThreadPoolExecutor(max_workers=MAX_REQUESTS_AT_ONCE) as executor:
            return list(executor.map(ask, requests))

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


def _as_text(config: Any) -> str:
    return config if isinstance(config, str) else json.dumps(config)
