"""The parts of benchmarks/gpu.py that run trainers: a step of the reward model, a rollout of PPO."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_bench import EOS, FAMILIES, PAD, Bench, Size, Skip
from reward import all_pairs
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

ROOT = Path(__file__).parent.parent
NUM_ANSWERS = 4
LAYOUTS = ("none", "value", "all")


def reward(bench: Bench, name: str, size: Size) -> None:
    """An optimiser step of the reward model."""
    for family in FAMILIES:
        for variant in ("shared", "plain", "trl"):
            bench.case(
                "reward",
                f"{family} {name} {variant}",
                lambda family=family, variant=variant: reward_case(bench, size, family, variant),
            )


def reward_case(bench: Bench, size: Size, family: str, variant: str) -> dict[str, Any]:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(size.config(family))
    rankings = draw_rankings(size)
    options = training_options(bench) | {
        "per_device_train_batch_size": size.batch,
        "max_steps": 3,
        "max_length": size.tokens,
        "logging_steps": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        options["output_dir"] = folder
        if variant == "trl":
            options["per_device_train_batch_size"] *= NUM_ANSWERS * (NUM_ANSWERS - 1) // 2
            trainer_class, arguments, rankings = RewardTrainer, RewardConfig(**options), all_pairs(rankings)
        else:
            trainer_class = KWiseRewardTrainer
            arguments = KWiseRewardConfig(**options, prefix_sharing=variant == "shared")
        timer = step_timer(bench)
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rankings),
            processing_class=make_tokenizer(size.vocab_size),
            callbacks=[timer],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"rankings/s": size.batch / min(timer.seconds[1:]), "first loss": losses[0]}


def draw_rankings(size: Size) -> list[dict[str, Any]]:
    """Random tokens: a prompt of three quarters of a sequence, K answers of a quarter with scores of their own."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(10, size.vocab_size, (length,), generator=generator).tolist()

    answer = size.tokens // 4
    return [
        {
            "prompt_input_ids": draw(size.tokens - answer),
            "response_input_ids": [[*draw(answer - 1), EOS] for _ in range(NUM_ANSWERS)],
            "scores": [float(score) for score in reversed(range(NUM_ANSWERS))],
        }
        for _ in range(size.batch)
    ]


def step_timer(bench: Bench) -> Any:
    """A callback that counts the seconds of every optimiser step."""
    from transformers import TrainerCallback

    class StepTimer(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            bench.wait()
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            bench.wait()
            self.seconds.append(time.perf_counter() - self.started)

    return StepTimer()


def training_options(bench: Bench) -> dict[str, Any]:
    return {
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "use_cpu": not bench.on_accelerator,
        "bf16": bench.on_accelerator,
        "activation_checkpointing": bench.on_accelerator,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def make_tokenizer(vocab_size: int) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=f"w{EOS}", pad_token=f"w{PAD}", padding_side="left"
    )


def ppo(bench: Bench, name: str, size: Size) -> None:
    """A rollout, and what is learnt from it, by layout; with LoRA where policy, critic and reward share a backbone."""
    for family in FAMILIES:
        for layout in LAYOUTS:
            bench.case(
                "ppo",
                f"{family} {name} share_backbone {layout}",
                lambda family=family, layout=layout: ppo_case(bench, size, family, layout),
            )


def ppo_case(bench: Bench, size: Size, family: str, layout: str) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model

    from pangu_trl import PPOConfig, PPOTrainer

    options = training_options(bench) | {
        "per_device_train_batch_size": 2 * size.batch,
        "generation_batch_size": 8 * size.batch,
        "num_rollout_batches": 4,
        "num_ppo_epochs": 1,
        # Two rollouts; the log is that of the second.
        "max_steps": 8,
        "logging_steps": 4,
        "max_prompt_length": size.tokens // 2,
        "max_completion_length": size.tokens // 4,
        "share_backbone": layout,
    }
    lora = {"r": 16, "target_modules": "all-linear"}
    with tempfile.TemporaryDirectory() as folder:
        config = size.config(family)
        planned = plan_gib(
            Path(folder), config, options | ({"use_peft": True, "lora_r": 16} if layout == "all" else {})
        )
        if bench.on_accelerator and planned > total_gib(bench.device):
            raise Skip(f"the plan is {planned:.1f} GiB, the device has {total_gib(bench.device):.1f}")
        torch.manual_seed(0)
        policy = AutoModelForCausalLM.from_config(config)
        judge = AutoModelForSequenceClassification.from_config(config)
        peft_config = None
        if layout == "all":
            policy.name_or_path = judge.name_or_path = "the random base model of this benchmark"
            get_peft_model(judge, LoraConfig(task_type="SEQ_CLS", **lora)).save_pretrained(f"{folder}/judge")
            judge, peft_config = f"{folder}/judge", LoraConfig(task_type="CAUSAL_LM", **lora)
        prompts = torch.randint(
            10, size.vocab_size, (16 * size.batch, size.tokens // 2), generator=torch.Generator().manual_seed(1)
        )
        trainer = PPOTrainer(
            model=policy,
            args=PPOConfig(output_dir=folder, **options),
            reward_model=judge,
            train_dataset=Dataset.from_list([{"input_ids": row} for row in prompts.tolist()]),
            processing_class=make_tokenizer(size.vocab_size),
            peft_config=peft_config,
        )
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "time/generation" in entry][-1]
    seconds = {f"{part} s": log[f"time/{part}"] for part in ("generation", "scoring", "learning")}
    return seconds | {"answers": 8 * size.batch, "plan GiB": planned}


def plan_gib(folder: Path, config: PreTrainedConfig, options: dict[str, Any]) -> float:
    """What `pangu-trl plan` says of a PPO run with these options on one device."""
    from pangu_trl.planning.launch import read_launch
    from pangu_trl.planning.memory import Plan
    from pangu_trl.planning.settings import read_settings

    config.save_pretrained(folder / "model")
    recipe = folder / "ppo.yaml"
    recipe.write_text(yaml.safe_dump(options | {"output_dir": str(folder), "reward_model": "judge"}), "utf-8")
    settings = read_settings(recipe, model=str(folder / "model"), stage="ppo")
    launcher = "cpu" if options["use_cpu"] else "single_gpu"
    return Plan(settings, read_launch(ROOT / f"accelerate_configs/{launcher}.yaml"), config).peak() / 2**30


def total_gib(device: torch.device) -> float:
    """Memory of the device."""
    return torch.get_device_module(device).get_device_properties(device).total_memory / 2**30
