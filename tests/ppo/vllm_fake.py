"""A stand-in for vLLM in the training's process: the parts of `LLM` and `SamplingParams` that TRL's class touches.

TRL's class is the real one. The stand-in starts from a folder as vLLM does, but with weights of its own, and samples
from those that it was handed since, so that a wrong, stale or missing weight shows in answers and log-probabilities.
"""

import copy
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

MODULE = "trl.generation.vllm_generation"


@dataclass
class SamplingParams:
    """Those options of vLLM's class that we set."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int
    logprobs: int | None
    stop_token_ids: list[int]
    ignore_eos: bool
    seed: int | None = None

    def clone(self) -> "SamplingParams":
        return copy.deepcopy(self)


class VLLMFake:
    """vLLM in one process.

    Args:
        model: A folder.
        **options: Of `LLM`.

    Attributes:
        options: What it was started with.
        model: Samples.
        calls: What was called, in order; weights that come one after the other are one call.
        received: Tensors of every weight update.
        requests: Prompt and options of every request.
    """

    started: list["VLLMFake"] = []

    def __init__(self, model: str, **options: Any) -> None:
        self.options = options
        # The folder's weights are not to pass for the policy's.
        config = AutoConfig.from_pretrained(model)
        self.model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
        self.model.generation_config = GenerationConfig.from_pretrained(model)
        # As vLLM does in the process that it starts in.
        random.seed(options["seed"])
        np.random.seed(options["seed"])
        torch.manual_seed(options["seed"])
        self.calls: list[str] = []
        self.received: list[dict[str, Tensor]] = []
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self._awake, self._has_stale_cache = {"weights", "kv_cache"}, False
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        VLLMFake.started.append(self)

    def sleep(self, level: int) -> None:
        assert level == 2 and self._awake == {"weights", "kv_cache"}
        assert self.options["enable_sleep_mode"]
        self.calls.append("sleep")
        self._awake = set()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(torch.nan)

    def wake_up(self, tags: list[str]) -> None:
        assert not self._awake & set(tags)
        self.calls.append(f"wake {' '.join(tags)}")
        self._awake |= set(tags)

    @torch.no_grad()
    def load_weights(self, weights: list[tuple[str, Tensor]]) -> None:
        assert "weights" in self._awake
        if self.calls[-1:] != ["weights"]:
            self.calls.append("weights")
            self.received.append({})
        own = dict(self.model.named_parameters())
        for name, tensor in weights:
            assert name not in self.received[-1], "a name was sent twice"
            assert own[name].shape == tensor.shape
            own[name].copy_(tensor)
            self.received[-1][name] = tensor.detach().clone()
        self._has_stale_cache = True

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")
        self._has_stale_cache = False

    def generate(self, prompts: list[dict], sampling_params: Any, use_tqdm: bool) -> list[SimpleNamespace]:
        assert self._awake == {"weights", "kv_cache"} and not self._has_stale_cache and not use_tqdm
        self.calls.append("generate")
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(prompts)
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            tokens = prompt["prompt_token_ids"]
            assert len(tokens) + params.max_tokens <= self.options["max_model_len"]
            self.requests.append((tokens, params))
            answer, logprobs = self.answer(tokens, params)
            completion = SimpleNamespace(token_ids=answer, logprobs=None if params.logprobs is None else logprobs)
            outputs.append(SimpleNamespace(prompt_token_ids=tokens, outputs=[completion]))
        return outputs

    @torch.no_grad()
    def answer(self, prompt: list[int], params: SamplingParams) -> tuple[list[int], list[dict[int, SimpleNamespace]]]:
        """Samples without cache or padding; log-probabilities are processed ones, as TRL asks for."""
        assert (params.n, params.repetition_penalty, params.min_p, params.top_p) == (1, 1.0, 0.0, 1.0)
        assert self.options["logprobs_mode"] == "processed_logprobs"
        generator = None if params.seed is None else torch.Generator().manual_seed(params.seed)
        ends = set(params.stop_token_ids)
        if not params.ignore_eos:
            eos = self.model.generation_config.eos_token_id
            ends |= set(eos if isinstance(eos, list) else [eos])
        answer, logprobs = [], []
        while len(answer) < params.max_tokens and not set(answer[-1:]) & ends:
            logits = self.model(torch.tensor([prompt + answer])).logits[0, -1].float() / params.temperature
            if params.top_k:
                logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            answer.append(token)
            logprobs.append({token: SimpleNamespace(logprob=logits.log_softmax(-1)[token].item(), rank=1)})
        return answer, logprobs


def install(monkeypatch: pytest.MonkeyPatch) -> list[VLLMFake]:
    """Has TRL and us find the stand-in for vLLM, and a GPU; gives the list of all that are started."""
    monkeypatch.setattr(VLLMFake, "started", [])
    monkeypatch.setattr(f"{MODULE}.LLM", VLLMFake, raising=False)
    monkeypatch.setattr(f"{MODULE}.SamplingParams", SamplingParams, raising=False)
    for module in (MODULE, "pangu_trl.ppo.generation.vllm_colocated"):
        monkeypatch.setattr(f"{module}.is_vllm_available", lambda: True)
    monkeypatch.setattr("pangu_trl.ppo.generation.vllm_colocated._check_device", lambda accelerator: None)
    # TRL tells vLLM its rank by variables of the process, which other tests would inherit.
    monkeypatch.setattr(f"{MODULE}.os", SimpleNamespace(environ={}))
    monkeypatch.setattr(f"{MODULE}.ensure_master_addr_port", lambda: None)
    return VLLMFake.started
