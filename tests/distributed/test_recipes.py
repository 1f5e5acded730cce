"""The three recipes as a user starts them: `accelerate launch`, on one process and on two with DeepSpeed ZeRO-3."""

from pathlib import Path

import pytest
import torch
from launching import ROOT, launch, logged
from peft.utils import load_peft_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pangu_trl.models.loading import load_with_adapter
from pangu_trl.models.reward_model import load_reward_model, score_responses

COMMON = {
    "max_steps": 2,
    "logging_steps": 1,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "per_device_eval_batch_size": 4,
    "seed": 3,
}
# AdamW and clipped gradients would hide gradients that are too large or too small by a constant factor.
PLAIN_STEPS = {"optim": "sgd", "max_grad_norm": 0, "learning_rate": 0.3, "max_length": 128}
ONE, TWO = "cpu", "zero3_cpu"


@pytest.fixture(scope="module")
def runs(workspace) -> dict[str, Path]:
    """All stages under both configurations, each on what the stage before it saved, with a global batch of 4."""
    folders = {}
    for name, batch, ppo_runs in ((ONE, 4, ["ppo-lora"]), (TWO, 2, ["ppo", "ppo-lora"])):
        config = ROOT / "accelerate_configs" / f"{name}.yaml"
        run = folders[name] = workspace / f"pipeline-{name}"
        common = COMMON | {"per_device_train_batch_size": batch}
        for stage, start in (("sft", workspace / "base"), ("reward", run / "sft")):
            data = workspace / f"{stage}.jsonl"
            paths = dict(model_name_or_path=start, train_data=data, eval_data=data, output_dir=run / stage)
            launch(config, stage, common | PLAIN_STEPS | paths, takes_notes=False)
        for ppo_run in ppo_runs:
            options = dict(
                model_name_or_path=run / "sft",
                reward_model=run / "reward",
                train_data=workspace / "ppo.jsonl",
                eval_data=workspace / "ppo.jsonl",
                learning_rate=1e-3,
                max_prompt_length=48,
                max_completion_length=8,
                num_ppo_epochs=2,
                use_peft=ppo_run == "ppo-lora",
                lora_r=4,
                output_dir=run / ppo_run,
            )
            launch(config, "ppo", common | options, takes_notes=False)
    return folders


def assert_all_weights_load(auto_class, folder: Path) -> torch.nn.Module:
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert torch.isfinite(model.eval()(torch.arange(10, 19).unsqueeze(0)).logits).all()
    return model


@pytest.mark.parametrize("config", [ONE, TWO])
def test_every_stage_saves_a_whole_model_that_works(runs, config):
    run = runs[config]
    for stage in ("sft", "ppo") if config == TWO else ("sft",):
        assert_all_weights_load(AutoModelForCausalLM, run / stage)
        assert len(logged(run / stage, "loss")) == 2
    assert_all_weights_load(AutoModelForSequenceClassification, run / "reward")
    reward_model, tokenizer = load_reward_model(str(run / "reward"))
    scores = score_responses(reward_model, tokenizer, ["总体来说，"] * 2, ["还不错。", "非常差！"], batch_size=2)
    assert scores[0] != scores[1]
    for name in ("ppo", "ppo-lora") if config == TWO else ("ppo-lora",):
        critic = assert_all_weights_load(AutoModelForSequenceClassification, run / name / "value_model")
        assert not torch.equal(critic.score.weight, reward_model.score.weight)


@pytest.mark.parametrize("config", [ONE, TWO])
def test_the_adapter_of_ppo_has_learnt_and_loads(runs, config):
    folder = str(runs[config] / "ppo-lora")
    weights = load_peft_weights(folder, device="cpu")
    learnt = [name for name in weights if "lora_B" in name]
    assert learnt and all(weights[name].any() for name in learnt)
    model, _, missing = load_with_adapter(AutoModelForCausalLM, folder)
    assert missing == []
    loaded = model.state_dict()
    for name, tensor in weights.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor), name


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_two_sharded_processes_take_the_steps_of_one(runs, stage):
    """PPO samples other answers on other ranks, its own tests cover the rest."""
    for name in ("loss", "eval_loss", "grad_norm"):
        one, two = (logged(runs[config] / stage, name) for config in (ONE, TWO))
        assert len(one) == 2
        assert two == pytest.approx(one, rel=1e-4), name
    # The steps are large enough for an error in the gradient's size to show in the losses.
    first, second = logged(runs[ONE] / stage, "eval_loss")
    assert abs(first - second) > 1e-2
