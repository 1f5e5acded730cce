"""Which engine samples the answers."""

import inspect
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pangu_trl.gptpangu.arguments_gptpangu import CACHE_ARGUMENT
from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.padding_free import difference
from pangu_trl.models.score_head import innermost
from pangu_trl.models.sharding import is_sharded, runs_zero3

from ..actor_critic.policy_value import PolicyAndValue
from ..actor_critic.token_logprobs import completion_logprobs
from ..config import PPOConfig
from .continuous import RunningBatch
from .vllm_sampler import VLLMSampler
from .vllm_server import VLLMServer

# Positions that hang on the longest sequence of a batch, which changes as answers join and leave.
ROPE_BY_LENGTH = ("dynamic", "longrope")


def chosen_engine(args: PPOConfig, launch: Any, policy: nn.Module) -> str:
    """What `rollout_engine` comes to for a model in the training's own processes: generate or continuous.

    vLLM samples for the policy alone; where the reference answers, the choice is that of `auto`.

    Args:
        args: Options.
        launch: Knows whether ZeRO-3 runs: an AcceleratorState, or TrainingArguments.
        policy: The model that answers.

    Raises:
        ValueError: `rollout_engine` is continuous, and that cannot be; the message says why.
    """
    if args.rollout_engine == "generate":
        return "generate"
    reason = _reason_of_launch(args, launch) or _reason_of_model(policy)
    if reason is None:
        return "continuous"
    if args.rollout_engine == "continuous":
        raise ValueError(
            f"PPOTrainer: rollout_engine='continuous' cannot be: {reason}. Set rollout_engine='auto' for `generate`."
        )
    return "generate"


def resolve_engine(args: PPOConfig, launch: Any, models: list[nn.Module]) -> None:
    """Has models answer by `generate` that give other figures in a running batch than alone.

    Sharded weights are not tried.

    Raises:
        ValueError: `rollout_engine` is continuous, and the first model, the policy, cannot.
    """
    for model in models:
        if chosen_engine(args, launch, model) == "continuous" and not is_sharded(model):
            innermost(model).fails_in_running_batch = _trial(model)
    chosen_engine(args, launch, models[0])


def vllm_of(
    args: PPOConfig, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, models: PolicyAndValue
) -> VLLMSampler | None:
    """The vLLM that samples the policy's answers, if `rollout_engine` asks for one: a server's, or one that it starts.

    Raises:
        ValueError, ImportError, RuntimeError: It cannot be; the message says why.
    """
    if args.rollout_engine != "vllm":
        return None
    if args.vllm_mode == "server":
        return VLLMServer(args, accelerator, tokenizer, models)
    # Loads vLLM itself.
    from .vllm_colocated import VLLMColocated

    return VLLMColocated(args, accelerator, tokenizer, models)


def _reason_of_launch(args: PPOConfig, launch: Any) -> str | None:
    if runs_zero3(launch) and not args.ds3_gather_for_generation:
        return (
            "with ds3_gather_for_generation=False ZeRO-3 gathers the weights for every token, and all ranks must ask "
            "for as many tokens as the one with the longest answer"
        )
    return None


def _reason_of_model(policy: nn.Module) -> str | None:
    model = innermost(policy)
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    if isinstance(policy, PeftModel) and any(adapter.is_prompt_learning for adapter in policy.peft_config.values()):
        return "this adapter puts tokens of its own before every sequence"
    takes_cache = CACHE_ARGUMENT in inspect.signature(model.forward).parameters
    if not takes_cache or model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        return f"{name} keeps something else than keys and values of all tokens"
    layers = DynamicCache(config=config).layers
    kinds = {type(layer) for layer in layers}
    if not layers or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return f"{name} keeps something else than keys and values of all tokens"
    if DynamicSlidingWindowLayer in kinds and getattr(config, "attention_chunk_size", None) is not None:
        return f"{name} attends within pieces that are counted from the first column of a batch"
    if _rope_types(getattr(config, "rope_parameters", None)) & set(ROPE_BY_LENGTH):
        return f"the positions of {name} hang on the longest sequence of a batch"
    return getattr(model, "fails_in_running_batch", None)


def _rope_types(parameters: Any) -> set[str]:
    """Kinds of rotary embeddings; some models have one for each kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    inner = {kind for value in parameters.values() for kind in _rope_types(value)}
    return inner | {parameters["rope_type"]} if "rope_type" in parameters else inner


def _trial(policy: nn.Module) -> str | None:
    """What a model gets wrong in a running batch of two prompts, in words; None if nothing."""
    prompts = [[1, 2, 3, 1], [1, 3]]
    config = GenerationConfig(
        max_new_tokens=3, do_sample=True, top_k=1, top_p=1.0, temperature=1.0, eos_token_id=[], pad_token_id=0
    )
    answers = torch.zeros(2, 3, dtype=torch.long, device=policy.device)
    device = policy.device

    def sampled() -> torch.Tensor:
        batch = RunningBatch(policy, prompts, config, num_rows=2)
        batch.run()
        answers.copy_(torch.tensor(batch.answers))
        return torch.tensor(batch.logprobs, device=device)

    def learnt() -> torch.Tensor:
        ids = torch.cat([torch.tensor([prompts[0], [0, 0, *prompts[1]]], device=device), answers], dim=1)
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        return completion_logprobs(policy, ids, mask, torch.ones_like(answers, dtype=torch.bool), 1.0)[0]

    with torch.no_grad(), evaluation_mode(policy), torch.random.fork_rng():
        try:
            found = sampled()
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
            return f"{type(policy).__name__} fails in a running batch with {error!r}"
        reason = difference(learnt, found)
    return None if reason is None else f"in a running batch {type(policy).__name__} gives other figures: {reason}"
