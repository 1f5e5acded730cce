"""`rollout_engine`: what samples, and what is refused by name."""

from types import SimpleNamespace

import pytest

from pangu_trl import PPOConfig
from pangu_trl.ppo.generation.engines import chosen_engine

ALONE = SimpleNamespace(deepspeed_plugin=None)
ZERO3 = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))


def config(tmp_path, **options) -> PPOConfig:
    return PPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


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
    assert chosen_engine(config(tmp_path, **options), launch) == expected


def test_continuous_is_refused_where_all_ranks_sample_every_token_together(tmp_path):
    args = config(tmp_path, rollout_engine="continuous", ds3_gather_for_generation=False)
    with pytest.raises(ValueError, match="rollout_engine='continuous' cannot be: with ds3_gather_for_generation=False"):
        chosen_engine(args, ZERO3)


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
