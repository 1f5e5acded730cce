"""DPO and GRPO read conversations as the other stages do."""

import pytest

from pangu_trl.data import EncodingColumns, encode_prompt, write_jsonl


def says(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def test_dpo_compares_what_the_assistant_says(run_recipe, base, tokenizer, tmp_path):
    answers = [
        [says("assistant", "很好"), says("user", "价格"), says("assistant", "不错")],
        [says("assistant", "不好")],
    ]
    record = {"prompt": [says("user", "酒店")], "responses": answers, "scores": [1.0, 0.0]}
    write_jsonl(tmp_path / "rankings.jsonl", [record])
    batches = []

    def look(trainer) -> None:
        batches.append(next(iter(trainer.get_train_dataloader())))

    run_recipe(
        "dpo",
        look,
        model_name_or_path=base,
        train_data=tmp_path / "rankings.jsonl",
        output_dir=tmp_path / "run",
        max_steps=1,
        per_device_train_batch_size=1,
        bf16=False,
    )
    compared = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batches[0]["input_ids"], batches[0]["completion_mask"], strict=True)
    ]
    # The end of each turn is the assistant's, the question between its turns is not.
    assert compared == ["很好<eot>不错<eot>", "不好<eot>"]


@pytest.mark.parametrize("mode", ["split", "keep"])
def test_grpo_answers_the_tokens_that_the_other_stages_know(run_recipe, base, tokenizer, tmp_path, mode):
    prompts = [{"prompt": [says("user", f"酒店<eot>{number}")]} for number in range(2)]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    (tmp_path / "judge.py").write_text(
        "def count(prompts, completions, **columns):\n"
        "    assert set(columns) == {'special_tokens_in_text'}, columns\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    answered = []

    def watch(trainer) -> None:
        generate = trainer._generate_single_turn

        def note(prompt_ids, *args, **kwargs):
            answered.extend(prompt_ids)
            return generate(prompt_ids, *args, **kwargs)

        trainer._generate_single_turn = note

    run_recipe(
        "grpo",
        watch,
        model_name_or_path=base,
        train_data=tmp_path / "prompts.jsonl",
        reward_model=f"{tmp_path / 'judge.py'}:count",
        output_dir=tmp_path / "run",
        special_tokens_in_text=mode,
        max_steps=1,
        per_device_train_batch_size=2,
        bf16=False,
    )
    columns = EncodingColumns.of({"special_tokens_in_text": mode})
    expected = [encode_prompt(tokenizer, row["prompt"], columns) for row in prompts]
    # Two answers to one prompt.
    assert len(answered) == 2 and answered[0] == answered[1] and answered[0] in expected
    assert (tokenizer.eos_token_id in answered[0]) == (mode == "keep")
