"""Prompts in every form, and texts whose language-model loss is mixed into the policy's."""

import pytest
import torch
from datasets import Dataset

from pangu_trl.ppo.sampler import text_rows
from pangu_trl.ppo.texts import prepare_prompts


def test_prompts_may_be_token_ids_with_or_without_padding(tokenizer):
    pad = tokenizer.pad_token_id
    by_mask = Dataset.from_list([{"input_ids": [pad, 20, 21], "attention_mask": [0, 1, 1], "topic": "a"}])
    rows = prepare_prompts(by_mask, tokenizer, max_prompt_length=4)
    given = {"topic": "a", "input_ids": [pad, 20, 21]}
    assert rows[0] == given | {"prompt_input_ids": [20, 21], "prompt": tokenizer.decode([20, 21])}
    by_pad_token = Dataset.from_list([{"input_ids": [pad, 20, pad, 21, pad, pad]}])
    assert prepare_prompts(by_pad_token, tokenizer, 4)[0]["prompt_input_ids"] == [20, pad, 21]
    with pytest.raises(ValueError, match="row 0: a prompt must have .* at most max_prompt_length = 1 tokens; got 2"):
        prepare_prompts(by_mask, tokenizer, max_prompt_length=1)
    with pytest.raises(ValueError, match=r"prompts need a column `prompt`.*found \['text'\]"):
        prepare_prompts(Dataset.from_list([{"text": "a"}]), tokenizer, 4)


def test_an_end_of_sequence_that_also_pads_needs_a_mask(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    for ids in ([20, 21, end], [end, 20, 21]):
        with pytest.raises(ValueError, match="row 0: the prompt begins or ends with '<eot>'.*Add that column"):
            prepare_prompts(Dataset.from_list([{"input_ids": ids}]), tokenizer, 8)
    rows = [
        {"input_ids": [end, 20, end], "attention_mask": [0, 1, 1]},
        {"input_ids": [20, 21], "attention_mask": [1, 1]},
    ]
    assert prepare_prompts(Dataset.from_list(rows), tokenizer, 8)["prompt_input_ids"] == [[20, end], [20, 21]]


def test_token_ids_train_as_the_texts_that_they_encode(make_trainer, prompts, tokenizer):
    ids = Dataset.from_list([{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in prompts])
    weights = []
    for data in (prompts, ids):
        trainer = make_trainer(data=data, max_steps=2)
        trainer.train()
        weights.append(list(trainer.model.parameters()))
    assert all(torch.equal(first, second) for first, second in zip(*weights, strict=True))


def test_conversations_are_prompts_too(make_trainer, tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}。{% endif %}"
    )
    data = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": text}]} for text in "很好 不错 房间 很大".split()]
    )
    seen = []

    def reward(prompts, completions, **columns):
        seen.extend(prompts)
        return [float(len(completion)) for completion in completions]

    value_model = make_trainer().model.value_model
    trainer = make_trainer(
        models=dict(reward_model=reward, value_model=value_model, eval_dataset=None), data=data, max_steps=1
    )
    trainer.train()
    assert seen[0][0]["role"] == "user"
    assert tokenizer.decode(trainer.train_dataset[0]["prompt_input_ids"]) == "很好。"


def test_every_text_comes_once_before_any_comes_again_over_all_ranks():
    rows = [text_rows(step, 2, 7, rank, 2, seed=5) for step in range(7) for rank in (0, 1)]
    flat = [row for part in rows for row in part]
    assert all(sorted(flat[start : start + 7]) == list(range(7)) for start in range(0, 28, 7))
    assert flat[:7] != flat[7:14]
    assert text_rows(3, 2, 7, 1, 2, seed=5) == rows[7]


@pytest.fixture
def texts(reviews) -> Dataset:
    return Dataset.from_list([{"text": review["completion"][:12]} for review in reviews])


def text_loss_by_hand(model, tokenizer, rows) -> torch.Tensor:
    """Mean negative log-likelihood of all tokens but the first of each text, one text at a time."""
    losses = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        losses += [
            -logprobs[place, token]
            for place, token in enumerate(row["input_ids"][1:])
            if row["completion_mask"][place + 1]
        ]
    return torch.stack(losses).mean()


def test_the_loss_on_texts_and_its_gradient_are_those_of_the_language_model(make_trainer, policy, tokenizer, texts):
    options = dict(max_steps=1, num_ppo_epochs=1, optim="sgd", max_grad_norm=0.0, learning_rate=0.1)
    plain = make_trainer(**options)
    plain.train()
    mixed = make_trainer(models=dict(ptx_dataset=texts), ptx_coef=2.0, **options)
    mixed.train()
    policy.eval()
    rows = [mixed.texts.texts[row] for row in text_rows(0, 2, len(texts), 0, 1, seed=42)]
    expected = text_loss_by_hand(policy, tokenizer, rows)
    (2.0 * expected).backward()
    logged = next(entry for entry in mixed.state.log_history if "policy/ptx_loss" in entry)
    assert logged["policy/ptx_loss"] == pytest.approx(expected.item(), rel=1e-5)
    gradients = dict(policy.named_parameters())
    start = dict(plain.model.policy.named_parameters())
    for name, parameter in mixed.model.policy.named_parameters():
        # One step of SGD: what the texts add to the step is -0.1 times their gradient.
        torch.testing.assert_close(parameter - start[name], -0.1 * gradients[name].grad, atol=2e-6, rtol=1e-4, msg=name)


def test_of_demonstrations_only_the_completion_is_learnt(make_trainer, reviews, policy, tokenizer):
    data = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"][:8]} for row in reviews])
    trainer = make_trainer(models=dict(ptx_dataset=data), max_steps=1)
    trainer.train()
    rows = [trainer.texts.texts[row] for row in text_rows(0, 2, len(trainer.texts.texts), 0, 1, seed=42)]
    assert all(0 in row["completion_mask"] for row in rows)
    with torch.no_grad():
        expected = text_loss_by_hand(policy.eval(), tokenizer, rows)
    logged = next(entry for entry in trainer.state.log_history if "policy/ptx_loss" in entry)
    assert logged["policy/ptx_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_accumulation_does_not_change_the_step_on_texts(make_trainer, texts, layout):
    weights = []
    for options in (
        dict(per_device_train_batch_size=4, num_rollout_batches=1),
        dict(per_device_train_batch_size=1, num_rollout_batches=4, gradient_accumulation_steps=4),
    ):
        trainer = make_trainer(
            layout,
            models=dict(ptx_dataset=texts),
            generation_batch_size=4,
            num_ppo_epochs=1,
            max_steps=1,
            optim="sgd",
            max_grad_norm=0.0,
            **options,
        )
        trainer.train()
        weights.append({name: parameter.detach() for name, parameter in trainer.model.named_parameters()})
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], atol=1e-6, rtol=1e-5, msg=name)


def test_overlong_texts_are_left_out_and_counted(make_trainer, caplog):
    data = Dataset.from_list([{"text": "很好"}, {"text": "房间" * 100}])
    trainer = make_trainer(models=dict(ptx_dataset=data))
    assert len(trainer.texts.texts) == 1
    assert "1 of 2 texts left out" in caplog.text
    with pytest.raises(ValueError, match=r"ptx_dataset needs a column `text`.*found \['words'\]"):
        make_trainer(models=dict(ptx_dataset=Dataset.from_list([{"words": "a"}])))
