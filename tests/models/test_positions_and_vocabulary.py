"""Positions and pads as each model has them, and tokenizers that have more or fewer tokens than the embedding rows."""

import copy

import pytest
import torch
from datasets import Dataset
from tiny_llama import build_policy, build_reward_model, build_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM
from transformers import models as families

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer, PPOConfig, PPOTrainer
from pangu_trl.answers.sampling import SamplingConfig, sample_answers
from pangu_trl.models.loading import load_with_adapter
from pangu_trl.models.modes import position_limit
from pangu_trl.models.score_head import padded_on_the_right
from pangu_trl.models.sequence_scores import sequence_scores
from pangu_trl.models.vocabulary import check_vocabulary

SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
# Those that count positions from the pad token's, those that take no positions, and those that count from 0.
READERS = {
    "roberta": (families.roberta.RobertaConfig, SIZES),
    "xlm-roberta": (families.xlm_roberta.XLMRobertaConfig, SIZES),
    "camembert": (families.camembert.CamembertConfig, SIZES),
    "mpnet": (families.mpnet.MPNetConfig, SIZES),
    "bert": (families.bert.BertConfig, SIZES),
    "electra": (families.electra.ElectraConfig, SIZES | dict(embedding_size=16)),
    "deberta": (
        families.deberta_v2.DebertaV2Config,
        SIZES | dict(relative_attention=True, pos_att_type=["p2c", "c2p"]),
    ),
    "distilbert": (families.distilbert.DistilBertConfig, dict(dim=16, hidden_dim=32, n_layers=2, n_heads=2)),
    "bloom": (families.bloom.BloomConfig, dict(hidden_size=16, n_layer=2, n_head=2)),
    "gpt2": (families.gpt2.GPT2Config, dict(n_embd=16, n_layer=2, n_head=2, n_positions=40)),
    "opt": (
        families.opt.OPTConfig,
        dict(hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16),
    ),
    "gptj": (families.gptj.GPTJConfig, dict(n_embd=16, n_layer=2, n_head=2, rotary_dim=4)),
}
TEXTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]
PAD = 1


def padded(texts: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, texts)) + 2
    rows, masks = [], []
    for ids in texts:
        gap = width - len(ids)
        left, right = (gap, 0) if side == "left" else (0, gap)
        rows.append([PAD] * left + ids + [PAD] * right)
        masks.append([0] * left + [1] * len(ids) + [0] * right)
    return torch.tensor(rows), torch.tensor(masks)


@pytest.mark.parametrize("name", READERS)
def test_a_score_is_the_models_own_on_either_side_of_the_padding(name):
    config_class, sizes = READERS[name]
    torch.manual_seed(0)
    config = config_class(vocab_size=40, pad_token_id=PAD, num_labels=1, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.4)
        alone = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in TEXTS])
        for side in ("left", "right"):
            torch.testing.assert_close(sequence_scores(model, *padded(TEXTS, side)), alone, atol=1e-5, rtol=1e-5)
    assert len(set(alone.tolist())) == 3


def test_models_that_count_from_the_pad_token_take_fewer_tokens():
    for config_class, limit in ((families.roberta.RobertaConfig, 38), (families.bert.BertConfig, 40)):
        config = config_class(vocab_size=40, pad_token_id=PAD, max_position_embeddings=40, **SIZES)
        assert position_limit(AutoModelForSequenceClassification.from_config(config)) == limit


def test_texts_move_to_the_left_with_their_masks():
    ids, mask = padded_on_the_right(*padded([[5, 1, 6], [7, 8, 9, 10]], "left"))
    assert ids.tolist() == [[5, 1, 6, 1, 1, 1], [7, 8, 9, 10, 1, 1]]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]


def with_added_pad(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def test_a_pad_token_beyond_the_embedding_is_refused_with_the_cure(tmp_path):
    tokenizer = build_tokenizer()
    size = len(tokenizer)
    added = with_added_pad(tokenizer)
    message = rf"1 tokens .* beyond the {size} rows .* '\[PAD\]' \({size}\).*resize_token_embeddings\({size + 1}\)"
    policy, reward_model = build_policy(tokenizer), build_reward_model(tokenizer)
    policy.save_pretrained(tmp_path / "model")
    added.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load_with_adapter(AutoModelForCausalLM, str(tmp_path / "model"))
    with pytest.raises(ValueError, match=message):
        sample_answers(policy, added, ["a"], 1, SamplingConfig(2), batch_size=1, seed=0)
    ranking = Dataset.from_list([{"prompt": "a", "responses": ["b", "c"], "scores": [1.0, 0.0]}])
    options = dict(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    reward_args = KWiseRewardConfig(bf16=False, **options)
    with pytest.raises(ValueError, match=f"KWiseRewardTrainer: {message}"):
        KWiseRewardTrainer(copy.deepcopy(reward_model), reward_args, train_dataset=ranking, processing_class=added)
    prompts = Dataset.from_list([{"prompt": "a"}] * 8)
    args = PPOConfig(max_prompt_length=8, max_completion_length=8, **options)
    for reader in ("model", "reward_model"):
        models = {"model": policy, "reward_model": reward_model}
        other = "reward_model" if reader == "model" else "model"
        models[other] = copy.deepcopy(models[other])
        models[other].resize_token_embeddings(len(added))
        with pytest.raises(ValueError, match=f"PPOTrainer: .*{message}"):
            PPOTrainer(args=args, train_dataset=prompts, processing_class=added, **models)
    policy.resize_token_embeddings(len(added))
    check_vocabulary(policy, added, "model")


def test_special_tokens_without_a_role_may_lie_beyond_the_embedding():
    tokenizer = build_tokenizer()
    policy = build_policy(tokenizer)
    # As Gemma 3's models of text alone have it.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_vocabulary(policy, tokenizer, "model")
    tokenizer.add_tokens(["word"])
    with pytest.raises(ValueError, match="as 'word'"):
        check_vocabulary(policy, tokenizer, "model")


def padded_policy(tokenizer, extra: int) -> LlamaForCausalLM:
    """A policy whose rows beyond the tokenizer are by far the likeliest."""
    policy = build_policy(tokenizer, vocab_size=len(tokenizer) + extra)
    with torch.no_grad():
        policy.lm_head.weight[len(tokenizer) :] = 0
    policy.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer) + extra))
    with torch.no_grad():
        policy.lm_head.bias[len(tokenizer) :] = 5.0
    return policy


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_never_draws_a_row_that_pads_the_embedding(temperature):
    tokenizer = build_tokenizer()
    config = SamplingConfig(max_new_tokens=6, temperature=temperature)
    policy = padded_policy(tokenizer, 16)
    seen = []
    policy.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].max()), with_kwargs=True
    )
    sample_answers(policy, tokenizer, ["a", "bc"], 1, config, batch_size=2, seed=0)
    assert len(seen) > 1 and max(seen) < len(tokenizer)


def test_embeddings_padded_to_other_sizes_train_on_the_tokens_that_all_know(tmp_path):
    tokenizer = build_tokenizer()
    prompts = Dataset.from_list([{"prompt": text} for text in ("why ?", "the cat", "hello", "a")])
    args = PPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_rollout_batches=2,
        num_ppo_epochs=1,
        max_prompt_length=16,
        max_completion_length=8,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    policy = padded_policy(tokenizer, 16)
    alone = copy.deepcopy(policy)
    reward_model = build_reward_model(tokenizer, vocab_size=len(tokenizer) + 8)
    trainer = PPOTrainer(
        policy, args, reward_model, train_dataset=prompts, processing_class=tokenizer, ref_model=copy.deepcopy(policy)
    )
    trainer.train()
    rollout = trainer.passes.rollout
    assert rollout.input_ids.max() < len(tokenizer)
    logged = trainer.state.log_history[0]
    assert logged["kl/mean"] == 0.0 and logged["policy/sampling_gap"] < 1e-5
    # One answer by itself: the distribution is over the known tokens alone.
    ids, num_tokens = rollout.input_ids[0, rollout.attention_mask[0].argmax() :], rollout.completion_mask[0].sum()
    ids = ids[: rollout.attention_mask[0].sum()]
    with torch.no_grad():
        logprobs = alone(input_ids=ids[None]).logits[0, :-1, : len(tokenizer)].log_softmax(dim=-1)
    expected = logprobs.gather(1, ids[1:, None]).squeeze(1)[-num_tokens:]
    torch.testing.assert_close(rollout.logprobs[0, :num_tokens], expected)


def test_a_model_that_says_it_has_no_limit_has_none():
    assert position_limit(families.xlnet.XLNetConfig()) is None
    assert position_limit(families.bert.BertConfig(max_position_embeddings=7)) == 7
