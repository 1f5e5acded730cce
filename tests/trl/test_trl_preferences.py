"""TRL's RewardTrainer, DPOTrainer and KTOTrainer on GPTPangu."""

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig
from trained import ADAPTED_MODULES, adapted_modules, assert_saves_what_it_computes, assert_trains_only, is_adapter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

import pangu_trl


def check_policy(trainer, lora, tokenizer, prompt: str) -> None:
    """Checks what DPO and KTO have in common: only the policy, or only its adapter, learns, and can be loaded."""
    if lora is None:
        assert isinstance(trainer.model, pangu_trl.GPTPanguForCausalLM)
        reference = {name: parameter.clone() for name, parameter in trainer.ref_model.named_parameters()}
        assert_trains_only(trainer, lambda name: True)
        for name, parameter in trainer.ref_model.named_parameters():
            assert torch.equal(parameter, reference[name]), name
    else:
        assert adapted_modules(trainer.model) == ADAPTED_MODULES
        assert_trains_only(trainer, is_adapter)
    auto_class = AutoModelForCausalLM if lora is None else AutoPeftModelForCausalLM
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert_saves_what_it_computes(trainer, auto_class.from_pretrained, ids)


def test_dpo_trains_and_saves_a_policy_or_an_adapter(start_dir, tokenizer, pairs, options, lora):
    trainer = DPOTrainer(
        model=str(start_dir),
        args=options(DPOConfig, disable_dropout=True),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=lora,
    )
    check_policy(trainer, lora, tokenizer, pairs[0]["prompt"])
    # Policy and reference agree before the first update: the loss is -log sigmoid(0) = log 2.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_kto_trains_and_saves_a_policy_or_an_adapter(start_dir, tokenizer, reviews, options, lora):
    judged = [
        {
            "prompt": review["prompt"],
            "completion": review["completion"],
            "label": review["sentiment"] == "positive",
        }
        for review in reviews
    ]
    trainer = KTOTrainer(
        model=str(start_dir),
        args=options(KTOConfig, disable_dropout=True),
        train_dataset=Dataset.from_list(judged),
        processing_class=tokenizer,
        peft_config=lora,
    )
    check_policy(trainer, lora, tokenizer, reviews[0]["prompt"])


@pytest.mark.parametrize("with_adapter", [False, True], ids=["full", "lora"])
def test_reward_training_moves_and_saves_the_score_head(start_dir, tokenizer, pairs, options, with_adapter):
    model = AutoModelForSequenceClassification.from_pretrained(start_dir, num_labels=1)
    assert isinstance(model, pangu_trl.GPTPanguForSequenceClassification)
    trainer = RewardTrainer(
        model=model,
        args=options(RewardConfig, max_length=128),
        train_dataset=pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, task_type="SEQ_CLS") if with_adapter else None,
    )
    ids = tokenizer([pairs[0]["chosen"]], return_tensors="pt")["input_ids"]
    if not with_adapter:
        assert_trains_only(trainer, lambda name: True)
        assert_saves_what_it_computes(trainer, AutoModelForSequenceClassification.from_pretrained, ids)
        return
    assert adapted_modules(trainer.model) == ADAPTED_MODULES
    assert_trains_only(trainer, lambda name: is_adapter(name) or ".score.modules_to_save." in name)
    # The base of this adapter is a causal language model, so the number of scores must be said again.
    assert_saves_what_it_computes(
        trainer, lambda folder: AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1), ids
    )
