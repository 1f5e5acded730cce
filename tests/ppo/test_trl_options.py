"""Users of TRL 1.12's PPOTrainer move by changing the import."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, HfArgumentParser, default_data_collator
from trl import ModelConfig, ScriptArguments

from pangu_trl import PPOConfig, PPOTrainer
from pangu_trl.ppo.trl_config import TRLPPOConfig

# Fields of trl 1.12.0's PPOConfig beside those of transformers' TrainingArguments.
TRL_FIELDS = """
dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size num_sample_generations
response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path world_size num_total_batches
micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size push_to_hub reward_model_path
model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef cliprange_value
gamma lam ds3_gather_for_generation learning_rate
""".split()


def test_the_table_has_every_field():
    table = (Path(__file__).parents[2] / "docs" / "migrating-from-trl.md").read_text("utf-8")
    assert [name for name in TRL_FIELDS if f"`{name}`" not in table] == []


def test_trls_fields_become_ours(tmp_path):
    config = PPOConfig.from_trl(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        total_episodes=20,
        response_length=12,
        num_ppo_epochs=3,
        stop_token="eos",
        sft_model_path="somewhere",
    )
    assert (config.max_completion_length, config.temperature, config.learning_rate) == (12, 0.7, 3e-6)
    assert (config.critic_learning_rate, config.reward_clip, config.generation_batch_size) == (3e-6, None, 64)
    # 8 answers a rollout: 20 episodes are 3 rollouts of 3 passes of one step.
    assert (config.num_rollout_batches, config.gradient_accumulation_steps, config.max_steps) == (2, 2, 9)


def test_the_option_names_of_trls_example_script_are_parsed(tmp_path):
    words = """--dataset_name trl-internal-testing/descriptiveness-sentiment-trl-style --learning_rate 3e-6
        --num_ppo_epochs 3 --num_mini_batches 1 --per_device_train_batch_size 4 --gradient_accumulation_steps 2
        --total_episodes 20 --model_name_or_path EleutherAI/pythia-1b-deduped --sft_model_path a/policy
        --reward_model_path a/judge --missing_eos_penalty 1.0 --response_length 12 --stop_token eos --use_cpu
        --local_rollout_forward_batch_size 16"""
    parser = HfArgumentParser((ScriptArguments, TRLPPOConfig, ModelConfig))
    _, config, _ = parser.parse_args_into_dataclasses([*words.split(), "--output_dir", str(tmp_path)])
    by_name = PPOConfig.from_trl(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_ppo_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        total_episodes=20,
        missing_eos_penalty=1.0,
        response_length=12,
        local_rollout_forward_batch_size=16,
    )
    assert (config.sft_model_path, config.reward_model_path) == ("a/policy", "a/judge")
    run = {"logging_dir", "run_name", "accelerator_config"}
    ours = [field.name for field in dataclasses.fields(PPOConfig) if field.init and field.name not in run]
    assert {name: getattr(config, name) for name in ours} == {name: getattr(by_name, name) for name in ours}
    assert (config.max_completion_length, config.max_steps, config.num_rollout_batches) == (12, 9, 2)
    with pytest.raises(ValueError, match="num_mini_batches has no counterpart"):
        TRLPPOConfig(output_dir=str(tmp_path), use_cpu=True, num_mini_batches=2)


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(batch_size=8), "batch_size was computed by TRL's trainer; leave it out"),
        (dict(stop_token_id=3), "stop_token_id has no counterpart; add the id to model.generation_config"),
        (dict(num_mini_batches=2), "num_mini_batches has no counterpart; set num_rollout_batches"),
        (dict(ref_adapter_name="ref"), "ref_adapter_name has no counterpart; pass ref_model"),
    ],
)
def test_fields_without_a_counterpart_are_refused(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig.from_trl(output_dir=str(tmp_path), use_cpu=True, **option)


def test_trls_constructor_call_trains(policy, reward_model, tokenizer, prompts, tmp_path):
    args = PPOConfig.from_trl(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        total_episodes=4,
        max_prompt_length=48,
        response_length=8,
        learning_rate=1e-3,
    )
    ids = Dataset.from_list([{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in prompts])
    before = copy.deepcopy(policy.state_dict())
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        train_dataset=ids,
        value_model=copy.deepcopy(reward_model),
        data_collator=DataCollatorWithPadding(tokenizer),
        eval_dataset=ids,
        optimizers=(None, None),
        callbacks=[],
        peft_config=None,
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.model.policy.state_dict().items())


def test_calls_that_mean_something_else_are_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="the first argument is the policy; pass args=..., model=..., ... by name"):
        make_trainer(models=dict(model=PPOConfig(output_dir=str(tmp_path), use_cpu=True)))
    with pytest.raises(ValueError, match="a data_collator of your own would have no effect"):
        make_trainer(models=dict(data_collator=default_data_collator))
    with pytest.raises(ValueError, match="pass train_dataset"):
        make_trainer(models=dict(train_dataset=None))
