"""Answers sampled by vLLM in the training's own processes and on their GPUs, which TRL's class starts and fills.

Tested against a stand-in for vLLM, never against vLLM itself: there was no GPU. Importing this module loads vLLM where
it is installed.
"""

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available

from pangu_trl.gptpangu.configuration_gptpangu import MODEL_TYPES
from pangu_trl.models.score_head import innermost
from pangu_trl.models.sharding import whole_weights

from ..actor_critic.policy_value import PolicyAndValue
from ..config import PPOConfig
from .plain_weights import plain_weights
from .vllm_sampler import Answer, VLLMSampler


class VLLMColocated(VLLMSampler):
    """Has a vLLM in each process of the training sample the policy's answers.

    Args:
        args: Options.
        accelerator: Knows device and ranks.
        tokenizer: The policy's.
        models: Policy and critic, before an engine wraps them.

    Raises:
        ValueError: The policy's adapter cannot be sent, vLLM cannot start from where the policy was loaded, or options
            and launch do not fit together.
        ImportError: vLLM is not installed.
    """

    def __init__(
        self,
        args: PPOConfig,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        models: PolicyAndValue,
    ) -> None:
        super().__init__(args, accelerator, tokenizer, models)
        if not is_vllm_available():
            raise ImportError(
                "PPOTrainer: vllm_mode='colocate' runs vLLM in the training's processes, and their environment lacks "
                "the package vllm. Install it with: pip install 'trl[vllm]'"
            )
        _check_device(accelerator)
        _check_ranks(args, accelerator)
        self._check_start(models.policy)
        try:
            # The mode in which TRL's class starts vLLM.
            self.gives_logprobs = self._can_be_compared("processed_logprobs")
        except ValueError as error:
            raise ValueError(f"PPOTrainer: vllm_mode='colocate': {error}") from error
        self._engine = self._start(models.policy)
        # vLLM seeds the random numbers of the process that it starts in, by the rank alone.
        set_seed(args.seed, device_specific=True)

    def _start(self, policy: nn.Module) -> "PolicyGeneration":
        args = self.args
        engine = PolicyGeneration(
            policy,
            self.accelerator,
            self.tokenizer,
            mode="colocate",
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.max_prompt_length + args.max_completion_length,
            max_num_seqs=args.generation_batch_size and args.generation_batch_size * args.vllm_tensor_parallel_size,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            model_impl=args.vllm_model_impl,
            trust_remote_code=args.vllm_trust_remote_code,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_completion_length=args.max_completion_length,
            logprobs=0 if self.gives_logprobs else None,
        )
        engine.llm = SeededLLM(engine.llm)
        return engine

    def _bring_weights(self, models: PolicyAndValue) -> None:
        self._engine.models = models
        # A vLLM that slept has lost its weights, and TRL's `generate` fetches them by itself.
        if not self._has_current_weights and not self.args.vllm_enable_sleep_mode:
            self._engine.sync_weights()

    def _sample(self, prompts: list[list[int]], seeds: list[int], stop_token_ids: list[int]) -> list[Answer]:
        # What ends an answer is what ends it here, not the settings in the model's folder.
        self._engine.generation_kwargs = {"stop_token_ids": stop_token_ids, "ignore_eos": True}
        asked, self._engine.llm.seeds = self._for_the_group(prompts, seeds)
        _, answers, logprobs, token_ids = self._engine.generate(asked, images=None, num_generations=1)
        nothing = [None] * len(asked)
        found = zip(asked, answers, logprobs or nothing, token_ids or nothing, strict=True)
        try:
            return [self._checked(*answer, stop_token_ids) for answer in list(found)[: len(prompts)]]
        except ValueError as error:
            raise RuntimeError(f"PPOTrainer: colocated vLLM: {error}") from error

    def _for_the_group(self, prompts: list[list[int]], seeds: list[int]) -> tuple[list[list[int]], list[int]]:
        """Prompts of this rank, and the seeds of all that its tensor-parallel group asks together.

        TRL takes the ranks of a group to ask as much each; a rank with fewer prompts asks its last one again.
        """
        group_size = self.args.vllm_tensor_parallel_size
        if group_size == 1:
            return prompts, seeds
        num_asked = max(gather_object([len(prompts)]))
        num_missing = num_asked - len(prompts)
        all_seeds = gather_object(seeds + seeds[-1:] * num_missing)
        first_rank = self.accelerator.process_index // group_size * group_size
        own = slice(first_rank * num_asked, (first_rank + group_size) * num_asked)
        return prompts + prompts[-1:] * num_missing, all_seeds[own]

    def _check_start(self, policy: nn.Module) -> None:
        """Refuses what vLLM cannot start from; all weights are replaced, but not what the folder says of the model."""
        name = innermost(policy).name_or_path
        if not name:
            raise ValueError(
                "PPOTrainer: vllm_mode='colocate' starts vLLM from the folder or hub id that the policy was loaded "
                "from, its name_or_path, and this policy has none. Save it and its tokenizer with save_pretrained, and "
                "load it from there."
            )
        config = _config_of(name)
        if config is None:
            raise ValueError(
                f"PPOTrainer: vllm_mode='colocate' starts vLLM from where the policy was loaded, and {name} has no "
                "config.json of a model. Save it and its tokenizer with save_pretrained, and load it from there."
            )
        # A default size may be left out.
        vocab_size = (config.get("text_config") or config).get("vocab_size", self._vocab_size)
        if vocab_size != self._vocab_size:
            raise ValueError(
                f"PPOTrainer: vllm_mode='colocate' starts vLLM from {name}, a model with a vocabulary of {vocab_size} "
                f"tokens, and the policy has {self._vocab_size}. Save the policy and its tokenizer with "
                "save_pretrained, and load it from there."
            )
        is_gptpangu = config.get("model_type") in MODEL_TYPES
        if is_gptpangu and self.args.vllm_model_impl != "transformers":
            raise ValueError(
                "PPOTrainer: vLLM has no implementation of GPTPangu. Set vllm_model_impl='transformers', with which "
                f"vLLM runs the code that {name} brings, or leave out rollout_engine."
            )
        has_own_code = type(innermost(policy)).__module__.startswith("transformers_modules.")
        if (is_gptpangu or has_own_code) and not self.args.vllm_trust_remote_code:
            raise ValueError(
                f"PPOTrainer: a colocated vLLM would have to run the code that {name} brings. Look at it, then allow "
                "it with vllm_trust_remote_code: true, or leave out rollout_engine."
            )
        if not is_gptpangu:
            return
        if "AutoModel" not in (config.get("auto_map") or {}):
            raise ValueError(
                f"PPOTrainer: with vllm_model_impl='transformers' vLLM runs GPTPangu's code from the model's folder, "
                f"and {name} brings none: its config.json has no auto_map. Start from a folder that `pangu-trl "
                "publish` wrote, or leave out rollout_engine."
            )


class PolicyGeneration(VLLMGeneration):
    """TRL's vLLM, which gets the policy's plain weights: whole, with the LoRA added into new tensors.

    Attributes:
        models: Policy and critic without their engine, to be set before weights are sent.
    """

    models: PolicyAndValue

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        with whole_weights(self.models, self.models.policy):
            for weight in plain_weights(self.models.policy):
                yield weight.name, weight.read()


class SeededLLM:
    """A vLLM whose requests have a seed each.

    TRL hands vLLM one set of sampling options for all prompts: a seed among them would give equal prompts equal
    answers, and without one a resumed run would draw others.

    Args:
        llm: vLLM's `LLM`.

    Attributes:
        seeds: Seeds of the prompts that are asked next.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.seeds: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, prompts: list[Any], sampling_params: Any, **options: Any) -> list[Any]:
        """As `LLM.generate`."""
        own_params = []
        for seed in self.seeds:
            params = sampling_params.clone()
            params.seed = seed
            own_params.append(params)
        return self._llm.generate(prompts, sampling_params=own_params, **options)


def _check_device(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cpu":
        raise ValueError(
            "PPOTrainer: vllm_mode='colocate' runs vLLM on the GPUs of the training, and this run is on the CPU. Train "
            "on GPUs, set vllm_mode='server' for a vLLM elsewhere, or leave out rollout_engine."
        )


def _check_ranks(args: PPOConfig, accelerator: Accelerator) -> None:
    num_ranks, group_size = accelerator.num_processes, args.vllm_tensor_parallel_size
    if num_ranks % group_size != 0:
        raise ValueError(
            "PPOTrainer: vllm_tensor_parallel_size must divide the processes of the run, of which as many share one "
            f"vLLM; got {group_size} and {num_ranks} processes."
        )


def _config_of(model_id: str) -> dict[str, Any] | None:
    """What is in a model's config.json, without a look at its code; None if there is none."""
    try:
        return PreTrainedConfig.get_config_dict(model_id)[0] or None
    except OSError:
        return None
