"""Several rewards, rewards that read other tokens, and models whose rewards or values are no numbers."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from pangu_trl.ppo.reward_sources import FunctionReward, TextModelReward, reward_sources
from pangu_trl.ppo.rollout import Rollout


@pytest.fixture
def byte_tokenizer():
    """Another tokenizer than the policy's: one token per byte of UTF-8."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": "<nothing>"})
    return tokenizer


@pytest.fixture
def byte_reward_model(byte_tokenizer):
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=len(byte_tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=256,
        num_labels=1,
        pad_token_id=byte_tokenizer.pad_token_id,
    )
    return GPT2ForSequenceClassification(config).eval()


def length_reward(prompts, completions, **columns):
    return [float(len(completion)) for completion in completions]


def ten(prompts, completions, **columns):
    return [10.0] * len(prompts)


def test_several_rewards_add_up_by_their_weights_and_are_logged_apart(make_trainer, reward_model):
    models = dict(reward_model=[reward_model, length_reward, ten])
    trainer = make_trainer(models=models, reward_weights=[1.0, 0.5, -0.1], max_steps=1)
    trainer.train()
    rollout = trainer.passes.rollout
    own, lengths, tens = rollout.source_scores.T
    assert tens.tolist() == [10.0] * 4
    torch.testing.assert_close(rollout.scores, own + 0.5 * lengths - 1.0)
    logged = next(entry for entry in trainer.state.log_history if "reward/mean" in entry)
    assert logged["reward/ten"] == 10.0
    assert logged["reward/length_reward"] == pytest.approx(lengths.mean().item())
    assert logged["reward/model"] == pytest.approx(own.mean().item(), rel=1e-5)


def test_a_reward_model_with_another_tokenizer_scores_the_texts_anew(
    make_trainer, byte_reward_model, byte_tokenizer, reward_model, tokenizer
):
    models = dict(
        reward_model=copy.deepcopy(byte_reward_model),
        reward_processing_class=byte_tokenizer,
        value_model=copy.deepcopy(reward_model),
    )
    trainer = make_trainer(models=models, max_steps=1)
    trainer.train()
    rollout = trainer.passes.rollout
    width = rollout.completion_width
    for row, answer in enumerate(rollout.completions()):
        prompt_ids = rollout.input_ids[row, :-width][rollout.attention_mask[row, :-width] == 1]
        prompt = next(
            example["prompt"] for example in trainer.train_dataset if example["prompt_input_ids"] == prompt_ids.tolist()
        )
        text = prompt + tokenizer.decode(answer, skip_special_tokens=True)
        ids = torch.tensor([list(byte_tokenizer(text)["input_ids"])])
        if rollout.ended[row]:
            ids = torch.cat([ids, torch.tensor([[byte_tokenizer.eos_token_id]])], dim=1)
        with torch.no_grad():
            expected = byte_reward_model.score(byte_reward_model.transformer(ids).last_hidden_state)[0, -1, 0]
        torch.testing.assert_close(rollout.scores[row], expected, atol=1e-5, rtol=1e-5)


def test_an_answer_without_text_is_scored_by_its_end(byte_reward_model, byte_tokenizer, tokenizer):
    eos = tokenizer.eos_token_id
    rollout = Rollout(
        input_ids=torch.tensor([[20, 21, eos]]),
        attention_mask=torch.ones(1, 3, dtype=torch.long),
        completion_mask=torch.tensor([[True]]),
        ended=torch.tensor([True]),
    )
    source = TextModelReward("model", 1.0, byte_reward_model, byte_tokenizer, tokenizer)
    score = source.score(None, rollout, [{"prompt": "ab"}], batch_size=1)
    ids = torch.tensor([[*byte_tokenizer("ab")["input_ids"], byte_tokenizer.eos_token_id]])
    with torch.no_grad():
        expected = byte_reward_model.score(byte_reward_model.transformer(ids).last_hidden_state)[0, -1]
    torch.testing.assert_close(score, expected)


def test_rewards_tokenizers_and_weights_must_be_as_many():
    with pytest.raises(ValueError, match="got 2 rewards, 2 in reward_processing_class, 1 in reward_weights"):
        reward_sources([ten, length_reward], None, [1.0], None)
    with pytest.raises(ValueError, match="must be a model, a function or an adapter's folder; got 3"):
        reward_sources(3, None, None, None)


def test_a_reward_function_that_loses_an_answer_is_named(make_trainer, reward_model):
    models = dict(reward_model=[ten, lambda prompts, completions, **_: [1.0]], value_model=reward_model)
    with pytest.raises(ValueError, match="judge <lambda> must return a list of 4 numbers for 4 answers; got 1"):
        make_trainer(models=models).train()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_names_its_reward_prompt_and_answer(make_trainer, reward_model, bad):
    models = dict(reward_model=[length_reward, lambda prompts, completions, **_: [bad] * 4], value_model=reward_model)
    trainer = make_trainer(models=models)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(
        ValueError, match=rf"judge <lambda> must return finite .*; got {bad} for the answer '.*'; the prompt is '"
    ):
        trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("name, who", [("value_model", "critic"), ("ref_model", "reference")])
def test_a_model_that_computes_no_numbers_is_named_with_prompt_and_answer(
    make_trainer, policy, reward_model, name, who
):
    models = dict(value_model=copy.deepcopy(reward_model), ref_model=copy.deepcopy(policy))
    with torch.no_grad():
        models[name].transformer.ln_f.bias[0] = float("nan")
    trainer = make_trainer(models=models)
    before = {name: tensor.clone() for name, tensor in trainer.model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=rf"The {who}.* in 4 of 4 answers; the first is to prompt '.*' and answer '"):
        trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.policy.state_dict().items())


def test_a_reward_that_changes_what_it_gets_changes_nothing_for_others(tokenizer):
    prompt = [{"role": "user", "content": "why ?"}]
    example = {"prompt": prompt, "meta": {"level": 1}}
    rollout = Rollout.from_answers([[20]], [[21, 22]], [tokenizer.eos_token_id], 0, torch.device("cpu"))
    seen = []

    def spoils(prompts, completions, meta, **columns):
        seen.append(copy.deepcopy((prompts, completions, meta)))
        prompts[0][0]["content"] = completions[0][0]["content"] = "spoilt"
        meta[0]["level"] = 2
        return [1.0]

    for _ in range(2):
        FunctionReward("spoils", 1.0, spoils, tokenizer).score(None, rollout, [example], batch_size=1)
    assert seen[0] == seen[1] and seen[0][0] == [[{"role": "user", "content": "why ?"}]]
    assert example == {"prompt": [{"role": "user", "content": "why ?"}], "meta": {"level": 1}}


def test_a_reward_model_that_could_not_read_the_answers_is_refused_before_any_is_sampled(
    make_trainer, byte_reward_model, byte_tokenizer, prompts
):
    def make(tokenizer, **models):
        models |= dict(reward_model=byte_reward_model, reward_processing_class=tokenizer)
        return make_trainer("value head", models=models)

    without_end, without_pad = copy.deepcopy(byte_tokenizer), copy.deepcopy(byte_tokenizer)
    without_end.eos_token, without_end.sep_token = None, "<end>"
    with pytest.raises(ValueError, match="reward_processing_class must have an eos_token.* eos_token = '<end>'"):
        make(without_end)
    without_pad.pad_token = None
    with pytest.raises(ValueError, match="reward_processing_class must have a pad_token"):
        make(without_pad)
    chats = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    with pytest.raises(ValueError, match="(?s)reward_processing_class cannot encode the first prompt: .*chat template"):
        make(byte_tokenizer, train_dataset=chats, eval_dataset=None)


def test_an_answer_that_is_too_long_for_a_reward_model_with_other_tokens_is_named(
    make_trainer, byte_reward_model, byte_tokenizer
):
    byte_reward_model.config.n_positions = 8
    models = dict(reward_model=byte_reward_model, reward_processing_class=byte_tokenizer)
    with pytest.raises(ValueError, match=r"in its own tokens prompt and answer have \d+, and the reward model takes 8"):
        make_trainer("value head", models=models).train()
