"""Scoring and learning without padding: the figures and gradients of padded batches, from real tokens alone."""

import copy

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from pangu_trl.models.padding_free import PackedBatch, is_padding_free
from pangu_trl.models.sequence_scores import sequence_scores
from pangu_trl.ppo.rollout import Rollout

# Three texts of 6, 3 and 5 tokens, padded on the left; answers of 3, 1 and 2.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
ANSWERS = torch.tensor([[True, True, True], [False, False, True], [False, True, True]])
SMALL = dict(vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)


def input_ids() -> torch.Tensor:
    return torch.randint(10, 200, MASK.shape, generator=torch.Generator().manual_seed(0))


def figures_and_gradients(trainer) -> tuple[dict, dict]:
    """What one pass gives for the answer tokens, and the gradients of a sum that weighs every figure."""
    models = trainer.model.train()
    outputs = models(input_ids(), MASK, ANSWERS, 0.7)
    weights = torch.linspace(-1, 1.5, int(ANSWERS.sum()))
    loss = sum((outputs[name][ANSWERS] * weights).sum() for name in ("logprobs", "values"))
    models.zero_grad()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in models.named_parameters() if p.grad is not None}
    return {name: figures[ANSWERS].detach() for name, figures in outputs.items()}, gradients


def test_figures_and_gradients_are_those_of_padded_batches(make_trainer, layout):
    trainers = [make_trainer(layout, padding_free=free) for free in (None, False)]
    # Adapters start at nothing, and a value head at zero.
    for trainer in trainers:
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    assert [is_padding_free(trainer.model.policy) for trainer in trainers] == [True, False]
    (found, gradients), (expected, expected_gradients) = map(figures_and_gradients, trainers)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.norm() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * largest, name


def test_no_padding_is_computed(make_trainer, layout):
    trainer = make_trainer(layout)
    seen = []
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == trainer.model.config.vocab_size:
            module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    with torch.no_grad():
        trainer.model(input_ids(), MASK, ANSWERS)
    assert set(seen) == {14}


def test_a_reward_model_scores_without_padding_too(make_trainer, reward_model):
    expected = sequence_scores(copy.deepcopy(reward_model), input_ids(), MASK)
    ours = make_trainer().collector.rewards[0].model
    assert is_padding_free(ours) and not is_padding_free(reward_model)
    torch.testing.assert_close(sequence_scores(ours, input_ids(), MASK), expected, atol=1e-5, rtol=1e-5)


def test_a_packed_batch_counts_every_sequence_from_its_own_start():
    packed = PackedBatch.of(input_ids(), MASK)
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3, 4]]
    assert packed.input_ids.tolist() == [input_ids()[MASK == 1].tolist()]
    assert packed.layout.rows == (((6,), (3,), (5,)),) and packed.layout.width == 14
    assert packed.places[1, 3:].tolist() == [6, 7, 8] and packed.places[2, 1:].tolist() == [9, 10, 11, 12, 13]


def bloom() -> BloomForCausalLM:
    return BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=2, n_head=2))


def eager_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SMALL, attn_implementation="eager"))


class DropsTheLayout(LlamaForCausalLM):
    """Takes arguments for its attention, and hands none on."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, packed_layout=None, **kwargs):
        kwargs["position_ids"] = position_ids
        if packed_layout is not None:
            # transformers would see packed sequences by positions that restart.
            attention_mask = kwargs["position_ids"] = None
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (bloom, "BloomForCausalLM takes no position_ids"),
        (eager_llama, "LlamaForCausalLM has eager"),
        (lambda: DropsTheLayout(LlamaConfig(**SMALL, initializer_range=0.3)), "its figures differ by"),
    ],
    ids=["no positions", "eager", "layout dropped"],
)
def test_a_model_that_cannot_is_left_with_padding_or_refused(make_trainer, make, reason, caplog):
    torch.manual_seed(0)
    policy = make()
    models = dict(model=policy)
    implementation = policy.config._attn_implementation
    with caplog.at_level("INFO", logger="pangu_trl"):
        make_trainer(models=models)
    assert "policy: scored and learnt from with padding" in caplog.text and reason in caplog.text
    assert not is_padding_free(policy) and policy.config._attn_implementation == implementation
    with pytest.raises(ValueError, match=f"PPOTrainer: policy: padding_free: .*{reason}"):
        make_trainer(models=models, padding_free=True)


@pytest.mark.parametrize("where", ["full", "one backbone"], ids=["a model", "an adapter"])
def test_answers_to_one_prompt_are_scored_with_it_once(make_trainer, where, monkeypatch):
    trainers = [
        make_trainer(where, padding_free=free, num_generations=2, per_device_train_batch_size=2)
        for free in (None, False)
    ]
    # Two prompts of 9 and 10 tokens with two answers each, padded on the left.
    generator = torch.Generator().manual_seed(2)
    ids, mask = torch.zeros(4, 14, dtype=torch.long), torch.zeros(4, 14, dtype=torch.long)
    for row, (prompt, lengths) in enumerate([(9, 4), (9, 4), (10, 4), (10, 4)]):
        ids[row, -prompt - lengths :] = torch.randint(10, 200, (prompt + lengths,), generator=generator)
        mask[row, -prompt - lengths :] = 1
    ids[1, 1:10], ids[3, :10] = ids[0, 1:10], ids[2, :10]
    answers = torch.ones(4, 4, dtype=torch.bool)
    rollout = Rollout(ids, mask, answers, torch.ones(4, dtype=torch.bool))
    widths, sharing = [], PackedBatch.sharing
    monkeypatch.setattr(
        PackedBatch, "sharing", lambda *batch: widths.append((packed := sharing(*batch)).layout.width) or packed
    )
    found, expected = (
        trainer.collector.rewards[0].score(trainer.model, rollout, [{}] * 4, batch_size=2) for trainer in trainers
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(set(expected.tolist())) == 4
    assert widths == [9 + 8, 10 + 8]
