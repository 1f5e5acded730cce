"""KWiseRewardTrainer: batching does not change the objective, K = 2 is TRL's, everything trains and saves."""

import copy
import statistics

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sgd_steps import SGD_STEPS
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.reward_model import load_reward_model, score_responses
from pangu_trl.reward.evaluation import ranking_metrics


@pytest.mark.parametrize(
    "options",
    [
        dict(per_device_train_batch_size=2, gradient_accumulation_steps=4),
        dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, pad_to_multiple_of=64),
        dict(gradient_checkpointing=True),
    ],
    ids=["accumulated 2 x 4", "accumulated 4 x 2 with more padding", "gradient checkpointing"],
)
def test_one_step_is_the_same_however_the_eight_prompts_are_batched(
    make_trainer, trained_weights, reward_model, options
):
    whole = trained_weights(make_trainer(folder="whole"))
    other = trained_weights(make_trainer(folder="other", **options))
    moved = [name for name in whole if not torch.equal(whole[name], dict(reward_model.named_parameters())[name])]
    assert "score.weight" in moved
    for name in whole:
        torch.testing.assert_close(other[name], whole[name], atol=1e-6, rtol=1e-5, msg=name)


def test_two_answers_give_the_loss_and_step_of_trl(make_trainer, reward_model, tokenizer, reviews, tmp_path):
    pairs = Dataset.from_list(
        [
            {"prompt": one["prompt"], "chosen": one["completion"], "rejected": two["completion"]}
            for one, two in zip(reviews[:8], reviews[4:12], strict=True)
        ]
    )
    options = dict(center_rewards_coefficient=0.1, bf16=False, per_device_train_batch_size=8)
    ours = make_trainer(pairs, **options)
    # TRL gets the very token ids, since it would encode prompt and answer as one text.
    encoded = Dataset.from_list(
        [
            {
                "chosen_ids": row["prompt_input_ids"] + row["response_input_ids"][0],
                "rejected_ids": row["prompt_input_ids"] + row["response_input_ids"][1],
            }
            for row in ours.train_dataset
        ]
    )
    theirs = RewardTrainer(
        model=copy.deepcopy(reward_model),
        args=RewardConfig(output_dir=str(tmp_path / "trl"), **SGD_STEPS | options),
        train_dataset=encoded,
        processing_class=tokenizer,
    )
    assert ours.train().training_loss == pytest.approx(theirs.train().training_loss, abs=1e-6)
    for (name, parameter), other in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, atol=1e-6, rtol=1e-5, msg=name)


def test_evaluation_is_exact_over_batches_of_different_k(make_trainer, reward_model, tokenizer, rankings):
    metrics = [make_trainer(per_device_eval_batch_size=batch_size).evaluate() for batch_size in (8, 3)]
    for name in ("eval_loss", "eval_pair_accuracy", "eval_num_pairs", "eval_best_of_k_accuracy", "eval_reward_std"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1e-6), name

    # The same from scores computed elsewhere, pair by pair.
    flat = [(r["prompt"], answer) for r in rankings for answer in r["responses"]]
    scores = iter(score_responses(reward_model, tokenizer, [p for p, _ in flat], [a for _, a in flat], batch_size=1))
    right = total = 0
    for record in rankings:
        rewards = [next(scores) for _ in record["responses"]]
        for a, better in enumerate(record["scores"]):
            for b, worse in enumerate(record["scores"]):
                if better > worse:
                    total += 1
                    right += rewards[a] > rewards[b]
    assert metrics[0]["eval_num_pairs"] == total
    assert metrics[0]["eval_pair_accuracy"] == pytest.approx(right / total)


def test_figures_of_training_are_those_of_the_answers_of_the_batch(make_trainer, reward_model, tokenizer, rankings):
    trainer = make_trainer()
    trainer.train()
    scores, gaps, num_tokens = [], [], 0
    for record, encoded in zip(rankings, trainer.train_dataset, strict=True):
        rewards = score_responses(
            reward_model, tokenizer, [record["prompt"]] * len(record["responses"]), record["responses"], 1
        )
        scores += rewards
        gaps += [
            better - worse
            for better, label in zip(rewards, record["scores"], strict=True)
            for worse, other in zip(rewards, record["scores"], strict=True)
            if label > other
        ]
        num_tokens += sum(len(encoded["prompt_input_ids"] + ids) for ids in encoded["response_input_ids"])
    logged = trainer.state.log_history[0]
    assert logged["mean_reward"] == pytest.approx(statistics.fmean(scores), abs=1e-5)
    assert logged["margin"] == pytest.approx(statistics.fmean(gaps), abs=1e-5)
    assert logged["accuracy"] == pytest.approx(sum(gap > 0 for gap in gaps) / len(gaps))
    assert logged["num_tokens"] == num_tokens


def test_a_small_score_gap_is_left_out_of_the_pair_accuracy(make_trainer, reviews):
    answers = {"responses": ["好。", "不好。", "还行。"], "scores": [0.9, 0.8, 0.1]}
    records = Dataset.from_list([{"prompt": review["prompt"], **answers} for review in reviews])
    # Of the three pairs of each prompt, 0.9 against 0.8 is too close.
    assert make_trainer(eval_dataset=records, min_score_gap=0.2).evaluate()["eval_num_pairs"] == 2 * len(records)


@pytest.mark.parametrize(
    ("scores", "gap", "counts"),
    [
        ([0.7, 0.5], 0.2, True),
        ([0.3, 0.1], 0.2, True),
        ([100.3, 100.1], 0.2, True),
        ([0.9, 0.8], 0.2, False),
        ([0.6999, 0.5], 0.2, False),
        ([0.5, 0.5], 0.0, False),
    ],
)
def test_a_pair_exactly_at_the_score_gap_counts(scores, gap, counts):
    # A further prompt, far apart, so that there is something to measure.
    labels = torch.tensor([scores, [9.0, 0.0]])
    metrics = ranking_metrics(torch.zeros(2, 2), labels, torch.ones(2, 2, dtype=torch.bool), gap)
    assert metrics["num_pairs"] == 1 + counts


@pytest.mark.parametrize("prefix_sharing", [False, True])
@pytest.mark.parametrize("pad_token", ["<mask>", "<eot>"], ids=["another token", "the end of sequence"])
def test_the_score_is_that_of_the_end_of_sequence_whatever_pads(
    make_trainer, reward_model, tokenizer, caplog, pad_token, prefix_sharing
):
    trainer = make_trainer(pad_token=pad_token, prefix_sharing=prefix_sharing)
    pad_token_id = tokenizer.convert_tokens_to_ids(pad_token)
    assert trainer.model.config.pad_token_id == trainer.data_collator.pad_token_id == pad_token_id
    assert ("pads with its end of sequence" in caplog.text) == (pad_token == tokenizer.eos_token)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with evaluation_mode(trainer.model):
        scores = trainer.score_answers(trainer.model, batch)
        for row, example in enumerate(trainer.train_dataset):
            for answer, response in enumerate(example["response_input_ids"]):
                assert response[-1] == tokenizer.eos_token_id
                input_ids = torch.tensor([example["prompt_input_ids"] + response])
                alone = reward_model.score(reward_model.transformer(input_ids).last_hidden_state[0, -1])
                torch.testing.assert_close(scores[row, answer], alone[0])


def test_without_a_max_length_no_ranking_is_left_out(make_trainer, rankings):
    assert len(make_trainer(max_length=None).train_dataset) == len(rankings)


def test_training_learns_the_ranking_and_the_saved_model_scores_the_same(make_trainer, tokenizer, tmp_path):
    trainer = make_trainer(max_steps=40, learning_rate=3e-3, optim="adamw_torch", max_grad_norm=1.0)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_pair_accuracy"] > 0.95
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    prompts, answers = ["总体来说，"] * 2, ["还不错。", "非常差！"]
    torch.testing.assert_close(
        score_responses(loaded, tokenizer, prompts, answers, 2),
        # Which has learnt without padding, and is asked so.
        score_responses(trainer.model, tokenizer, prompts, answers, 2),
        rtol=1e-6,
        atol=1e-6,
    )


def test_lora_trains_and_saves_the_score_head(make_trainer, policy, tokenizer, tmp_path):
    policy.save_pretrained(tmp_path / "base")
    trainer = make_trainer(
        model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1),
        learning_rate=1e-2,
        optim="adamw_torch",
        peft_config=LoraConfig(r=4, task_type="SEQ_CLS"),
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert any("score" in name for name in before)
    # lora_B starts at zero, which leaves lora_A without a gradient in the first step.
    assert all(not torch.equal(before[name], after[name]) for name in before if "lora_A" not in name)

    trainer.save_model(tmp_path / "saved")
    loaded, loaded_tokenizer = load_reward_model(str(tmp_path / "saved"))
    prompts, answers = ["总体来说，"] * 2, ["还不错。", "非常差！"]
    expected = score_responses(trainer.model, tokenizer, prompts, answers, 2)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert score_responses(loaded, loaded_tokenizer, prompts, answers, 2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_an_adapter_that_leaves_the_score_head_frozen_is_warned_of(make_trainer, caplog, task_type):
    make_trainer(peft_config=LoraConfig(r=2, task_type=task_type))
    assert ("The score head is frozen" in caplog.text) == (task_type is None)


def test_ties_alone_are_refused_before_anything_is_learnt(make_trainer, reviews):
    tied = Dataset.from_list(
        [{"prompt": r["prompt"], "responses": ["好。", "不好。"], "scores": [1.0, 1.0]} for r in reviews]
    )
    with pytest.raises(ValueError, match="the train set has no prompt with .* different scores, .* nothing to learn"):
        make_trainer(tied)
    with pytest.raises(ValueError, match="the some set has no prompt with two answers of different scores"):
        make_trainer(eval_dataset={"some": tied})


def test_a_reward_model_that_gives_nan_stops_the_run(make_trainer, reward_model):
    with torch.no_grad():
        reward_model.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="reward model gave .*nan"):
        make_trainer().train()


def test_a_negative_score_gap_is_refused(make_trainer):
    with pytest.raises(ValueError, match="min_score_gap must be 0 or more; got -1"):
        make_trainer(min_score_gap=-1)
