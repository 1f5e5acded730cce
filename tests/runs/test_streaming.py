"""`dataset_streaming` in the recipes: from YAML, to the same end after an interruption, or refused before the work."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pangu_trl.data import write_jsonl

STREAM = dict(dataset_streaming="true", bf16=False, lr_scheduler_type="linear")


@pytest.fixture
def options(tmp_path, base, reward_model, tokenizer) -> dict:
    return STREAM | dict(model_name_or_path=base, output_dir=tmp_path / "run")


def assert_same_weights(one, other) -> None:
    expected = load_file(one / "model.safetensors")
    for name, tensor in load_file(other / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_fine_tuning_streams_from_yaml_and_resumes_bit_identical(run_recipe, options, reviews, tmp_path, caplog):
    # Twelve records, one of them too long, in batches of four that a pass does not end with.
    overlong = {"prompt": "好" * 200, "completion": "好"}
    write_jsonl(tmp_path / "records.jsonl", [*reviews[:5], overlong, *reviews[5:]])
    write_jsonl(tmp_path / "held-out.jsonl", reviews)
    (tmp_path / "sft.yaml").write_text("dataset_streaming: true\nstreaming_buffer: 5\nmax_steps: 7\nmax_length: 128\n")
    options = {name: value for name, value in options.items() if name != "dataset_streaming"}
    options |= dict(
        train_data=tmp_path / "records.jsonl", config=tmp_path / "sft.yaml", eval_data=tmp_path / "held-out.jsonl"
    )
    options |= dict(save_strategy="steps", save_steps=4, max_steps=7, gradient_accumulation_steps=2)
    whole = run_recipe("sft", **options)
    # 57 records fetched with the batch ahead are 60 of which each twelfth is left out, and more.
    assert "left out as too long" in caplog.text.split("At the end of training: ")[1]
    resumed = run_recipe(
        "sft",
        **options | dict(output_dir=tmp_path / "resumed"),
        resume_from_checkpoint=tmp_path / "run" / "checkpoint-4",
    )
    assert_same_weights(tmp_path / "run", tmp_path / "resumed")
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 7
    # The held-out set is whole.
    assert len(whole.eval_dataset) == len(reviews)
    with pytest.raises(ValueError, match="streaming_buffer must stay"):
        run_recipe(
            "sft",
            **options | dict(output_dir=tmp_path / "again", streaming_buffer=6),
            resume_from_checkpoint=tmp_path / "run" / "checkpoint-4",
        )


def test_fine_tuning_on_a_stream_is_that_of_the_same_order_in_memory(run_recipe, options, reviews, data, tmp_path):
    # In memory two passes of a file that is there twice are one.
    write_jsonl(tmp_path / "twice.jsonl", [*reviews, *reviews])
    options |= dict(max_steps=5, train_data=data.sft, streaming_buffer=0)
    streamed = run_recipe("sft", **options)
    in_memory = options | dict(output_dir=tmp_path / "memory", train_data=tmp_path / "twice.jsonl")
    for name in ("dataset_streaming", "streaming_buffer"):
        del in_memory[name]
    whole = run_recipe("sft", **in_memory, train_sampling_strategy="sequential")
    losses = [
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, streamed)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    assert_same_weights(tmp_path / "run", tmp_path / "memory")


@pytest.mark.parametrize("streams", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_mixture_of_weighted_cards_resumes_bit_identical(run_recipe, options, reviews, tmp_path, streams):
    for name, part in (("a", reviews[:3]), ("b", reviews[3:])):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"问": row["prompt"], "答": row["completion"]} for row in part])
        (tmp_path / f"{name}.md").write_text(
            "---\npangu_trl:\n  kind: demonstration\n  path: json\n"
            f"  data_files: {name}.jsonl\n  columns: {{prompt: 问, completion: 答}}\n---\n",
            "utf-8",
        )
    card = "---\npangu_trl:\n  kind: demonstration\n  mix:\n    - {source: a.md, weight: 1}\n"
    # In memory nine records, of a and b a third and two thirds: a step in the second pass is gone on from.
    card += f"    - {{source: b.md, weight: 2}}\n  seed: 3\n{'' if streams else '  records: 9'}\n---\n"
    (tmp_path / "mix.md").write_text(card)
    options |= dict(train_data=tmp_path / "mix.md", max_steps=6, save_strategy="steps", save_steps=4)
    options["dataset_streaming"] = str(streams).lower()
    whole = run_recipe("sft", **options)
    assert streams or len(whole.train_dataset) == 9
    run_recipe(
        "sft",
        **options | dict(output_dir=tmp_path / "resumed"),
        resume_from_checkpoint=tmp_path / "run" / "checkpoint-4",
    )
    assert_same_weights(tmp_path / "run", tmp_path / "resumed")


@pytest.mark.parametrize("stage", ["reward", pytest.param("ppo", marks=pytest.mark.slow)])
def test_the_other_stages_stream_as_well(
    run_recipe, options, reward_model, tokenizer, reviews, stage, tmp_path, caplog
):
    if stage == "ppo":
        reward_model.save_pretrained(tmp_path / "judge")
        tokenizer.save_pretrained(tmp_path / "judge")
        write_jsonl(tmp_path / "texts.jsonl", [{"text": review["completion"]} for review in reviews])
        options |= dict(reward_model=tmp_path / "judge", ptx_data=tmp_path / "texts.jsonl")
    with caplog.at_level("INFO", logger="pangu_trl"):
        trainer = run_recipe(stage, **options)
    assert trainer.state.global_step == 2
    assert caplog.text.count("At the end of training: ") == (2 if stage == "ppo" else 1)
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.parametrize(
    ("stage", "more", "refusal"),
    [
        ("sft", dict(max_steps=-1), "SFT: max_steps is required with a stream"),
        ("sft", dict(packing="true"), "SFT: packing cannot be True with a stream: it fills rows"),
        ("reward", dict(train_sampling_strategy="group_by_length"), "reward: train_sampling_strategy cannot be"),
        ("ppo", dict(max_steps=-1, reward_model="nowhere"), "PPO: max_steps is required with a stream"),
        ("dpo", {}, "dataset_streaming: DPO needs its records whole"),
        ("grpo", dict(reward_model="nowhere"), "dataset_streaming: GRPO needs its records whole"),
        ("sft", dict(streaming_buffer=-1), "streaming_buffer must be 0 or more; got -1"),
        ("sft", dict(dataset_streaming="false", streaming_buffer=5), "streaming_buffer has no effect without"),
    ],
)
def test_what_cannot_stream_is_refused_before_the_work(run_recipe, options, stage, more, refusal, tmp_path):
    # No model is there to be loaded.
    options |= dict(model_name_or_path=tmp_path / "missing")
    with pytest.raises(ValueError, match=refusal):
        run_recipe(stage, **options | more)
