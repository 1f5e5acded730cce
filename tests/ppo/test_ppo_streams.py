"""Prompts and texts as streams: the run of the same order in memory, also after an interruption."""

import logging

import pytest
import torch
from datasets import Dataset

from pangu_trl.data.order import epoch_generator
from pangu_trl.data.streams import as_stream
from pangu_trl.ppo.texts import StreamWindow


def streamed(records: list[dict]):
    return as_stream(lambda: iter(records))


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.fixture
def texts(prompts) -> list[dict]:
    return [{"text": row["prompt"]} for row in prompts.select(range(7))]


def test_a_run_is_that_of_the_same_order_in_memory(make_trainer, prompts, texts):
    options = dict(num_rollout_batches=4, gradient_accumulation_steps=2, num_generations=2)
    whole = make_trainer(models=dict(ptx_dataset=Dataset.from_list(texts)), **options)
    whole.train()
    # Both orders of a run in memory are shuffled by the seed, 42.
    order = torch.randperm(len(prompts), generator=epoch_generator(42, 0)).tolist()
    passes = [torch.randperm(7, generator=epoch_generator(42, epoch)).tolist() for epoch in range(5)]
    stream = make_trainer(
        models=dict(ptx_dataset=streamed([texts[row] for one_pass in passes for row in one_pass])),
        data=streamed([prompts[row] for row in order]),
        **options,
    )
    stream.train()
    expected, found = weights(whole), weights(stream)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    figures = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, stream)]
    assert figures[0] == figures[1] and len(figures[0]) == 8


@pytest.mark.parametrize("save_steps", [6, pytest.param(8, marks=pytest.mark.slow)])
def test_a_run_that_resumes_in_mid_stream_ends_bit_identical(make_trainer, prompts, texts, tmp_path, save_steps):
    # 5 prompts and 4 a rollout, which is learnt from in 4 steps: passes over the prompts end within rollouts.
    data = streamed([dict(row) for row in prompts.select(range(5))]).shuffle(seed=1, buffer_size=3)
    options = dict(data=data, max_steps=14, models=dict(ptx_dataset=streamed(texts)))
    whole = make_trainer(save_strategy="steps", save_steps=save_steps, **options)
    whole.train()
    resumed = make_trainer(output_dir=str(tmp_path / "resumed"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{save_steps}"))
    expected = weights(whole)
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_another_stream_is_refused_at_the_resume(make_trainer, prompts, tmp_path):
    rows = [dict(row) for row in prompts]
    make_trainer(data=streamed(rows), save_strategy="steps", save_steps=4, max_steps=4).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(ValueError, match=r"train_data: 'first 256 records of a stream, \w+' in the checkpoint"):
        make_trainer(data=streamed(rows[1:])).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="train_data: 'first 256 .* in the checkpoint, '12 rows"):
        make_trainer().train(resume_from_checkpoint=checkpoint)


def test_overlong_prompts_and_texts_are_left_out_and_said_at_the_end(make_trainer, prompts, texts, caplog):
    rows = [{"prompt": "好" * 49}, *prompts]
    with caplog.at_level(logging.WARNING, logger="pangu_trl"):
        trainer = make_trainer(
            data=streamed(rows), max_steps=4, models=dict(ptx_dataset=streamed([{"text": "好" * 99}, *texts]))
        )
        trainer.train()
    # Four prompts of a rollout, four times over, in one batch; then another four are fetched ahead.
    assert "At the end of training: 9 prompts read from the stream; 1 left out as too long" in caplog.text
    # Two texts at each of four steps, in passes of seven.
    assert "At the end of training: 10 texts read from the stream; 2 left out as too long" in caplog.text


def test_token_ids_stream_and_evaluation_takes_streams(make_trainer, prompts, tokenizer):
    ids = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in prompts]
    ids = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in ids]
    trainer = make_trainer(data=streamed(ids), models=dict(eval_dataset=streamed(list(prompts))))
    first = next(iter(trainer.train_dataset))
    assert first["prompt_input_ids"] == ids[0]["input_ids"] and "attention_mask" not in first
    expected, found = make_trainer().evaluate(), trainer.evaluate()
    assert expected == found and "eval_reward/mean" in found


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (dict(max_steps=-1), "PPOTrainer: max_steps is required with a stream"),
        (dict(dataloader_num_workers=3), "PPOTrainer: dataloader_num_workers cannot be 3 with a stream"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_by_name(make_trainer, prompts, options, refusal):
    with pytest.raises(ValueError, match=refusal):
        make_trainer(data=streamed(list(prompts)), **options)


def test_a_window_holds_what_is_in_use():
    window = StreamWindow(as_stream(lambda: iter([{"place": place} for place in range(100)])))
    window.forget_before(10)
    assert [window[place]["place"] for place in (12, 10, 11)] == [10 + 2, 10, 11]
    assert len(window._rows) == 3
    window.forget_before(12)
    assert window[12]["place"] == 12 and len(window._rows) == 1
