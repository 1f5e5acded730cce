"""Prefix sharing: scores and gradients of the plain path, in less computation."""

import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AttentionInterface,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from pangu_trl import GPTPanguConfig
from pangu_trl.data.collators import PackedRankingCollator, RankingCollator
from pangu_trl.models.packed_attention import PACKED_SDPA, PackedLayout, packed_attention
from pangu_trl.reward.prefix_sharing import enable_prefix_sharing, score_packed_answers

COMMON = dict(vocab_size=40, pad_token_id=0, num_labels=1, max_position_embeddings=64, initializer_range=0.3)
SIZE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4)
CONFIGS = {
    "gptpangu": GPTPanguConfig(hidden_size=16, num_layers=3, num_heads=4, **COMMON),
    "gpt2": GPT2Config(**COMMON | dict(n_embd=16, n_layer=3, n_head=4)),
    "llama": LlamaConfig(**COMMON | SIZE),
    # Fewer key heads than query heads.
    "qwen2": Qwen2Config(**COMMON | SIZE | dict(num_key_value_heads=2)),
}
# K = 2, 3, 4 and answers of different lengths, one of them a single token.
LENGTHS = [(5, [3, 7]), (1, [4, 1, 6]), (9, [2, 2, 5, 8]), (3, [6, 4])]


def make_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(copy.deepcopy(config))
    torch.nn.init.normal_(model.score.weight)
    return model.eval()


@pytest.fixture(scope="module")
def examples() -> list[dict]:
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(1, COMMON["vocab_size"], (length,), generator=generator).tolist()

    return [
        {
            "prompt_input_ids": draw(prompt),
            "response_input_ids": [draw(length) for length in answers],
            "scores": [float(k) for k in range(len(answers))],
        }
        for prompt, answers in LENGTHS
    ]


def plain_scores(model: PreTrainedModel, examples: list[dict]) -> torch.Tensor:
    batch = RankingCollator(pad_token_id=0)(examples)
    mask = batch["answer_mask"]
    return model(
        input_ids=batch["input_ids"][mask], attention_mask=batch["attention_mask"][mask], use_cache=False
    ).logits[:, 0]


def shared_scores(model: torch.nn.Module, examples: list[dict], max_row_tokens: int) -> torch.Tensor:
    reward_model = model.get_base_model() if hasattr(model, "get_base_model") else model
    enable_prefix_sharing(reward_model, max_length=64)
    batch = PackedRankingCollator(pad_token_id=0, max_row_tokens=max_row_tokens, pad_to_multiple_of=4)(examples)
    return score_packed_answers(model, reward_model, batch)


def gradients(model: torch.nn.Module, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    # Weights of both signs, so that the answers' gradients do not all point one way.
    (scores * torch.linspace(-1, 1.5, len(scores))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # Biases of keys have no gradient but rounding, so a norm of 0 is measured against the largest.
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * largest, name


@pytest.mark.parametrize("max_row_tokens", [1, 30, 1000], ids=["a row each", "two rows", "one row"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_scores_and_gradients_equal_those_of_whole_sequences(architecture, max_row_tokens, examples):
    model = make_model(CONFIGS[architecture])
    expected = plain_scores(model, examples)
    expected_gradients = gradients(model, expected)
    scores = shared_scores(model, examples, max_row_tokens)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1
    assert_equal_gradients(gradients(model, scores), expected_gradients)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not re-entrant", "re-entrant"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_gradients_are_the_same_with_lora_under_gradient_checkpointing(
    architecture, use_reentrant, examples, monkeypatch
):
    lora = LoraConfig(r=4, task_type="SEQ_CLS", target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(2)
    model = get_peft_model(make_model(CONFIGS[architecture]), lora)
    expected_gradients = gradients(model, plain_scores(model, examples))
    # Checkpointing is active in training mode only; the configurations have no dropout that would tell.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []

    # With its signature, by which GPTPangu knows what it may be handed.
    @functools.wraps(packed_attention)
    def count_and_attend(*args, **kwargs):
        calls.append(1)
        return packed_attention(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED_SDPA, count_and_attend)
    found = gradients(model, shared_scores(model, examples, 30))
    # Three layers, each tried once before the training, and computed once more in the backward pass.
    assert len(calls) == 9
    assert any("lora_A" in name for name in found) and any("score" in name for name in found)
    assert_equal_gradients(found, expected_gradients)


def test_without_a_layout_the_attention_is_sdpa_with_padding_on_either_side(examples):
    model = make_model(CONFIGS["llama"])
    input_ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    inputs = dict(input_ids=input_ids, attention_mask=(input_ids != 0).long())
    expected = model(**inputs).logits
    enable_prefix_sharing(model, max_length=64)
    assert model.config._attn_implementation == PACKED_SDPA
    torch.testing.assert_close(model(**inputs).logits, expected)


def test_the_block_mask_shows_each_answer_its_prompt_and_itself():
    # One row of 8 tokens: prompt 2 and answers 2, 1; prompt 1 and answer 1; one token of padding.
    layout = PackedLayout((((2, 2, 1), (1, 1)),), 8)
    mask = layout.block_mask(torch.device("cpu"))
    query, key = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    zero = torch.tensor(0)
    visible = mask.mask_mod(zero, zero, query, key).long().tolist()
    assert visible == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.slow
def test_flex_attention_gives_the_same_scores(examples):
    # Compiled for these very shapes: for any shape, which it tries after another test, PyTorch writes wrong C++ here.
    torch.compiler.reset()
    model = make_model(CONFIGS["llama"])
    with torch.no_grad():
        expected = plain_scores(model, examples)
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(shared_scores(model, examples, 30), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MistralConfig(**COMMON | SIZE | dict(sliding_window=32)),
            "max_length must be at most the sliding window of 32",
        ),
        (LlamaConfig(**COMMON | SIZE, attn_implementation="eager"), "sdpa or flex_attention; .* has eager"),
    ],
    ids=["sliding window", "eager"],
)
def test_models_that_cannot_share_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        enable_prefix_sharing(make_model(config), max_length=64)
