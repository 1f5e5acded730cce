"""Rewards without padding: losses, gradients and figures of padded batches, from real tokens alone."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from pangu_trl import KWiseRewardConfig
from pangu_trl.models.padding_free import is_padding_free

SMALL = dict(vocab_size=300, num_labels=1, pad_token_id=0, max_position_embeddings=128)
LLAMA = dict(SMALL, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
OBJECTIVES = {
    "pairwise": dict(center_rewards_coefficient=0.1, margin_coefficient=0.5, label_smoothing=0.1),
    "plackett_luce": dict(loss_type="plackett_luce", sum_to_zero_coefficient=0.2),
    "tokenwise": dict(loss_type="tokenwise"),
    "language model": dict(lm_coefficient=0.5),
    "tokenwise, language model": dict(loss_type="tokenwise", lm_coefficient=0.5),
}


def gpt2() -> GPT2ForSequenceClassification:
    return GPT2ForSequenceClassification(GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3))


def llama(**changes) -> LlamaForSequenceClassification:
    # Tied, as the language-model loss asks for.
    return LlamaForSequenceClassification(
        LlamaConfig(**LLAMA, initializer_range=0.3, tie_word_embeddings=True, **changes)
    )


def loss_and_gradients(trainer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of the whole set as one batch, in training mode; dropout is off."""
    model = trainer.model.train()
    batch = trainer.data_collator(list(trainer.train_dataset))
    model.zero_grad()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def tokens_computed(trainer, run) -> int:
    """Tokens that the word embedding of the trainer's model meets while `run()` runs."""
    seen = []
    embedding = trainer.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    run()
    handle.remove()
    return sum(seen)


def num_real_tokens(dataset: Dataset) -> int:
    return sum(len(row["prompt_input_ids"]) + len(answer) for row in dataset for answer in row["response_input_ids"])


def assert_equal(found: tuple, expected: tuple) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.norm() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * (gradient.norm() + largest), name


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("make", [None, gpt2, llama], ids=["gptpangu", "gpt2", "llama"])
def test_losses_and_gradients_are_those_of_padded_batches(make_trainer, reward_model, make, objective):
    torch.manual_seed(3)
    model = reward_model if make is None else make()
    trainers = [
        make_trainer(folder=f"{free}", model=copy.deepcopy(model), padding_free=free, **OBJECTIVES[objective])
        for free in (True, False)
    ]
    assert [is_padding_free(trainer.model) for trainer in trainers] == [True, False]
    free, padded = map(loss_and_gradients, trainers)
    assert padded[0] > 0.1
    assert_equal(free, padded)


def test_attributes_are_learnt_alike(make_trainer, reward_model, tiny_config, rankings):
    lengths = [[float(place) for place in range(len(scores))] for scores in rankings["scores"]]
    judged = rankings.add_column("first", rankings["scores"]).add_column("second", lengths)
    config = copy.deepcopy(tiny_config)
    config.num_labels = 2
    torch.manual_seed(5)
    model = type(reward_model)(config)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    options = dict(loss_type="regression", attributes=["first", "second"], attribute_weights=[1.0, -0.5])
    trainers = [
        make_trainer(judged, f"{free}", copy.deepcopy(model), judged, padding_free=free, **options)
        for free in (True, False)
    ]
    assert is_padding_free(trainers[0].model)
    assert_equal(*map(loss_and_gradients, trainers))
    found, expected = (trainer.evaluate() for trainer in trainers)
    assert found["eval_reward_std"] == pytest.approx(expected["eval_reward_std"], abs=1e-5)


def test_only_real_tokens_are_computed_where_the_model_can(make_trainer):
    trainer, padded = make_trainer(), make_trainer(folder="padded", padding_free=False)
    real = num_real_tokens(trainer.train_dataset)
    assert tokens_computed(trainer, trainer.train) <= 1.05 * real
    assert tokens_computed(trainer, trainer.evaluate) <= 1.05 * real
    assert tokens_computed(padded, padded.train) > 1.3 * real
    found, expected = (each.state.log_history[0]["loss"] for each in (trainer, padded))
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_tokenwise_loss_computes_what_it_compares_and_no_more(make_trainer):
    trainer = make_trainer(loss_type="tokenwise")
    compared = sum(
        len(row["response_input_ids"]) * (len(row["prompt_input_ids"]) + max(map(len, row["response_input_ids"])))
        for row in trainer.train_dataset
    )
    assert tokens_computed(trainer, trainer.train) == compared


def bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(**SMALL, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    )


def bloom() -> BloomForSequenceClassification:
    return BloomForSequenceClassification(
        BloomConfig(vocab_size=300, num_labels=1, pad_token_id=0, hidden_size=16, n_layer=1, n_head=2)
    )


class DropsTheLayout(LlamaForSequenceClassification):
    """Takes arguments for its attention, and hands none on."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, packed_layout=None, **kwargs):
        if packed_layout is not None:
            # transformers would see packed sequences by positions that restart.
            attention_mask = position_ids = None
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (bert, "BertForSequenceClassification has none"),
        (bloom, "BloomForSequenceClassification takes no position_ids"),
        (lambda: llama(attn_implementation="eager"), "LlamaForSequenceClassification has eager"),
        (lambda: DropsTheLayout(LlamaConfig(**LLAMA, initializer_range=0.3)), "its figures differ by"),
    ],
    ids=["no score head", "no positions", "eager", "layout dropped"],
)
def test_a_model_that_cannot_keeps_its_padding_or_is_refused(make_trainer, make, reason, caplog):
    torch.manual_seed(0)
    model = make()
    implementation = model.config._attn_implementation
    with caplog.at_level("INFO", logger="pangu_trl"):
        trainer = make_trainer(model=model)
    assert "Answers are scored and learnt from with padding" in caplog.text and reason in caplog.text
    assert not is_padding_free(model) and model.config._attn_implementation == implementation
    assert math.isfinite(trainer.train().training_loss)
    with pytest.raises(ValueError, match=f"KWiseRewardTrainer: padding_free: .*{reason}"):
        make_trainer(model=make(), padding_free=True)


def test_padding_that_is_asked_for_stays(make_trainer, tmp_path):
    assert not is_padding_free(make_trainer(pad_to_multiple_of=8).model)
    for options in (dict(pad_to_multiple_of=8), dict(prefix_sharing=True)):
        with pytest.raises(ValueError, match=f"{next(iter(options))}.*Remove one of the two"):
            KWiseRewardConfig(output_dir=str(tmp_path), use_cpu=True, padding_free=True, **options)


def test_an_evaluation_computes_a_long_prompt_once(make_trainer, rankings):
    long = rankings.map(lambda row: {"prompt": row["prompt"] * 2})
    trainer, padded = (make_trainer(long, f"{free}", eval_dataset=long, padding_free=free) for free in (None, False))
    once = sum(len(row["prompt_input_ids"]) + sum(map(len, row["response_input_ids"])) for row in trainer.eval_dataset)
    whole = num_real_tokens(trainer.eval_dataset)
    found: dict[str, float] = {}
    computed = tokens_computed(trainer, lambda: found.update(trainer.evaluate()))
    assert once - 2 * len(long) <= computed <= once and computed < 0.8 * whole
    expected = padded.evaluate()
    for name in ("eval_loss", "eval_pair_accuracy", "eval_reward_std", "eval_reward_mean"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5), name
