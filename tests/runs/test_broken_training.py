"""Training that is broken stops in every stage, and numbers that options cannot have are refused by name."""

import dataclasses
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, GRPOConfig, ModelConfig, RewardConfig, SFTConfig, SFTTrainer

from pangu_trl import KWiseRewardConfig, PPOConfig
from pangu_trl.runs.ranges import check_numbers
from pangu_trl.runs.start import guard, parse_options

CONFIGS = {
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
    "trl reward": RewardConfig,
    "reward": KWiseRewardConfig,
    "ppo": PPOConfig,
}
BAD = {
    "learning_rate": [-1e-6, math.nan, math.inf],
    "weight_decay": [-0.1, math.nan],
    "num_train_epochs": [-1, 0, math.nan],
    "max_steps": [-2, 0],
    "gradient_accumulation_steps": [0],
    "per_device_train_batch_size": [0],
    "adam_epsilon": [0.0, -1e-8],
    "adam_beta2": [1.5, math.nan],
    "max_grad_norm": [-1.0, math.nan],
    "beta": [-0.1, math.nan],
    "center_rewards_coefficient": [-0.1, math.nan],
    "margin_coefficient": [-0.1, math.nan],
    "kl_coef": [-0.05, math.nan, math.inf],
    "vf_coef": [-0.1, math.nan],
    "critic_learning_rate": [-1e-6, math.nan, math.inf],
    "critic_weight_decay": [-0.1],
    "missing_eos_penalty": [-1.0, math.nan],
    "short_completion_penalty": [-1.0],
    "ptx_coef": [-1.0, math.nan],
    "reward_clip": [0.0, math.nan, math.inf],
    "adaptive_kl_target": [0.0, math.nan],
    "cliprange": [0.0, math.nan],
    "gamma": [1.1, -0.1, math.nan],
    "lam": [1.1, math.nan, "0.9", None],
    "temperature": [0.0, math.nan, math.inf],
    "top_p": [1.5, math.nan],
    "top_k": [-5],
    "reward_weights": [[1.0, math.nan]],
    "seed": [-1],
    "save_steps": [0],
    # What is no number, no whole number or no switch.
    "max_completion_length": [1.5, "16", True, None],
    "num_ppo_epochs": [1.5],
    "critic_warmup_steps": [True],
    "ema_decay": ["0.9"],
    "whiten_rewards": ["no", None],
    "bf16_full_eval": ["false"],
}
# Options that may be unset in some stages.
MAY_BE_NONE = {("dpo", "max_completion_length"), ("grpo", "max_completion_length")}
CASES = [
    (stage, name, value)
    for stage, config in CONFIGS.items()
    for name, values in BAD.items()
    if name in {field.name for field in dataclasses.fields(config)}
    for value in values
    if value is not None or (stage, name) not in MAY_BE_NONE
]


@pytest.mark.parametrize(("stage", "name", "value"), CASES, ids=lambda part: str(part))
def test_a_number_out_of_range_is_refused_by_name(stage, name, value, tmp_path):
    with pytest.raises(ValueError, match=name):
        check_numbers(CONFIGS[stage](output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: value}))


@pytest.mark.parametrize("weights", [["a"], [], "1"])
def test_weights_of_rewards_are_numbers(weights, tmp_path):
    with pytest.raises(ValueError, match="reward_weights must be a list of numbers, one for each reward"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, reward_weights=weights)


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_defaults_are_in_their_ranges(stage, tmp_path):
    check_numbers(CONFIGS[stage](output_dir=str(tmp_path), use_cpu=True, bf16=False))


def test_the_scripts_refuse_them_before_anything_is_loaded(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--learning_rate", "nan"]
    with pytest.raises(ValueError, match="SFTConfig: learning_rate must be 0 or more; got nan"):
        parse_options(SFTConfig, ModelConfig, argv=argv)
    argv = ["--output_dir", str(tmp_path), "--use_peft", "--lora_r", "0"]
    with pytest.raises(ValueError, match="ModelConfig: lora_r must be 1 or more; got 0"):
        parse_options(SFTConfig, ModelConfig, argv=argv)


OPTIONS = dict(
    per_device_train_batch_size=2,
    max_steps=3,
    logging_steps=1,
    save_strategy="no",
    use_cpu=True,
    bf16=False,
    report_to="none",
    disable_tqdm=True,
)


def broken(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    return model


def config(tokenizer) -> LlamaConfig:
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    ids = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids)


def sft(tokenizer, folder):
    data = Dataset.from_list([{"input_ids": [20, 21, 22], "labels": [20, 21, 22]}] * 4)
    args = SFTConfig(output_dir=folder, **OPTIONS)
    return SFTTrainer(broken(LlamaForCausalLM(config(tokenizer))), args, train_dataset=data, processing_class=tokenizer)


def dpo(tokenizer, folder):
    from trl import DPOTrainer

    class EncodedPairsTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    data = Dataset.from_list([{"prompt_ids": [20], "chosen_ids": [21, 9], "rejected_ids": [22, 9]}] * 4)
    model, reference = broken(LlamaForCausalLM(config(tokenizer))), LlamaForCausalLM(config(tokenizer))
    args = DPOConfig(output_dir=folder, **OPTIONS)
    return EncodedPairsTrainer(model, reference, args, train_dataset=data, processing_class=tokenizer)


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_loss_that_is_no_number_stops_the_run(make, tokenizer, tmp_path):
    trainer = make(tokenizer, str(tmp_path))
    guard(trainer)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="Trainer: the norm of the gradients is nan at step 1, so training is broken"):
        trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_coarse_weights_are_warned_of_or_refused(dtype, tokenizer, tmp_path, caplog):
    trainer = sft(tokenizer, str(tmp_path))
    trainer.model.to(dtype)
    if dtype == torch.float16:
        with pytest.raises(
            ValueError, match="SFTTrainer: weights that learn are float16, .* Load the model with dtype"
        ):
            guard(trainer)
        return
    guard(trainer)
    warned = [record.getMessage() for record in caplog.records if "are bfloat16" in record.getMessage()]
    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert len(warned) == (dtype == torch.bfloat16)
    assert all(f"SFTTrainer: {total} of {total} weights" in message for message in warned)


def test_a_frozen_base_in_bfloat16_is_no_matter(tokenizer, tmp_path, caplog):
    trainer = sft(tokenizer, str(tmp_path))
    trainer.model.to(torch.bfloat16).requires_grad_(False)
    trainer.model.model.norm.weight.data = trainer.model.model.norm.weight.data.float()
    trainer.model.model.norm.weight.requires_grad_(True)
    guard(trainer)
    assert not [record for record in caplog.records if "bfloat16" in record.getMessage()]


@pytest.mark.parametrize("bf16", [True, False])
def test_a_head_beside_an_adapter_learns_in_float32_where_the_run_computes_in_bfloat16(
    bf16, tokenizer, tmp_path, caplog
):
    base = LlamaForCausalLM(config(tokenizer)).to(torch.bfloat16)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    data = Dataset.from_list([{"input_ids": [20, 21, 22], "labels": [20, 21, 22]}] * 4)
    args = SFTConfig(output_dir=tmp_path, **OPTIONS | {"learning_rate": 1e-6, "bf16": bf16})
    trainer = SFTTrainer(get_peft_model(base, lora), args, train_dataset=data, processing_class=tokenizer)
    head = trainer.model.base_model.model.lm_head.modules_to_save["default"].weight
    before = head.detach().float()
    guard(trainer)
    trainer.train()
    moved = (head.detach().float() != before).float().mean()
    warned = [record.getMessage() for record in caplog.records if "are bfloat16" in record.getMessage()]
    if bf16:
        assert head.dtype == torch.float32 and moved > 0.5 and not warned
    else:
        assert head.dtype == torch.bfloat16 and moved < 0.1
        assert len(warned) == 1 and "set bf16 to true" in warned[0] and "use_peft" not in warned[0]


def test_sound_training_goes_on(tokenizer, tmp_path):
    trainer = sft(tokenizer, str(tmp_path))
    torch.nn.init.ones_(trainer.model.model.norm.weight)
    guard(trainer)
    assert trainer.train().global_step == 3
