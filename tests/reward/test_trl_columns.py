"""What TRL's RewardTrainer obeys in its data, KWiseRewardTrainer obeys: margins, token ids, raw rankings to predict."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer


@pytest.fixture
def pairs(rankings, tokenizer) -> list[dict]:
    """Two answers each, with a margin, and the same as token ids."""
    rows = []
    for index, ranking in enumerate(rankings):
        row = {"prompt": ranking["prompt"], "chosen": ranking["responses"][0], "rejected": ranking["responses"][1]}
        rows.append(row | {"margin": 0.5 * index - 1.0})
    return rows


def first_loss(trainer) -> float:
    trainer.train()
    return trainer.state.log_history[0]["loss"]


def trl_loss(model, tokenizer, rows: list[dict], folder: str, **options) -> float:
    """TRL's own trainer on the same rows, one batch and one step."""
    args = RewardConfig(
        output_dir=folder,
        per_device_train_batch_size=8,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        disable_dropout=True,
        **options,
    )
    return first_loss(
        RewardTrainer(copy.deepcopy(model), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    )


def as_ids(row: dict, tokenizer) -> dict:
    prompt = tokenizer(row["prompt"])["input_ids"]
    sides = {
        f"{side}_ids": prompt + tokenizer(row[side], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        for side in ("chosen", "rejected")
    }
    return sides | {"margin": row["margin"]}


def test_margins_and_token_ids_give_the_loss_of_trl(make_trainer, pairs, reward_model, tokenizer, tmp_path):
    ids = [as_ids(row, tokenizer) for row in pairs]
    ours = {
        name: first_loss(make_trainer(Dataset.from_list(rows), name, max_steps=1, logging_steps=1, eval_dataset=None))
        for name, rows in (("text", pairs), ("ids", ids))
    }
    expected = trl_loss(reward_model, tokenizer, ids, str(tmp_path / "trl"))
    assert ours == pytest.approx({"text": expected, "ids": expected}, abs=2e-4)
    without = [{name: value for name, value in row.items() if name != "margin"} for row in ids]
    assert abs(trl_loss(reward_model, tokenizer, without, str(tmp_path / "none")) - expected) > 0.05


def test_a_margin_counts_in_every_pair_of_a_ranking(make_trainer, tokenizer):
    from pangu_trl.reward.losses import pairwise_loss

    scores, labels = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    loss = pairwise_loss(scores, labels, torch.ones(1, 3, dtype=torch.bool), margins=torch.tensor([0.5]))
    # Pairs win by 1, 2 and 1, less the margin of a half.
    expected = sum(math.log1p(math.exp(-gap)) for gap in (0.5, 1.5, 0.5)) / 3
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"margin": None}, {}, "'margin' must be a finite number in every record, or in none; got None"),
        ({"margin": math.nan}, {}, "'margin' must be a finite number in every record, or in none; got nan"),
        ({}, {"loss_type": "plackett_luce"}, "column 'margin', which only loss_type 'pairwise' knows"),
    ],
)
def test_margins_that_cannot_be_obeyed_are_refused(make_trainer, pairs, change, options, message):
    rows = [*pairs[:3], pairs[3] | change]
    with pytest.raises(ValueError, match=message):
        make_trainer(Dataset.from_list(rows), eval_dataset=None, **options)


def test_token_ids_keep_an_answer_of_one_token_at_least(make_trainer, tokenizer):
    end = tokenizer.eos_token_id
    rows = [
        {"chosen_ids": [20, 21, end], "rejected_ids": [20, 21, 22, end]},
        {"chosen_ids": [20], "rejected_ids": [20]},
    ]
    trainer = make_trainer(Dataset.from_list(rows), eval_dataset=None)
    kept = [(row["prompt_input_ids"], row["response_input_ids"]) for row in trainer.train_dataset]
    assert kept == [([20, 21], [[end], [22, end]]), ([], [[20], [20]])]
    with pytest.raises(ValueError, match="train row 0: chosen_ids and rejected_ids must hold a token"):
        make_trainer(Dataset.from_list([{"chosen_ids": [], "rejected_ids": [20]}]), eval_dataset=None)


def test_rankings_are_predicted_as_they_are_read(make_trainer, rankings):
    trainer = make_trainer()
    predicted = trainer.predict(rankings)
    evaluated = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape == (8, max(map(len, rankings["scores"])))
    assert (predicted.predictions == evaluated.predictions).all()
    long = make_trainer(max_length=30, train_dataset=trainer.train_dataset, eval_dataset=None)
    lengths = [len(row["prompt_input_ids"]) + max(map(len, row["response_input_ids"])) for row in trainer.eval_dataset]
    if max(lengths) > 30:
        with pytest.raises(ValueError, match="rankings to predict have more than max_length = 30|max_length = 30"):
            long.predict(rankings)
