"""`rollout_engine`: what samples, and what is refused by name."""

from types import SimpleNamespace

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from pangu_trl import PPOConfig
from pangu_trl.gptpangu.arguments_gptpangu import CACHE_ARGUMENT
from pangu_trl.ppo.generation.engines import chosen_engine, resolve_engine

ALONE = SimpleNamespace(deepspeed_plugin=None)
ZERO3 = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
SIZES = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def config(tmp_path, **options) -> PPOConfig:
    return PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def llama(**options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **options))


@pytest.mark.parametrize(
    ("options", "launch", "expected"),
    [
        ({}, ALONE, "continuous"),
        ({}, ZERO3, "continuous"),
        ({"ds3_gather_for_generation": False}, ALONE, "continuous"),
        # Every token is gathered by all ranks together.
        ({"ds3_gather_for_generation": False}, ZERO3, "generate"),
        ({"rollout_engine": "generate"}, ALONE, "generate"),
        ({"rollout_engine": "continuous"}, ZERO3, "continuous"),
        # Of the models that the server does not sample from.
        ({"rollout_engine": "vllm"}, ALONE, "continuous"),
    ],
)
def test_auto_is_continuous_where_a_rank_may_stop_by_itself(tmp_path, options, launch, expected):
    assert chosen_engine(config(tmp_path, **options), launch, llama()) == expected


def test_continuous_is_refused_where_all_ranks_sample_every_token_together(tmp_path):
    args = config(tmp_path, rollout_engine="continuous", ds3_gather_for_generation=False)
    with pytest.raises(ValueError, match="rollout_engine='continuous' cannot be: with ds3_gather_for_generation=False"):
        chosen_engine(args, ZERO3, llama())


UNFIT = {
    "MambaForCausalLM keeps something else": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)
    ),
    "FalconH1ForCausalLM keeps something else": lambda: FalconH1ForCausalLM(
        FalconH1Config(**SIZES, num_key_value_heads=2, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=4)
    ),
    "OpenAIGPTLMHeadModel keeps something else": lambda: OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(vocab_size=40, n_layer=1, n_embd=16, n_head=2)
    ),
    "this adapter puts tokens of its own": lambda: get_peft_model(
        llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ),
    "the positions of LlamaForCausalLM hang on the longest": lambda: llama(
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    ),
}


@pytest.mark.parametrize("reason", UNFIT)
def test_models_that_cannot_join_and_leave_answer_by_generate_and_continuous_says_why(tmp_path, reason):
    model = UNFIT[reason]()
    assert chosen_engine(config(tmp_path), ALONE, model) == "generate"
    with pytest.raises(ValueError, match=f"'continuous' cannot be: {reason}.*rollout_engine='auto'"):
        chosen_engine(config(tmp_path, rollout_engine="continuous"), ALONE, model)


class CountsColumns(LlamaForCausalLM):
    """Takes positions and counts columns all the same, so that padding moves a text."""

    # transformers has two names for the cache, by its version.
    def forward(self, input_ids=None, position_ids=None, past_key_values=None, cache=None, **kwargs):
        cache = cache if past_key_values is None else past_key_values
        seen = 0 if cache is None else cache.get_seq_length()
        columns = torch.arange(seen, seen + input_ids.shape[1]).unsqueeze(0)
        chosen = position_ids if cache is None else columns
        return super().forward(input_ids, position_ids=10 * chosen**2, **{CACHE_ARGUMENT: cache}, **kwargs)


class Fails(LlamaForCausalLM):
    def forward(self, input_ids=None, position_ids=None, past_key_values=None, cache=None, **kwargs):
        if past_key_values is not None or cache is not None:
            raise RuntimeError("no such cache")
        return super().forward(input_ids, position_ids=position_ids, **kwargs)


@pytest.mark.parametrize(("kind", "reason"), [(CountsColumns, "gives other figures"), (Fails, "fails .*no such cache")])
def test_a_trial_finds_models_that_give_other_figures_in_a_running_batch(tmp_path, kind, reason):
    torch.manual_seed(0)
    model = kind(LlamaConfig(**SIZES))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
    other, args = llama(), config(tmp_path)
    state = torch.get_rng_state()
    resolve_engine(args, ALONE, [model, other])
    assert torch.equal(torch.get_rng_state(), state), "the rollouts would draw other numbers"
    assert chosen_engine(config(tmp_path), ALONE, model) == "generate"
    assert chosen_engine(config(tmp_path), ALONE, other) == "continuous"
    model.fails_in_running_batch = None
    with pytest.raises(ValueError, match=f"'continuous' cannot be: .*{kind.__name__} {reason}"):
        resolve_engine(config(tmp_path, rollout_engine="continuous"), ALONE, [model])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_engine": "paged"}, "rollout_engine must be one of auto, generate, continuous, vllm; got 'paged'"),
        ({"vllm_group_port": 5}, "vllm_group_port has no effect with rollout_engine='auto'; .* Got 5"),
        (
            {"rollout_engine": "generate", "vllm_server_base_url": "http://a:1"},
            "vllm_server_base_url has no effect with rollout_engine='generate'; set rollout_engine='vllm'",
        ),
        ({"vllm_server_timeout": 1.0}, "vllm_server_timeout has no effect"),
    ],
)
def test_options_without_effect_are_refused_by_name(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)
