"""The three recipes as a user starts them: `accelerate launch`, on one process and on two with DeepSpeed ZeRO-3."""

from pathlib import Path

import pytest
import torch
from launching import ROOT, launch, logged
from peft.utils import load_peft_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pangu_trl.models.loading import load_with_adapter
from pangu_trl.models.reward_model import load_reward_model, score_responses

pytestmark = pytest.mark.launches

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
# One process alone is what most tests of the stages are.
CONFIGS = [pytest.param(ONE, marks=pytest.mark.slow), TWO]


@pytest.fixture(scope="module")
def runs(workspace):
    """`runs("cpu", "sft")`: the folder of a stage's run, each made once, on what the stages before it saved.

    The stages are sft, reward, ppo-lora and ppo; the global batch is 4.
    """

    def run(name: str, stage: str) -> Path:
        folder = workspace / f"pipeline-{name}" / stage
        if (folder / "trainer_state.json").exists():
            return folder
        options = COMMON | {"per_device_train_batch_size": 4 if name == ONE else 2, "output_dir": folder}
        if stage in ("sft", "reward"):
            start = workspace / "base" if stage == "sft" else run(name, "sft")
            data = workspace / f"{stage}.jsonl"
            options |= PLAIN_STEPS | dict(model_name_or_path=start, train_data=data, eval_data=data)
        else:
            options |= dict(
                model_name_or_path=run(name, "sft"),
                reward_model=run(name, "reward"),
                train_data=workspace / "ppo.jsonl",
                eval_data=workspace / "ppo.jsonl",
                learning_rate=1e-3,
                max_prompt_length=48,
                max_completion_length=8,
                num_ppo_epochs=2,
                use_peft=stage == "ppo-lora",
                lora_r=4,
            )
        launch(ROOT / "accelerate_configs" / f"{name}.yaml", stage.split("-")[0], options, takes_notes=False)
        return folder

    return run


def assert_all_weights_load(auto_class, folder: Path) -> torch.nn.Module:
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert torch.isfinite(model.eval()(torch.arange(10, 19).unsqueeze(0)).logits).all()
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_every_stage_saves_a_whole_model_that_works(runs, config):
    assert_all_weights_load(AutoModelForCausalLM, runs(config, "sft"))
    assert len(logged(runs(config, "sft"), "loss")) == 2
    assert_all_weights_load(AutoModelForSequenceClassification, runs(config, "reward"))
    reward_model, tokenizer = load_reward_model(str(runs(config, "reward")))
    scores = score_responses(reward_model, tokenizer, ["总体来说，"] * 2, ["还不错。", "非常差！"], batch_size=2)
    assert scores[0] != scores[1]
    critic = assert_all_weights_load(AutoModelForSequenceClassification, runs(config, "ppo-lora") / "value_model")
    assert not torch.equal(critic.score.weight, reward_model.score.weight)


@pytest.mark.slow
def test_all_weights_of_a_policy_that_learns_whole_are_saved(runs):
    assert_all_weights_load(AutoModelForCausalLM, runs(TWO, "ppo"))
    assert len(logged(runs(TWO, "ppo"), "loss")) == 2
    assert_all_weights_load(AutoModelForSequenceClassification, runs(TWO, "ppo") / "value_model")


@pytest.mark.parametrize("config", CONFIGS)
def test_the_adapter_of_ppo_has_learnt_and_loads(runs, config):
    folder = str(runs(config, "ppo-lora"))
    weights = load_peft_weights(folder, device="cpu")
    learnt = [name for name in weights if "lora_B" in name]
    assert learnt and all(weights[name].any() for name in learnt)
    model, _, missing = load_with_adapter(AutoModelForCausalLM, folder)
    assert missing == []
    loaded = model.state_dict()
    for name, tensor in weights.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_two_sharded_processes_take_the_steps_of_one(runs, stage):
    """PPO samples other answers on other ranks, its own tests cover the rest."""
    for name in ("loss", "eval_loss", "grad_norm"):
        one, two = (logged(runs(config, stage), name) for config in (ONE, TWO))
        assert len(one) == 2
        assert two == pytest.approx(one, rel=1e-4), name
    # The steps are large enough for an error in the gradient's size to show in the losses.
    first, second = logged(runs(ONE, stage), "eval_loss")
    assert abs(first - second) > 1e-2
