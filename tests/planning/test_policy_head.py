"""What the plan counts of PPO's logits: a tile where its trainer computes tiles, otherwise all of them."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
)

from pangu_trl import GPTPanguConfig, PPOConfig
from pangu_trl.planning.launch import Launch
from pangu_trl.planning.policy_head import policy_with_tiles
from pangu_trl.ppo.actor_critic.policy_value import PolicyAndValue
from pangu_trl.ppo.actor_critic.tiled_head import needs_tiles
from pangu_trl.ppo.resolve import resolve_padding

# Of PanGu-alpha 2.6B.
H, V = 2560, 40000
# 4 x 500 answer tokens are 8e7 logits, more than the 2^26 from which PPO computes tiles.
LONG = "per_device_train_batch_size: 4\nmax_completion_length: 500\n"
SMALL = dict(vocab_size=90, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
GEMMA = dict(num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0)


def logits(plan) -> dict[str, int]:
    return {item.name: item.num_bytes for item in plan.items if "tile" in item.name or "whole" in item.name}


@pytest.mark.parametrize(
    ("text", "on_cpu", "expected"),
    [
        # 2,000 tokens of 1,024 columns in bfloat16, and the gradient of the head in float32.
        (LONG, False, 2000 * 1024 * 2 + 4 * V * H),
        # The kernel's seven float32 copies of the tile, where it is made of torch's operations.
        (LONG, True, 2000 * 1024 * (2 + 7 * 4) + 4 * V * H),
        # A frozen head has no gradient.
        (LONG + "use_peft: true", False, 2000 * 1024 * 2),
        # Of 16 x 500 tokens, 4,096 at a time.
        (LONG.replace("4", "16"), False, 4096 * 1024 * 2 + 4 * V * H),
    ],
)
def test_a_tile_is_counted_as_by_hand(plan, text, on_cpu, expected):
    found = plan("ppo", Launch(1, "none", bf16=True, on_cpu=on_cpu), text)
    assert logits(found) == {"tile of logits": expected}


def test_few_logits_are_counted_whole(plan):
    # 2^26 / 40,000 is 1,677.7 tokens.
    launch, text = Launch(1, "none", bf16=True), "per_device_train_batch_size: {}\nmax_completion_length: {}"
    # All of them three times in float32 and once in bfloat16, one place more than tokens.
    whole = {"whole logits and loss": 3 * 560 * V * (3 * 4 + 2)}
    assert logits(plan("ppo", launch, text.format(3, 559))) == whole
    assert logits(plan("ppo", launch, text.format(2, 839))) == {"tile of logits": 1678 * 1024 * 2 + 4 * V * H}


def test_texts_have_a_tile_of_their_own(plan):
    # Texts have up to 1,024 tokens, all but the first predicted: 2 x 1,023 are more than 1,677, 2 x 500 are fewer.
    text = "per_device_train_batch_size: 2\nmax_completion_length: 500\nmax_prompt_length: 524\nptx_data: texts.jsonl"
    assert logits(plan("ppo", Launch(1, "none", bf16=True), text)) == {
        "whole logits and loss": 2 * 501 * V * (3 * 4 + 2),
        "texts: tile of logits": 2046 * 1024 * 2 + 4 * V * H,
    }


@pytest.mark.parametrize(
    ("launch", "text"),
    [
        (Launch(8, "zero3", bf16=True), ""),
        (Launch(8, "fsdp2", bf16=True), ""),
        (Launch(1, "none", bf16=True), "padding_free: false"),
        (Launch(1, "none", bf16=True), "attn_implementation: eager"),
        # Not installed here, and planned all the same.
        (Launch(1, "none", bf16=True), "attn_implementation: flash_attention_2"),
        (Launch(1, "none", bf16=True), "use_peft: true\nlora_target_modules: [lm_head]"),
    ],
    ids=["ZeRO-3", "FSDP2", "padding", "eager", "flash attention", "LoRA on the head"],
)
def test_whole_logits_are_counted_where_the_trainer_computes_no_tiles(plan, launch, text):
    assert logits(plan("ppo", launch, LONG + text)) == {"whole logits and loss": 4 * 501 * V * (3 * 4 + 2)}


@pytest.mark.parametrize("sharding", ["ddp", "zero1", "zero2"])
def test_ranks_that_hold_the_whole_head_compute_tiles(plan, sharding):
    found = plan("ppo", Launch(8, sharding, bf16=True), LONG)
    assert logits(found) == {"tile of logits": 2000 * 1024 * 2 + 4 * V * H}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPTPanguConfig(vocab_size=90, hidden_size=16, num_layers=2, num_heads=2), True),
        (LlamaConfig(**SMALL), True),
        (PhiConfig(**SMALL), True),
        (GPT2Config(vocab_size=90, n_embd=16, n_layer=2, n_head=2), True),
        (MixtralConfig(**SMALL, num_key_value_heads=1), True),
        (CohereConfig(**SMALL, logit_scale=0.3), True),
        (Gemma3TextConfig(**SMALL, **GEMMA), True),
        (Gemma3TextConfig(**SMALL, **GEMMA, sliding_window=8), False),
        (GraniteConfig(**SMALL, logits_scaling=3.0), False),
    ],
    ids=["tied", "untied", "bias", "GPT-2", "experts", "scaled", "softcap", "short window", "logits it divides"],
)
def test_the_plan_decides_as_the_trainer_does(config, expected, tmp_path):
    before = config.to_dict(), config._attn_implementation
    # So many tokens are too many of any model.
    assert needs_tiles(policy_with_tiles(config, None, None, 16), 10**9) is expected
    assert (config.to_dict(), config._attn_implementation) == before
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, max_prompt_length=8, max_completion_length=8)
    resolve_padding(args, PolicyAndValue(model), None, [], tiles=True)
    assert needs_tiles(model, 10**9) is expected


def test_models_that_cannot_be_tried_without_weights_are_counted_whole(plan):
    # OPT's head reads a part of its backbone, past the place where the trial answers.
    config = OPTConfig(
        vocab_size=V, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    )
    found = replace(plan("ppo", Launch(1, "none", bf16=True), LONG), config=config)
    assert logits(found) == {"whole logits and loss": 4 * 501 * V * (3 * 4 + 2)}
