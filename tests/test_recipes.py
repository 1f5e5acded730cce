"""The three recipes as a user starts them: `accelerate launch`, on one process and on two with DeepSpeed ZeRO-3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pangu_trl.data import write_jsonl
from pangu_trl.reward.scoring import score_responses

ROOT = Path(__file__).parent.parent
COMMON = {
    "max_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "per_device_eval_batch_size": 4,
    "seed": 3,
}


def launch(accelerate_config: str, recipe: str, expect_success: bool = True, **options) -> subprocess.CompletedProcess:
    """Runs a recipe in its own process group, so that nothing of it outlives the test."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / accelerate_config), "--main_process_port", "0"]
    command += [str(ROOT / "recipes" / recipe)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if expect_success:
        assert result.returncode == 0, result.stderr[-6000:]
    else:
        assert result.returncode != 0
    return result


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tokenizer_dir, reviews, rankings) -> Path:
    """Model, data and tokenizer files for the recipes."""
    import pangu_trl

    folder = tmp_path_factory.mktemp("workspace")
    tokenizer = pangu_trl.GPTPanguTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = pangu_trl.GPTPanguConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=128
    )
    pangu_trl.GPTPanguForCausalLM(config).save_pretrained(folder / "base")
    write_jsonl(folder / "demonstrations.jsonl", reviews)
    write_jsonl(folder / "rankings.jsonl", list(rankings))
    write_jsonl(folder / "prompts.jsonl", [{"prompt": review["prompt"]} for review in reviews])
    return folder


def losses(output_dir: Path) -> list[float]:
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module", params=["cpu.yaml", "zero3_cpu.yaml"], ids=["one process", "ZeRO-3 x 2"])
def pipeline(request, workspace) -> Path:
    """Runs all three stages, each on what the stage before it saved, with a global batch of 4 everywhere."""
    run = workspace / request.param.removesuffix(".yaml")
    batch = 4 if request.param == "cpu.yaml" else 2
    common = COMMON | {"per_device_train_batch_size": batch}
    launch(
        request.param,
        "sft.py",
        **common,
        model_name_or_path=workspace / "base",
        train_data=workspace / "demonstrations.jsonl",
        eval_data=workspace / "demonstrations.jsonl",
        max_length=128,
        output_dir=run / "sft",
    )
    launch(
        request.param,
        "reward.py",
        **common,
        model_name_or_path=run / "sft",
        train_data=workspace / "rankings.jsonl",
        eval_data=workspace / "rankings.jsonl",
        max_length=128,
        output_dir=run / "reward",
    )
    for name, lora in (("ppo", "false"), ("ppo-lora", "true")):
        launch(
            request.param,
            "ppo.py",
            **common,
            model_name_or_path=run / "sft",
            reward_model=run / "reward",
            train_data=workspace / "prompts.jsonl",
            eval_data=workspace / "prompts.jsonl",
            max_prompt_length=48,
            max_completion_length=8,
            num_ppo_epochs=2,
            use_peft=lora,
            lora_r=4,
            output_dir=run / name,
        )
    return run


def test_every_stage_saves_a_model_that_loads_and_works(pipeline, tokenizer):
    ids = torch.randint(10, 200, (2, 9))
    for stage in ("sft", "ppo"):
        model = AutoModelForCausalLM.from_pretrained(pipeline / stage).eval()
        assert torch.isfinite(model(ids).logits).all()
        assert len(losses(pipeline / stage)) == 2
    assert (pipeline / "ppo-lora" / "adapter_model.safetensors").is_file()
    reward_model = AutoModelForSequenceClassification.from_pretrained(pipeline / "reward").eval()
    scores = score_responses(reward_model, tokenizer, ["总体来说，"] * 2, ["还不错。", "非常差！"], batch_size=2)
    assert scores[0] != scores[1]
    critic = AutoModelForSequenceClassification.from_pretrained(pipeline / "ppo" / "value_model").eval()
    assert torch.isfinite(critic(ids).logits).all()


def test_two_sharded_processes_take_the_steps_of_one(workspace):
    """SFT and reward losses are equal; PPO samples other answers on other ranks, its own tests cover the rest."""
    for stage in ("sft", "reward"):
        one, two = losses(workspace / "cpu" / stage), losses(workspace / "zero3_cpu" / stage)
        assert two == pytest.approx(one, abs=2e-4), stage
