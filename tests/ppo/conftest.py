"""A PPO trainer on tiny random models, in every layout of models."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from pangu_trl import GPTPanguForSequenceClassification, PPOConfig, PPOTrainer

LAYOUTS = ["full", "lora", "value head", "one backbone"]
LORA_LAYOUTS = ["lora", "one backbone"]


@pytest.fixture(params=LAYOUTS)
def layout(request) -> str:
    """Which models share a backbone; a test that takes it runs in all layouts."""
    return request.param


@pytest.fixture
def reward_adapter(policy, tiny_config, tokenizer, tmp_path) -> Path:
    """Folder of a LoRA reward model on the policy, which is saved beside it and knows that it comes from there."""
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    policy.name_or_path = policy.config._name_or_path = str(tmp_path / "base")
    config = copy.deepcopy(tiny_config)
    config.num_labels = 1
    base = GPTPanguForSequenceClassification(config)
    base.transformer.load_state_dict(policy.transformer.state_dict())
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=4, task_type="SEQ_CLS"))
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5 if "score" in name else 0.2)
    adapted.save_pretrained(tmp_path / "reward_adapter")
    return tmp_path / "reward_adapter"


@pytest.fixture
def make_trainer(request, policy, reward_model, tokenizer, prompts, tmp_path):
    """Builds trainers on equal copies of the same models; options change the configuration."""

    def make(layout: str = "full", models: dict | None = None, data=None, **options) -> PPOTrainer:
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
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            share_backbone={"value head": "value", "one backbone": "all"}.get(layout, "none"),
        )
        if options.get("advantage_estimator", "gae") == "gae":
            defaults["critic_learning_rate"] = 3e-3
        adapter = request.getfixturevalue("reward_adapter") if layout == "one backbone" else None
        arguments = dict(
            model=copy.deepcopy(policy),
            reward_model=adapter or copy.deepcopy(reward_model),
            train_dataset=prompts if data is None else data,
            eval_dataset=prompts,
            processing_class=tokenizer,
            peft_config=policy_lora() if layout in LORA_LAYOUTS else None,
        )
        return PPOTrainer(args=PPOConfig(**defaults | options), **arguments | (models or {}))

    return make


@pytest.fixture(scope="session")
def _models_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def models_dir(_models_dir, policy, reward_model, reward_adapter, tokenizer, prompts) -> Path:
    """Folder of the models and prompts of runs in other processes."""
    if not (_models_dir / "policy").exists():
        policy.save_pretrained(_models_dir / "policy")
        shutil.copytree(reward_adapter, _models_dir / "reward_adapter")
        config = _models_dir / "reward_adapter" / "adapter_config.json"
        settings = json.loads(config.read_text("utf-8")) | {"base_model_name_or_path": str(_models_dir / "policy")}
        config.write_text(json.dumps(settings), "utf-8")
        reward_model.save_pretrained(_models_dir / "reward_model")
        tokenizer.save_pretrained(_models_dir / "tokenizer")
        (_models_dir / "prompts.json").write_text(json.dumps(list(prompts)), "utf-8")
    return _models_dir


def policy_lora() -> LoraConfig:
    return LoraConfig(r=4, lora_dropout=0.1, task_type="CAUSAL_LM")


@pytest.fixture
def separate_models(policy, tiny_config, reward_adapter):
    """The models of the layout with one backbone, each with a base of its own: critic and reward model."""

    def adapted(is_trainable: bool) -> PeftModel:
        config = copy.deepcopy(tiny_config)
        config.num_labels = 1
        base = GPTPanguForSequenceClassification(config)
        base.transformer.load_state_dict(policy.transformer.state_dict())
        return PeftModel.from_pretrained(base, reward_adapter, is_trainable=is_trainable)

    return lambda: dict(value_model=adapted(True), reward_model=adapted(False))
