"""Reward-model scores: the head at the end of sequence, whatever the batch; and only from trained heads."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pangu_trl.models.reward_model import ScoringError, load_reward_model, score_responses

TOKENS = ["<pad>", "</s>", "<unk>", *"abcdefgh?你好吗很"]
EOS = TOKENS.index("</s>")
PROMPTS = ["a", "你好吗?", "abcdefgh", "hh", "你"]
RESPONSES = ["bcd", "很好", "a", "", "abcdefghabcdefgh"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def gpt2_config() -> GPT2Config:
    return GPT2Config(
        vocab_size=len(TOKENS), n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, pad_token_id=0
    )


def llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        pad_token_id=0,
    )


def reward_model(config: GPT2Config | LlamaConfig, num_labels: int = 1) -> PreTrainedModel:
    torch.manual_seed(0)
    config.num_labels = num_labels
    return AutoModelForSequenceClassification.from_config(config).eval()


def token_ids(text: str) -> list[int]:
    return [TOKENS.index(character) for character in text]


@torch.no_grad()
def scores_one_by_one(model: PreTrainedModel) -> list[float]:
    scores = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        input_ids = torch.tensor([token_ids(prompt) + token_ids(response) + [EOS]])
        last_hidden_state = model.base_model(input_ids).last_hidden_state[0, -1]
        scores.append((model.score.weight[0] @ last_hidden_state).item())
    return scores


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("pad_token_id", [0, EOS], ids=["pad", "eos pads"])
@pytest.mark.parametrize("config", [gpt2_config(), llama_config()], ids=["gpt2", "llama"])
def test_scores_equal_the_head_at_eos_of_each_answer_alone_whatever_the_batch(
    tokenizer, config, pad_token_id, batch_size
):
    model = reward_model(config)
    model.config.pad_token_id = pad_token_id
    scores = score_responses(model, tokenizer, PROMPTS, RESPONSES, batch_size)
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(scores_one_by_one(model)), atol=1e-5, rtol=1e-5)
    assert max(scores) - min(scores) > 0.1


def test_dropout_is_off_while_scoring_and_every_module_gets_its_mode_back(tokenizer):
    model = reward_model(gpt2_config())
    expected = score_responses(model, tokenizer, PROMPTS, RESPONSES, 5)
    model.train()
    model.transformer.drop.eval()
    assert score_responses(model, tokenizer, PROMPTS, RESPONSES, 5) == expected
    assert model.training
    assert not model.transformer.drop.training


def test_a_response_that_is_too_long_is_refused_with_its_index(tokenizer):
    # 10 + 21 tokens and eos fill the 32 positions; one more does not fit.
    prompts, responses = ["a" * 10, "a" * 10], ["b" * 21, "b" * 22]
    assert len(score_responses(reward_model(gpt2_config()), tokenizer, prompts[:1], responses[:1], 1)) == 1
    with pytest.raises(ScoringError, match="have 33 tokens, the reward model takes 32") as error:
        score_responses(reward_model(gpt2_config()), tokenizer, prompts, responses, 1)
    assert error.value.index == 1


def test_a_prompt_that_cannot_be_encoded_is_refused_with_its_index(tokenizer):
    with pytest.raises(ScoringError, match="the prompt must give at least one token") as error:
        score_responses(reward_model(gpt2_config()), tokenizer, ["a", ""], ["b", "b"], 1)
    assert error.value.index == 1


def test_models_that_are_no_reward_models_are_refused(tokenizer):
    with pytest.raises(ValueError, match="this gpt2 model has num_labels 2"):
        score_responses(reward_model(gpt2_config(), num_labels=2), tokenizer, ["a"], ["b"], 1)
    without_pad = reward_model(gpt2_config())
    without_pad.config.pad_token_id = None
    with pytest.raises(ValueError, match="no 'pad_token_id'"):
        score_responses(without_pad, tokenizer, ["a"], ["b"], 1)


def test_each_response_needs_its_prompt(tokenizer):
    with pytest.raises(ValueError, match="got 1 prompts and 2 responses"):
        score_responses(reward_model(gpt2_config()), tokenizer, ["a"], ["b", "c"], 1)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_saved_reward_model_loads_with_its_tokenizer(tokenizer, tmp_path):
    saved = reward_model(llama_config())
    model, loaded_tokenizer = load_reward_model(save(saved, tokenizer, tmp_path))
    scores = score_responses(model, loaded_tokenizer, PROMPTS, RESPONSES, 2)
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(scores_one_by_one(saved)), atol=1e-5, rtol=1e-5)


def test_a_language_model_is_refused_as_a_reward_model(tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_config(llama_config())
    folder = save(model, tokenizer, tmp_path / "whole")
    with pytest.raises(ValueError, match=r"whole: a language model \(LlamaForCausalLM\), not a reward model"):
        load_reward_model(folder)
    model.name_or_path = folder
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    folder = save(adapted, tokenizer, tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"adapter: a language model \(an adapter of type CAUSAL_LM\), not a reward"):
        load_reward_model(folder)


def test_a_classifier_of_two_labels_is_refused_as_a_reward_model(tokenizer, tmp_path):
    folder = save(reward_model(llama_config(), num_labels=2), tokenizer, tmp_path)
    with pytest.raises(ValueError, match=f"^{folder}: a reward model has num_labels 1; this model has 2"):
        load_reward_model(folder)


def test_a_folder_without_the_weights_of_the_score_head_is_refused(tokenizer, tmp_path):
    config = llama_config()
    config.num_labels = 1
    folder = save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"hold no weights for score\.weight"):
        load_reward_model(folder)


@pytest.mark.parametrize(
    ("saves_head", "base_pad_token_id"),
    [(True, None), (True, EOS), (False, None)],
    ids=["base without pad", "base with another pad", "no head"],
)
def test_an_adapter_needs_its_score_head_and_finds_its_base(tokenizer, tmp_path, saves_head, base_pad_token_id):
    torch.manual_seed(0)
    config = llama_config()
    # As in a language model's folder: only the adapter's tokenizer knows what padded in reward training.
    config.pad_token_id = base_pad_token_id
    base = save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"] if saves_head else None)
    adapted = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    folder = save(adapted, tokenizer, tmp_path / "adapter")
    if not saves_head:
        with pytest.raises(ValueError, match=r"hold no weights for score\.weight"):
            load_reward_model(folder)
        return
    adapted.config.pad_token_id = 0
    expected = score_responses(adapted, tokenizer, PROMPTS, RESPONSES, 2)
    loaded, loaded_tokenizer = load_reward_model(folder)
    assert score_responses(loaded, loaded_tokenizer, PROMPTS, RESPONSES, 2) == pytest.approx(expected, abs=1e-5)
