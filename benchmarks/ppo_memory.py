"""Peak memory of PPO's learning pass with long answers: without logits and padding, with them, and by length.

    python benchmarks/ppo_memory.py

Every row is a process of its own on CPU in float32: a rollout of 4 answers that all have the full length, and one
optimiser step on all of them at once. `logits` has answers of 1,024 tokens from a vocabulary of 40,000, scored and
learnt from with padding and whole logits (`padding_free: false`, the path of models that can do no other); `tiles` is
the default. `length` is a tiny Llama with answers of 512 to 4,096 tokens: what it needs beyond its weights should grow
as they do, and stands beside what `pangu-trl plan` computes. Peak resident memory from the end of the rollout on, and
the same above what the process held at that moment; glibc is told to give freed tensors back at once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROWS = {
    "logits": dict(vocabulary=40_000, answer=1024, padding_free=False),
    "tiles": dict(vocabulary=40_000, answer=1024, padding_free=True),
    **{
        f"length {answer}": dict(vocabulary=1000, answer=answer, padding_free=True)
        for answer in (512, 1024, 2048, 4096)
    },
}
BATCH, PROMPT = 4, 16
EOS, PAD = 9, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(run(**ROWS[options.row])))
        return
    found = {}
    print(f"{'row':12s} {'peak':>8s} {'learning':>9s} {'plan':>8s}  (MiB)")
    for row in options.rows:
        found[row] = measure(row)
        figures = [f"{found[row][name] / 2**20:{width}.0f}" for name, width in (("peak", 8), ("own", 9), ("plan", 8))]
        print(f"{row:12s}", *figures, flush=True)
    if {"logits", "tiles"} <= found.keys():
        for name, what in (("peak", "whole process"), ("own", "learning alone")):
            print(f"tiles / logits, {what}: {found['tiles'][name] / found['logits'][name]:.2f}")


def measure(row: str) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--row", row]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{row}:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def run(vocabulary: int, answer: int, padding_free: bool) -> dict[str, float]:
    """One row, in this process."""
    import torch
    from datasets import Dataset
    from ppo import tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from pangu_trl import PPOConfig, PPOTrainer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=8192,
        num_labels=1,
        pad_token_id=PAD,
        eos_token_id=EOS,
        mlp_bias=True,
    )
    policy = LlamaForCausalLM(config)
    with torch.no_grad():
        # All states point one way, and the end of an answer the other, so that none is drawn.
        direction = torch.nn.functional.normalize(torch.randn(config.hidden_size), dim=0)
        policy.model.layers[-1].mlp.down_proj.bias.copy_(10 * direction)
        policy.lm_head.weight[EOS] = -2 * direction
    ids = torch.randint(10, 1000, (BATCH, PROMPT)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = dict(
            per_device_train_batch_size=BATCH,
            num_rollout_batches=1,
            num_ppo_epochs=1,
            max_steps=1,
            max_prompt_length=PROMPT,
            max_completion_length=answer,
            padding_free=padding_free,
            save_strategy="no",
            report_to="none",
        )
        args = PPOConfig(output_dir=folder, use_cpu=True, bf16=False, disable_tqdm=True, **settings)
        trainer = PPOTrainer(
            model=policy,
            args=args,
            reward_model=LlamaForSequenceClassification(config),
            train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
            processing_class=tokenizer(vocabulary),
        )
        held, lengths, collect = [], [], trainer.collector.collect

        def collected(*arguments: Any) -> Any:
            rollout = collect(*arguments)
            lengths.extend(rollout.completion_mask.sum(dim=1).tolist())
            Path("/proc/self/clear_refs").write_text("5")
            held.append(status("VmRSS"))
            return rollout

        trainer.collector.collect = collected
        trainer.train()
        peak = status("VmHWM")
        planned = planned_bytes(Path(folder), config, settings)
    if lengths != [answer] * BATCH:
        raise SystemExit(f"Answers of {lengths} tokens where all should have {answer}.")
    return {"peak": peak, "own": peak - held[0], "plan": planned}


def planned_bytes(folder: Path, config: Any, settings: dict[str, Any]) -> int:
    """What `pangu-trl plan` computes for the learning pass of such a recipe, without weights."""
    import yaml

    from pangu_trl.planning.launch import Launch
    from pangu_trl.planning.memory import BACKWARD, Plan
    from pangu_trl.planning.settings import read_settings

    recipe = folder / "ppo.yaml"
    config.save_pretrained(folder / "model")
    recipe.write_text(yaml.safe_dump(settings | {"model_name_or_path": str(folder / "model"), "bf16": False}))
    plan = Plan(read_settings(recipe), Launch(1, "none", on_cpu=True), config, 0)
    return sum(item.num_bytes for item in plan.items if item.phase == BACKWARD)


def status(name: str) -> int:
    """A figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[name].split()[0]) * 1024


if __name__ == "__main__":
    main()
