"""The trainers of TRL train on the chat template: SFT on what the assistant says, DPO and GRPO from where it speaks."""

import copy

import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

QUESTION = [{"role": "user", "content": "房间好不好"}]
GOOD, BAD = ([{"role": "assistant", "content": text}] for text in ("房间很好", "房间不好"))
ONE_STEP = dict(max_steps=1, per_device_train_batch_size=2)


def test_sft_trains_on_the_tokens_of_the_assistant_only(policy, tokenizer, options):
    trainer = SFTTrainer(
        policy,
        options(SFTConfig, assistant_only_loss=True, **ONE_STEP),
        train_dataset=Dataset.from_list([{"messages": [*QUESTION, *GOOD, *QUESTION, *BAD]}] * 2),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    learnt = [label for label in batch["labels"][0].tolist() if label != -100]
    assert tokenizer.decode(learnt) == "房间很好<eot>房间不好<eot>"
    assert tokenizer.decode(batch["input_ids"][0]) == "房间好不好<sep>房间很好<eot>房间好不好<sep>房间不好<eot>"
    assert trainer.train().training_loss > 0


def test_dpo_reads_the_template(policy, tokenizer, options):
    trainer = DPOTrainer(
        policy,
        copy.deepcopy(policy),
        options(DPOConfig, **ONE_STEP),
        train_dataset=Dataset.from_list([{"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}] * 2),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    texts = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert texts == ["房间很好<eot>"] * 2 + ["房间不好<eot>"] * 2
    # Policy and reference are equal before the first step: -log sigmoid(0) = log 2.
    assert trainer.train().training_loss == pytest.approx(0.693147, abs=1e-4)


def test_grpo_prompts_end_where_the_assistant_speaks(policy, tokenizer, options):
    seen = []

    def reward(prompts, completions, completion_ids, **kwargs) -> list[float]:
        seen.append((prompts, completions, completion_ids))
        return [float(len(ids)) for ids in completion_ids]

    trainer = GRPOTrainer(
        policy,
        reward,
        args=options(GRPOConfig, num_generations=2, max_completion_length=4, **ONE_STEP),
        train_dataset=Dataset.from_list([{"prompt": QUESTION}] * 2),
        processing_class=tokenizer,
    )
    generated_from = []
    generate = policy.generate
    policy.generate = lambda input_ids, **kwargs: generated_from.append(input_ids) or generate(input_ids, **kwargs)
    trainer.train()
    assert tokenizer.batch_decode(generated_from[0]) == ["房间好不好<sep>"] * 2
    prompts, completions, completion_ids = seen[0]
    assert prompts == [QUESTION] * 2
    for completion, ids in zip(completions, completion_ids, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert completion == [{"role": "assistant", "content": text}]
