"""Rankings as a stream: the steps, figures and cards of the same rankings in memory, also after an interruption."""

import logging

import pytest
import torch
from datasets import Dataset, IterableDataset

from pangu_trl.data.streams import as_stream
from pangu_trl.reward.card import read_reward_card


@pytest.fixture
def stream(rankings) -> IterableDataset:
    """The eight rankings, of 2 to 4 answers, one after another."""
    records = [dict(record) for record in rankings]
    return as_stream(lambda: iter(records))


# Three a step, so that every pass ends within a batch.
STEPS = dict(
    per_device_train_batch_size=3, optim="adamw_torch", learning_rate=1e-3, disable_dropout=False, eval_dataset=None
)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_steps_are_those_of_the_same_order_in_memory(make_trainer, trained_weights, rankings, stream):
    # Three passes of eight, four steps of 2 x 3.
    order = [number % 8 for number in range(24)]
    options = STEPS | dict(max_steps=4, gradient_accumulation_steps=2)
    whole = make_trainer(rankings.select(order), "whole", train_sampling_strategy="sequential", **options)
    expected = trained_weights(whole)
    streamed = make_trainer(stream, "stream", **options)
    found = trained_weights(streamed)
    assert losses(streamed) == losses(whole) and len(losses(whole)) == 4
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_resumes_in_mid_stream_ends_bit_identical(make_trainer, trained_weights, stream, tmp_path, workers):
    shuffled = stream.shuffle(seed=3, buffer_size=4)
    options = STEPS | dict(max_steps=7, save_strategy="steps", save_steps=4, dataloader_num_workers=workers)
    whole = make_trainer(shuffled, "whole", **options)
    expected = trained_weights(whole)
    resumed = make_trainer(shuffled, "resumed", **options)
    # After 12 records, in the middle of the second pass; the widest ranking does not come again.
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert losses(resumed)[4:] == losses(whole)[4:]
    for trainer in (whole, resumed):
        trainer.save_model()
        assert read_reward_card(trainer.args.output_dir).max_answers == 4


def test_overlong_rankings_are_left_out_and_said_at_the_end(make_trainer, trained_weights, rankings, caplog):
    records = [dict(record) for record in rankings]
    overlong = [
        {"prompt": "好" * 200, "chosen": "好", "rejected": "坏"},
        records[0] | {"responses": ["好" * 200, "坏"]},
    ]
    mixed = as_stream(lambda: iter([overlong[0], *records[:4], overlong[1], *records[4:]]))
    options = STEPS | dict(max_steps=3)
    expected = trained_weights(make_trainer(as_stream(lambda: iter(records)), "without", **options))
    with caplog.at_level(logging.WARNING, logger="pangu_trl"):
        trainer = make_trainer(mixed, "with", **options)
        found = trained_weights(trainer)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    # Three batches are learnt from and one is fetched ahead, 12 rankings: all 10, and 5 of the second pass.
    assert "At the end of training: 15 rankings read from the stream; 3 left out as too long" in caplog.text


def test_evaluation_and_prediction_take_streams(make_trainer, rankings, stream):
    whole, streamed = make_trainer(folder="whole"), make_trainer(folder="stream", eval_dataset=stream)
    expected = whole.evaluate()
    figures = {name for name in expected if "time" not in name and "per_second" not in name}
    for found in (
        streamed.evaluate(),
        whole.evaluate(stream),
        whole.evaluate({"train": stream}, metric_key_prefix="eval_x"),
    ):
        found = {name.replace("eval_x_train", "eval"): value for name, value in found.items()}
        assert {name: found[name] for name in figures} == {name: expected[name] for name in figures}
    assert (whole.predict(stream).predictions == whole.predict(rankings).predictions).all()


def test_pairs_of_token_ids_and_pairs_without_a_prompt_stream_too(make_trainer, trained_weights):
    ids = [
        {"chosen_ids": [5, 6, 7, 9], "rejected_ids": [5, 6, 8, 9], "margin": 0.5},
        {"chosen_ids": [5, 9], "rejected_ids": [6, 9], "margin": 0.0},
    ]
    pairs = [{"chosen": "问：好\n是", "rejected": "问：好\n不是"}, {"chosen": "问：坏\n是", "rejected": "问：坏\n不是"}]
    for records in (ids, pairs):
        options = STEPS | dict(max_steps=2, per_device_train_batch_size=2)
        expected = trained_weights(
            make_trainer(Dataset.from_list(records * 2), "whole", train_sampling_strategy="sequential", **options)
        )
        found = trained_weights(make_trainer(as_stream(lambda records=records: iter(records)), "stream", **options))
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (dict(max_steps=-1), r"max_steps is required with a stream.*got -1.*Set max_steps"),
        (dict(train_sampling_strategy="group_by_length"), "train_sampling_strategy cannot be 'group_by_length' with a"),
        (dict(dataloader_num_workers=2), "dataloader_num_workers cannot be 2 with a stream"),
        (dict(ignore_data_skip=True), "ignore_data_skip cannot be True with a stream"),
        (dict(accelerator_config={"dispatch_batches": True}), "dispatch_batches and split_batches must be off"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_by_name(make_trainer, stream, options, refusal):
    with pytest.raises(ValueError, match=refusal):
        make_trainer(stream, **options)


def test_a_margin_that_some_records_lack_is_refused(make_trainer, rankings):
    records = [dict(rankings[0]) | {"margin": 1.0}, dict(rankings[1])]
    trainer = make_trainer(as_stream(lambda: iter(records)), max_steps=1)
    with pytest.raises(ValueError, match="record 1 of the stream: .* which has a margin"):
        trainer.train()
