"""Models and data that all distributed runs start from, and the options that they share."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pangu_trl
from pangu_trl.data import write_jsonl

sys.path.insert(0, str(Path(__file__).parent))

from launching import run_here

# Random dropout masks and samples differ between one process and two, gradients and greedy answers do not.
SIZES = dict(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    max_position_embeddings=128,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
)
# Five steps: the checkpoint after the third lies in the middle of an epoch, and of a PPO rollout.
STEPS = dict(max_steps=5, save_steps=3, save_strategy="steps", logging_steps=1)
COMMON = STEPS | dict(
    lr_scheduler_type="linear",
    report_to="none",
    disable_tqdm=True,
    seed=3,
    dataloader_drop_last=True,
)
STAGES: dict[str, dict[str, Any]] = {
    "sft": dict(max_length=128, learning_rate=0.3),
    "reward": dict(max_length=128, learning_rate=0.1),
    "ppo": dict(
        max_prompt_length=48,
        max_completion_length=8,
        num_ppo_epochs=2,
        top_k=1,
        learning_rate=0.05,
        critic_learning_rate=0.002,
    ),
    "dpo": dict(max_length=128, learning_rate=0.1),
    "grpo": dict(max_completion_length=8, num_generations=2, learning_rate=0.05),
}
DATA = {"dpo": "reward", "grpo": "ppo"}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, tokenizer_dir, reviews, rankings) -> Path:
    """`base`, a language model; `judge`, a reward model; and data for every stage."""
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer = pangu_trl.GPTPanguTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(0)
    config = pangu_trl.GPTPanguConfig(vocab_size=len(tokenizer), **SIZES)
    pangu_trl.GPTPanguForCausalLM(config).save_pretrained(folder / "base")
    config.num_labels = 1
    judge = pangu_trl.GPTPanguForSequenceClassification(config)
    torch.nn.init.normal_(judge.score.weight, std=0.5)
    judge.save_pretrained(folder / "judge")
    for name in ("base", "judge"):
        tokenizer.save_pretrained(folder / name)
    write_jsonl(folder / "sft.jsonl", reviews)
    write_jsonl(folder / "reward.jsonl", list(rankings))
    write_jsonl(folder / "ppo.jsonl", [{"prompt": review["prompt"]} for review in reviews])
    return folder


@pytest.fixture(scope="session")
def stage_options(workspace):
    """Options of a stage: `stage_options("sft", output_dir, num_processes=2)`."""

    def options(stage: str, output_dir: Path, num_processes: int = 2, **changes: Any) -> dict[str, Any]:
        found = COMMON | STAGES[stage] | {"optim": "sgd", "max_grad_norm": 0}
        found |= {
            "model_name_or_path": workspace / "base",
            "train_data": workspace / f"{DATA.get(stage, stage)}.jsonl",
            "per_device_train_batch_size": 4 // num_processes,
            "output_dir": output_dir,
        }
        if stage in ("ppo", "grpo"):
            found["reward_model"] = workspace / "judge"
        if stage == "reward":
            # A head of known weights: a new one would be random, and zero-initialised parts hide errors.
            found["model_name_or_path"] = workspace / "judge"
        return found | changes

    return options


@pytest.fixture(scope="session")
def one_process(workspace, stage_options):
    """The run of a stage in one process; each is made once."""

    def run(stage: str, **changes) -> Path:
        folder = workspace / "-".join(["one", stage, *map(str, changes.values())])
        if not (folder / "rank-0.json").exists():
            run_here(stage, stage_options(stage, folder, num_processes=1, save_strategy="no") | changes)
        return folder

    return run
