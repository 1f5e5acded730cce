"""A PPO trainer on tiny random models."""

import copy

import pytest
from peft import LoraConfig

from pangu_trl import PPOConfig, PPOTrainer


@pytest.fixture
def make_trainer(policy, reward_model, tokenizer, prompts, tmp_path):
    """Builds trainers on equal copies of the same models; options change the configuration."""

    def make(lora: bool = False, models: dict | None = None, data=None, **options) -> PPOTrainer:
        defaults = dict(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=2,
            per_device_eval_batch_size=4,
            num_rollout_batches=2,
            num_ppo_epochs=2,
            max_prompt_length=48,
            max_completion_length=8,
            max_steps=8,
            learning_rate=1e-3,
            critic_learning_rate=3e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        arguments = dict(
            model=copy.deepcopy(policy),
            reward_model=copy.deepcopy(reward_model),
            train_dataset=prompts if data is None else data,
            eval_dataset=prompts,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, lora_dropout=0.1, task_type="CAUSAL_LM") if lora else None,
        )
        return PPOTrainer(args=PPOConfig(**defaults | options), **arguments | (models or {}))

    return make
