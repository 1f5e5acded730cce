"""Runs on every rank of test_two_processes.py: a few steps of SGD, and runs that are resumed.

    torchrun --nproc_per_node 2 tests/ppo/two_ranks.py FOLDER LAYOUT ZERO_STAGE

FOLDER holds the models, the tokenizer and prompts.json; LAYOUT is full, lora, value_head or one_backbone; ZERO_STAGE 0
is DDP without DeepSpeed. Rank 0 writes the weights that it ends with into FOLDER/LAYOUT-ZERO_STAGE.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import TrainerCallback

from pangu_trl import GPTPanguForCausalLM, GPTPanguForSequenceClassification, GPTPanguTokenizer, PPOConfig, PPOTrainer
from pangu_trl.ppo.generation import generate

# Greedy answers, so that they do not depend on which rank gives them; SGD, so that the step is the gradient.
SAME_STEP = dict(
    top_k=1,
    optim="sgd",
    max_grad_norm=0.0,
    learning_rate=0.05,
    critic_learning_rate=0.002,
    num_ppo_epochs=2,
    max_steps=4,
)
# 12 prompts, 4 a rollout, 2 steps a rollout: 6 steps an epoch. The checkpoint is in the middle of a rollout of the
# second epoch, which has one more; the end is in the third.
RESUMED = dict(
    num_ppo_epochs=2,
    max_steps=14,
    learning_rate=1e-3,
    critic_learning_rate=3e-3,
    adaptive_kl_target=0.1,
    reward_scaling="running",
    ema_decay=0.9,
    critic_warmup_steps=2,
)
CHECKPOINT_STEP = 9


class SigtermOnLastRank(TrainerCallback):
    """Sends the last rank alone SIGTERM in the step that ends at the checkpoint."""

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step + 1 == CHECKPOINT_STEP and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def make_trainer(
    folder: Path,
    name: str,
    layout: str = "full",
    zero_stage: int = 0,
    texts: bool = True,
    reward: Any = None,
    **options,
) -> PPOTrainer:
    """A trainer with a batch of 4 prompts over all ranks, from the models in the folder, or on a reward of its own."""
    if zero_stage:
        import deepspeed

        # On CPU nobody else tells DeepSpeed of the ranks before the models load.
        deepspeed.init_distributed(dist_backend="gloo")
    # The options come first: from then on ZeRO-3 shards models while they load.
    args = PPOConfig(
        output_dir=str(folder / name),
        per_device_train_batch_size=4 // PartialState().num_processes,
        max_prompt_length=48,
        max_completion_length=8,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        share_backbone={"value_head": "value", "one_backbone": "all"}.get(layout, "none"),
        deepspeed=deepspeed_config(zero_stage) if zero_stage else None,
        **{"save_strategy": "no"} | options,
    )
    models = dict(model=GPTPanguForCausalLM.from_pretrained(folder / "policy"))
    if layout in ("lora", "one_backbone"):
        models["peft_config"] = LoraConfig(r=4, task_type="CAUSAL_LM")
    elif zero_stage == 3:
        models["ref_model"] = GPTPanguForCausalLM.from_pretrained(folder / "policy")
    if layout == "one_backbone":
        models["reward_model"] = folder / "reward_adapter"
    else:
        models["reward_model"] = GPTPanguForSequenceClassification.from_pretrained(folder / "reward_model")
        if layout != "value_head" and args.has_critic:
            models["value_model"] = GPTPanguForSequenceClassification.from_pretrained(folder / "reward_model")
    if reward is not None:
        models["reward_model"] = reward
    prompts = Dataset.from_list(json.loads((folder / "prompts.json").read_text("utf-8")))
    return PPOTrainer(
        args=args,
        train_dataset=prompts,
        ptx_dataset=prompts.rename_column("prompt", "text") if texts else None,
        processing_class=GPTPanguTokenizer.from_pretrained(folder / "tokenizer"),
        **models,
    )


def deepspeed_config(stage: int) -> dict:
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
            # So that weights as small as ours are sharded and released at all.
            "stage3_param_persistence_threshold": 0,
        },
        # Where this is missing accelerate clips at 1.
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
    }


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """Tensors of policy and critic, whole; every rank takes part."""
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return {name: tensor.detach().clone().contiguous() for name, tensor in (state_dict or {}).items()}


def frozen_and_whole(trainer: PPOTrainer) -> list[str]:
    """Frozen weights that ZeRO-3 has gathered and not released; re-entrant recomputation could leave them so."""
    return [
        name
        for name, parameter in trainer.model_wrapped.named_parameters()
        if not parameter.requires_grad and hasattr(parameter, "ds_status") and parameter.ds_status.name == "AVAILABLE"
    ]


def average(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """Averaged weights of the policy, whole; every rank takes part."""
    return {f"average.{name}": tensor.contiguous() for name, tensor in trainer.average.whole_weights().items()}


def evaluate(trainer: PPOTrainer) -> dict[str, float]:
    """Evaluation on eleven prompts, which two ranks cannot share evenly."""
    return trainer.evaluate(trainer.train_dataset.select(range(11)))


def count_calls(module: ModuleType, name: str) -> list[str]:
    """A list that grows by one with every call of a function of a module."""
    calls, function = [], getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return function(*args, **kwargs)

    setattr(module, name, counted)
    return calls


def main() -> None:
    torch.set_num_threads(1)
    folder, layout, zero_stage = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    PartialState(cpu=True)
    out = folder / f"{layout}-{zero_stage}"
    setup = dict(layout=layout, zero_stage=zero_stage)
    found = {}
    gathered = count_calls(generate, "gathered")
    trainer = make_trainer(folder, out.name, **setup, **SAME_STEP)
    trainer.train()
    # Under ZeRO-3 once for each of the two rollouts, or never, at every token a layer.
    assert len(gathered) == (2 if zero_stage == 3 else 0)
    found["same_step"] = weights(trainer)
    metrics = evaluate(trainer)
    gathered.clear()
    options = dict(texts=False, activation_checkpointing=True, ds3_gather_for_generation=False)
    trainer = make_trainer(folder, out.name, **options, **setup, **SAME_STEP)
    trainer.train()
    assert not gathered
    assert not frozen_and_whole(trainer)
    found["same_step_recomputed"] = weights(trainer)
    trainer = make_trainer(folder, out.name, save_strategy="steps", save_steps=CHECKPOINT_STEP, **setup, **RESUMED)
    trainer.train()
    found["whole"] = weights(trainer) | average(trainer)
    trainer.save_model(str(out / "saved"))
    trainer = make_trainer(folder, out.name, **setup, **RESUMED)
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{CHECKPOINT_STEP}"))
    found["resumed"] = weights(trainer) | average(trainer)
    stopped = make_trainer(folder, f"{out.name}-stopped", save_strategy="steps", save_steps=100, **setup, **RESUMED)
    stopped.add_callback(SigtermOnLastRank())
    stopped.train()
    assert stopped.state.global_step == CHECKPOINT_STEP
    trainer = make_trainer(folder, f"{out.name}-stopped", **setup, **RESUMED)
    trainer.train(resume_from_checkpoint=True)
    found["resumed_after_signal"] = weights(trainer) | average(trainer)
    if PartialState().is_main_process:
        for name, tensors in found.items():
            save_file(tensors, out / f"{name}.safetensors")
        (out / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    assert PartialState().num_processes == 2
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
