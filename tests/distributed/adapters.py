"""PPO with adapters that are more than a plain new LoRA, on every rank of test_adapter_kinds.py.

    accelerate launch ... tests/distributed/adapters.py FOLDER OUTPUT OPTIMISER

FOLDER holds the models and prompts of conftest.py. Each case leaves its adapter in OUTPUT/CASE, that of a resumed run
in OUTPUT/CASE-resumed, and OUTPUT/found.json says what the trainer's models gave for a fixed input, what was logged,
and why the case was refused without a reference; it then runs with one.
"""

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from rank import PROBE, PROBE_COMPLETION, probe, shard_on_cpu

from pangu_trl import GPTPanguForCausalLM, GPTPanguTokenizer, PPOConfig, PPOTrainer
from pangu_trl.ppo.actor_critic.token_logprobs import completion_logprobs

# Greedy answers, so that two ranks do what one process does; the checkpoint is in the middle of a rollout.
OPTIONS = dict(
    max_steps=3,
    num_rollout_batches=1,
    num_ppo_epochs=2,
    top_k=1,
    max_grad_norm=0.0,
    lr_scheduler_type="constant",
    max_prompt_length=48,
    max_completion_length=8,
    share_backbone="value",
    logging_steps=1,
    save_strategy="steps",
    save_steps=1,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
# Plain steps are the gradient; PyTorch does not load the states of a sharded optimiser that has none.
STEPS = {
    "sgd": dict(optim="sgd", learning_rate=0.2, critic_learning_rate=0.002),
    "adamw": dict(optim="adamw_torch", learning_rate=1e-3, critic_learning_rate=1e-3),
}
TARGETS = ["q_proj", "v_proj", "c_fc"]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=TARGETS, **options)


def trained(base: GPTPanguForCausalLM, name: str) -> PeftModel:
    """A policy with an adapter that is not at its start, the same in every process."""
    torch.manual_seed(7)
    model = get_peft_model(base, lora(), adapter_name=name)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def with_second(base: GPTPanguForCausalLM) -> PeftModel:
    model = trained(base, "default")
    model.add_adapter("second", lora())
    model.set_adapter("second")
    return model


# The policy as it is passed in and the adapter that the trainer is to put on it.
CASES: dict[str, tuple[Callable[[GPTPanguForCausalLM], Any], LoraConfig | None]] = {
    "bias": (lambda base: base, lora(bias="all")),
    "pissa": (lambda base: base, lora(init_lora_weights="pissa")),
    "modules_to_save": (lambda base: base, lora(modules_to_save=["ln_f"])),
    "named": (lambda base: trained(base, "sft"), None),
    "second": (with_second, None),
}
# The reference of these is a copy of the policy.
COPIED = ("bias", "pissa", "named")


def lengths(prompts: list, completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def make_trainer(folder: Path, output: Path, case: str, optimiser: str, passes_reference: bool) -> PPOTrainer:
    """A trainer with a batch of 4 prompts over all ranks."""
    # The options come first: from then on ZeRO-3 shards models while they load.
    args = PPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
        **OPTIONS | STEPS[optimiser],
    )
    make, peft_config = CASES[case]

    def start() -> Any:
        return make(GPTPanguForCausalLM.from_pretrained(folder / "base"))

    return PPOTrainer(
        model=start(),
        args=args,
        reward_model=lengths,
        ref_model=start().requires_grad_(False) if passes_reference else None,
        peft_config=copy.deepcopy(peft_config),
        train_dataset=load_dataset("json", data_files=str(folder / "ppo.jsonl"), split="train"),
        processing_class=GPTPanguTokenizer.from_pretrained(folder / "base"),
    )


def run(folder: Path, output: Path, case: str, optimiser: str) -> dict[str, Any]:
    """Trains a case and goes on from its first checkpoint; what was logged, and what the models gave in the end."""
    refusal = None
    try:
        trainer = make_trainer(folder, output / case, case, optimiser, passes_reference=False)
    except ValueError as error:
        refusal = str(error)
        trainer = make_trainer(folder, output / case, case, optimiser, passes_reference=True)
    trainer.train()
    trainer.save_model()
    history = trainer.state.log_history
    found = {
        "refusal": refusal,
        "has_reference": trainer.ref_model is not None,
        "loss": [entry["loss"] for entry in history if "loss" in entry],
        "kl": [entry["kl/mean"] for entry in history if "kl/mean" in entry],
        "reference": reference_logprobs(trainer),
    } | probe(trainer.model_wrapped)
    resumed = make_trainer(folder, output / f"{case}-resumed", case, optimiser, passes_reference=refusal is not None)
    resumed.train(resume_from_checkpoint=str(output / case / "checkpoint-1"))
    resumed.save_model()
    return found


@torch.no_grad()
def reference_logprobs(trainer: PPOTrainer) -> list:
    """Log-probabilities of the fixed input under the reference."""
    mask, answers = torch.ones_like(PROBE), torch.ones(len(PROBE), PROBE_COMPLETION, dtype=torch.bool)
    if trainer.ref_model is None:
        return trainer.model_wrapped(PROBE, mask, answers, part="reference")["logprobs"].tolist()
    return completion_logprobs(trainer.ref_model, PROBE, mask, answers, 1.0)[0].tolist()


def main() -> None:
    torch.set_num_threads(1)
    folder, output, optimiser = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    found = {case: run(folder, output, case, optimiser) for case in CASES}
    if PartialState().is_main_process:
        (output / "found.json").write_text(json.dumps(found), "utf-8")
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
