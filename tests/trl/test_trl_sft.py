"""TRL's SFTTrainer, and transformers' Trainer, on GPTPangu."""

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM
from trained import ADAPTED_MODULES, adapted_modules, assert_saves_what_it_computes, assert_trains_only, is_adapter
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import pangu_trl


@pytest.fixture(scope="session")
def demonstrations(reviews) -> Dataset:
    return Dataset.from_list([{name: review[name] for name in ("prompt", "completion")} for review in reviews])


def test_sft_trains_and_saves_a_model_or_an_adapter(start_dir, tokenizer, demonstrations, options, lora):
    trainer = SFTTrainer(
        model=str(start_dir),
        args=options(SFTConfig),
        train_dataset=demonstrations,
        processing_class=tokenizer,
        peft_config=lora,
    )
    if lora is None:
        assert isinstance(trainer.model, pangu_trl.GPTPanguForCausalLM)
        assert_trains_only(trainer, lambda name: True)
    else:
        assert adapted_modules(trainer.model) == ADAPTED_MODULES
        assert_trains_only(trainer, is_adapter)
    auto_class = AutoModelForCausalLM if lora is None else AutoPeftModelForCausalLM
    ids = tokenizer(demonstrations[0]["prompt"], return_tensors="pt")["input_ids"]
    assert_saves_what_it_computes(trainer, auto_class.from_pretrained, ids)


def first_step(start_dir, tokenizer, demonstrations, training_args) -> tuple[int, list[float]]:
    """Returns the rows of a batch of all demonstrations, and loss and gradient norm of a step without dropout."""
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(start_dir, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        args=training_args,
        train_dataset=demonstrations,
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()
    return len(batch["input_ids"]), [trainer.state.log_history[0][name] for name in ("loss", "grad_norm")]


@pytest.mark.parametrize(
    "layout",
    [
        dict(packing=True, packing_strategy="bfd", max_length=128),
        dict(padding_free=True, max_length=None),
    ],
    ids=["packed", "padding-free"],
)
def test_sft_learns_the_same_from_sequences_laid_end_to_end(start_dir, tokenizer, demonstrations, options, layout):
    every = dict(per_device_train_batch_size=len(demonstrations), max_steps=1)
    rows, expected = first_step(start_dir, tokenizer, demonstrations, options(SFTConfig, max_length=None, **every))
    assert rows == len(demonstrations)
    rows, found = first_step(start_dir, tokenizer, demonstrations, options(SFTConfig, **every, **layout))
    assert rows == 1
    assert found == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_compares_logits_with_the_next_token(policy, tokenizer, reviews, options):
    ids = tokenizer(reviews[0]["completion"], return_tensors="pt")["input_ids"]
    trainer = Trainer(model=policy.eval(), args=options(TrainingArguments, label_smoothing_factor=0.1))
    with torch.no_grad():
        loss = trainer.compute_loss(policy, {"input_ids": ids, "labels": ids.clone()})
        logprobs = policy(ids).logits[0, :-1].log_softmax(dim=-1)
    likelihood = logprobs[range(ids.shape[1] - 1), ids[0, 1:]].mean()
    # 0.9 of the weight on the next token, 0.1 spread evenly over the vocabulary.
    torch.testing.assert_close(loss, -0.9 * likelihood - 0.1 * logprobs.mean())
