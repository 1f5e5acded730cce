"""Terms and targets of the reward model's objective beside the plain pairwise loss, and the average of models."""

import copy
import math

import pytest
import torch
from datasets import Dataset

from pangu_trl import GPTPanguForCausalLM, GPTPanguForSequenceClassification, KWiseRewardConfig
from pangu_trl.cli import main
from pangu_trl.reward.card import RewardCard, read_reward_card
from pangu_trl.reward.evaluation import ranking_metrics, without_length
from pangu_trl.reward.losses import pairwise_loss, preference_shares, sum_to_zero_penalty


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


# One prompt: rewards 2, 1, 0 in the annotated order; pairs win by 1, 2 and 1.
SCORES, LABELS, MASK = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[3.0, 2.0, 1.0]]), torch.ones(1, 3).bool()


def test_label_smoothing_by_hand():
    loss = pairwise_loss(SCORES, LABELS, MASK, label_smoothing=0.1)
    expected = -sum(0.9 * log_sigmoid(gap) + 0.1 * log_sigmoid(-gap) for gap in (1, 2, 1)) / 3
    assert loss.item() == pytest.approx(expected)


def test_shares_of_votes_by_hand():
    # Three annotators on two answers: 2 prefer the first, one calls it a tie; a third answer was judged by nobody.
    votes = torch.tensor([[[2.0, 1.0, math.nan], [5.0, 1.0, math.nan], [3.0, 3.0, math.nan]]])
    shares = preference_shares(votes)
    assert shares[0, 0, 1].item() == pytest.approx(2.5 / 3)
    assert shares[0, 1, 0].item() == pytest.approx(0.5 / 3)
    assert shares[0, 0, 2].isnan()
    labels, mask = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    loss = pairwise_loss(torch.tensor([[1.5, 1.0, 9.0]]), labels, mask, shares=shares)
    assert loss.item() == pytest.approx(-(2.5 * log_sigmoid(0.5) + 0.5 * log_sigmoid(-0.5)) / 3)


def test_smoothing_holds_for_shares_too():
    # A share of 3/4 with a tenth of the annotations the wrong way round: 3/4 * 9/10 + 1/4 * 1/10 = 0.7.
    shares = torch.tensor([[[0.5, 0.75], [0.25, 0.5]]])
    loss = pairwise_loss(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0]]),
        torch.ones(1, 2).bool(),
        label_smoothing=0.1,
        shares=shares,
    )
    assert loss.item() == pytest.approx(-(0.7 * log_sigmoid(1) + 0.3 * log_sigmoid(-1)))


def test_soft_targets_are_met_where_the_model_gives_their_probability_and_padding_gives_no_gradient():
    shares = preference_shares(torch.tensor([[[1.0, 0.0, math.nan]] * 3 + [[0.0, 1.0, math.nan]]]))
    scores = torch.tensor([[math.log(3.0), 0.0, 7.0]], requires_grad=True)
    labels, mask = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    pairwise_loss(scores, labels, mask, shares=shares).sum().backward()
    # sigmoid(log 3) = 3 / 4, the share of the votes.
    torch.testing.assert_close(scores.grad, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_one_annotator_and_no_smoothing_is_the_plain_loss():
    shares = preference_shares(LABELS.unsqueeze(1))
    torch.testing.assert_close(pairwise_loss(SCORES, LABELS, MASK, shares=shares), pairwise_loss(SCORES, LABELS, MASK))


def test_the_sum_of_a_batch_is_pulled_to_zero_by_its_mean():
    mask = torch.tensor([[True, True], [True, False]])
    # Mean (1 + 2 + 6) / 3 = 3.
    assert sum_to_zero_penalty(torch.tensor([[1.0, 2.0], [6.0, 99.0]]), mask).item() == 9.0


def test_what_length_explains_is_taken_from_the_rewards_within_each_prompt():
    # Prompt 1: rewards 0, 2 at lengths 10, 30; prompt 2: 5, 4 at 10, 20, around their means (-1, 1), (0.5, -0.5) and
    # (-10, 10), (-5, 5): slope (10 + 10 - 2.5 - 2.5) / (200 + 50) = 0.06.
    rewards, lengths = torch.tensor([[0.0, 2.0], [5.0, 4.0]]), torch.tensor([[10, 30], [10, 20]])
    mask = torch.ones(2, 2).bool()
    slope, residuals = without_length(rewards, lengths, mask)
    assert slope == pytest.approx(0.06)
    torch.testing.assert_close(residuals, torch.tensor([[-0.6, 0.2], [4.4, 2.8]], dtype=torch.float64))
    labels = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    metrics = ranking_metrics(rewards, labels, mask, lengths=lengths)
    assert metrics["length_slope"] == pytest.approx(6.0)
    assert (metrics["pair_accuracy"], metrics["pair_accuracy_without_length"]) == (0.5, 0.5)
    # A reward that is length is right about half the pairs by it alone, and about none (a tie) without.
    metrics = ranking_metrics(lengths.double(), labels, mask, lengths=lengths)
    assert (metrics["pair_accuracy"], metrics["pair_accuracy_without_length"]) == (1.0, 0.5)
    assert without_length(rewards, torch.full((2, 2), 7), mask)[0] == 0.0


# In the trainer.


def annotated(rankings, **columns) -> Dataset:
    return Dataset.from_list(
        [row | {name: make(row, index) for name, make in columns.items()} for index, row in enumerate(rankings)]
    )


def test_votes_and_weights_reach_the_objective_and_padding_changes_nothing(make_trainer, rankings):
    data = annotated(
        rankings,
        weight=lambda row, index: float(index % 3),
        annotator_scores=lambda row, index: [row["scores"]] * (1 + index % 2) + [row["scores"][::-1]],
    )
    trainer = make_trainer(data, max_steps=1, label_smoothing=0.05)
    losses, weights = [], []
    for row, encoded in zip(data, trainer.train_dataset, strict=True):
        batch = trainer.data_collator([encoded])
        with torch.no_grad():
            rewards = trainer.score_answers(trainer.model, batch)
        labels = torch.tensor([row["scores"]])
        if labels.min() < labels.max():
            shares = preference_shares(torch.tensor([row["annotator_scores"]]))
            mask = torch.ones_like(labels).bool()
            losses.append(pairwise_loss(rewards, labels, mask, label_smoothing=0.05, shares=shares).item())
            weights.append(row["weight"])
    expected = sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)
    accumulated = make_trainer(
        data,
        "accumulated",
        max_steps=1,
        label_smoothing=0.05,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    accumulated.train()
    assert accumulated.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_the_sum_to_zero_term_is_added_in_the_trainer(make_trainer):
    plain, pulled = make_trainer(max_steps=1), make_trainer(folder="pulled", max_steps=1, sum_to_zero_coefficient=0.5)
    batch = plain.data_collator(list(plain.train_dataset))
    with torch.no_grad():
        rewards = plain.score_answers(plain.model, batch)
        losses = [trainer.compute_loss(trainer.model, dict(batch)).item() for trainer in (plain, pulled)]
    mean = rewards[batch["answer_mask"]].mean().item()
    assert losses[1] - losses[0] == pytest.approx(0.5 * mean**2, rel=1e-3)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (dict(weight=lambda *_: -1.0), {}, "'weight' must be 0 or more in every record, or be in none; got -1.0"),
        (dict(annotator_scores=lambda *_: [[1.0]]), {}, "'annotator_scores' must hold, for each annotator, one finite"),
        (dict(annotator_scores=lambda *_: []), {}, "'annotator_scores' must hold"),
        (
            dict(annotator_scores=lambda row, _: [row["scores"]]),
            dict(loss_type="plackett_luce"),
            "column 'annotator_scores', which only loss_type 'pairwise' knows",
        ),
    ],
)
def test_annotations_that_cannot_be_obeyed_are_refused(make_trainer, rankings, columns, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(annotated(rankings, **columns), eval_dataset=None, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(label_smoothing=0.5), "label_smoothing must be 0 or more and below 0.5"),
        (dict(label_smoothing=0.1, loss_type="plackett_luce"), "label_smoothing needs loss_type 'pairwise'"),
        (dict(sum_to_zero_coefficient=-1.0), "sum_to_zero_coefficient must be 0 or more"),
    ],
)
def test_options_of_the_objective_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        KWiseRewardConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_the_language_model_loss_is_that_of_the_language_model_on_the_best_answers(make_trainer, tiny_config, rankings):
    plain, trainer = make_trainer(max_steps=1), make_trainer(folder="lm", max_steps=1, lm_coefficient=0.5)
    batch = plain.data_collator(list(plain.train_dataset))
    with torch.no_grad():
        losses = [each.compute_loss(each.model, dict(batch)).item() for each in (plain, trainer)]
    policy = GPTPanguForCausalLM(tiny_config).eval()
    policy.transformer.load_state_dict(trainer.model.transformer.state_dict())
    expected = []
    for row in trainer.train_dataset:
        if min(row["scores"]) < max(row["scores"]):
            best = row["response_input_ids"][row["scores"].index(max(row["scores"]))]
            ids = torch.tensor([row["prompt_input_ids"] + best])
            labels = torch.where(torch.arange(ids.shape[1]) < len(row["prompt_input_ids"]), -100, ids)
            with torch.no_grad():
                expected.append(policy(ids, labels=labels).loss.item())
    assert losses[1] - losses[0] == pytest.approx(0.5 * sum(expected) / len(expected), rel=1e-4)
    trainer.train()
    assert "lm_loss" in trainer.state.log_history[0]


def test_a_model_without_a_tied_head_keeps_none_to_predict_with(make_trainer, reward_model):
    reward_model.config.tie_word_embeddings = False
    with pytest.raises(ValueError, match="lm_coefficient needs a model whose output head is its word embedding"):
        make_trainer(lm_coefficient=0.1)
    with pytest.raises(ValueError, match="lm_coefficient reads an answer from a row of its own"):
        make_trainer(lm_coefficient=0.1, prefix_sharing=True)


# The average of weights.


@pytest.fixture
def members(reward_model, tokenizer, tmp_path):
    """Folders of two reward models that differ by a known amount in every weight."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for factor, folder in enumerate(folders):
        model = copy.deepcopy(reward_model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * factor)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = RewardCard.describe(
            tokenizer, loss_type="pairwise", max_answers=2 + factor, score_mean=1.0, score_std=2.0
        )
        card.save(folder)
    return list(map(str, folders))


def test_the_average_holds_the_mean_of_every_weight_and_says_nothing_of_its_scores(members, reward_model, tmp_path):
    assert main(["average", *members, "--output", str(tmp_path / "average")]) == 0
    average = GPTPanguForSequenceClassification.from_pretrained(tmp_path / "average").state_dict()
    for name, tensor in reward_model.state_dict().items():
        torch.testing.assert_close(average[name], tensor + 0.01, atol=1e-6, rtol=0, msg=name)
    card = read_reward_card(tmp_path / "average")
    assert (card.loss_type, card.max_answers, card.score_mean) == ("pairwise", 3, None)


def test_models_that_do_not_fit_together_are_named(members, tiny_config, tokenizer, tmp_path, capsys):
    config = copy.deepcopy(tiny_config)
    config.num_labels, config.num_layers = 1, 3
    GPTPanguForSequenceClassification(config).save_pretrained(tmp_path / "deeper")
    tokenizer.save_pretrained(tmp_path / "deeper")
    assert main(["average", members[0], str(tmp_path / "deeper"), "--output", str(tmp_path / "average")]) == 2
    assert "differ in name or size, the first is" in capsys.readouterr().err
    assert main(["average", members[0], "--output", str(tmp_path / "average")]) == 2
    assert "an average needs two reward models or more" in capsys.readouterr().err
    assert not (tmp_path / "average").exists()
