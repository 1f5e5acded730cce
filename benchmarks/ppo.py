"""Episodes a second and peak memory of PPOTrainer, beside the PPOTrainer that TRL had up to 1.12.0.

    python benchmarks/ppo.py                # installs trl 1.12.0 into a venv of its own below --folder

All runs are on CPU in float32 with the same random GPTPangu as policy, reference, critic and reward model.

Speed: 64 prompts of 4 to 64 tokens a rollout, answers of up to 64 tokens that end early at random, all sampled in one
batch, 8 answers a learning batch, one optimiser step a pass, two passes. The runs of `trl` and `separate`, four
separate models in both, take turns, each in a process of its own; the best of each counts, by the seconds of `train()`.
The ratio of CPU seconds is less troubled by what else the machine does. Both are set against a floor: the tokens that
TRL's models read, padding and all, over those that must be read (learning counts three times).

Memory: a larger model, fewer prompts; `separate` again, and `one_backbone`, where policy, critic and reward model are
LoRA adapters of one base model and the reference is the base. Peak resident memory of the process, and the same without
what it had after the imports. glibc is told to give freed tensors back at once, so that the peak is what was in use.

`--profile`: sampling, scoring and learning of `separate` against their floors; see ppo_profile.py.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path
from statistics import mean
from typing import Any

from ppo_profile import Profile, TokensRead, print_profile

ROOT = Path(__file__).parent.parent
TRL = "trl==1.12.0"
SIDES = ("trl", "separate", "one_backbone")
VOCABULARY, EOS, PAD = 8000, 9, 6
BATCH, PASSES, ANSWER_TOKENS = 8, 2, 64
MEAN_ANSWER_TOKENS = 24
TOKENS = {"separate": "tokens_needed", "trl": "tokens_read"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("benchmark-ppo"), help="Where the venv and runs go.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each side that are timed.")
    parser.add_argument("--rollouts", type=int, default=2, help="Rollouts of a run.")
    parser.add_argument("--prompts", type=int, default=64, help="Prompts of a rollout.")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--memory-hidden-size", type=int, default=1024)
    parser.add_argument("--memory-prompts", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--profile", action="store_true", help="Only our run with four models, phase by phase.")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run(options)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.profile:
        print_profile(measure(sys.executable, "separate", options)["profile"])
        return
    python = {"trl": str(trl_python(options.folder / "trl-venv"))}
    timed = {"trl": [], "separate": []}
    for _ in range(options.repeats):
        for side, runs in timed.items():
            runs.append(measure(python.get(side, sys.executable), side, options))
    options.hidden_size, options.prompts, options.rollouts = options.memory_hidden_size, options.memory_prompts, 1
    give_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    weighed = {side: measure(sys.executable, side, options, give_back) for side in ("separate", "one_backbone")}
    # What leaving padding out can win, for the lengths that were drawn.
    needed, read = (mean(run[name] for run in timed[side]) for side, name in TOKENS.items())
    floor = read / needed
    print(f"tokens that trl reads / that are needed: {read:.0f} / {needed:.0f} = {floor:.2f}, the floor")
    ours, trls = (max(run["episodes_per_second"] for run in timed[side]) for side in ("separate", "trl"))
    ratio = ours / trls
    print(f"separate / trl, episodes/s: {ours:.2f} / {trls:.2f} = {ratio:.2f}, {ratio / floor:.2f} of the floor")
    ours, trls = (min(run["cpu_seconds"] for run in timed[side]) for side in ("separate", "trl"))
    ratio = trls / ours
    print(f"trl / separate, CPU seconds: {trls:.1f} / {ours:.1f} = {ratio:.2f}, {ratio / floor:.2f} of the floor")
    print_ratio("peak memory", *(weighed[side]["peak_gb"] for side in ("one_backbone", "separate")))
    net = {side: result["peak_gb"] - result["imports_gb"] for side, result in weighed.items()}
    print_ratio("peak memory without imports", net["one_backbone"], net["separate"])


def print_ratio(what: str, one_backbone: float, separate: float) -> None:
    print(f"one_backbone / separate, {what}: {one_backbone:.2f} / {separate:.2f} GB = {one_backbone / separate:.2f}")


def trl_python(folder: Path) -> Path:
    """A venv that has TRL 1.12.0 and, behind it on the path, everything of the one that runs this file."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        site_packages = next(folder.glob("lib/python*/site-packages"))
        here = next(path for path in sys.path if path.endswith("site-packages"))
        (site_packages / "behind.pth").write_text(here + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", TRL], check=True)
    return python.absolute()


def measure(
    python: str, side: str, options: argparse.Namespace, allocator: dict[str, str] | None = None
) -> dict[str, Any]:
    names = ("folder", "rollouts", "prompts", "hidden_size", "layers")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    environment |= allocator or {}
    command = [python, __file__, "--side", side, *words, *(["--profile"] if options.profile else [])]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{side}:\n{result.stderr[-4000:]}")
    found = json.loads(result.stdout.splitlines()[-1])
    print(f"{side:14s}", json.dumps(found), flush=True)
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One run of a side, in this process."""
    import torch
    from datasets import Dataset

    import pangu_trl

    if options.side == "trl":
        from trl.experimental.ppo import PPOTrainer  # noqa: F401
    else:
        from pangu_trl import PPOTrainer  # noqa: F401
    imports_gb = peak_gb()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 65, (options.prompts * options.rollouts,), generator=generator).tolist()
    ids = [torch.randint(10, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    config = pangu_trl.GPTPanguConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        num_heads=options.hidden_size // 64,
        max_position_embeddings=256,
        num_labels=1,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    policy = ending_policy(config)
    reward_model = pangu_trl.GPTPanguForSequenceClassification(config)
    reward_model.transformer.load_state_dict(policy.transformer.state_dict())
    arguments = dict(
        processing_class=tokenizer(),
        model=policy,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
    )
    trainer = (
        build_trl(options, arguments, reward_model)
        if options.side == "trl"
        else build_ours(options, arguments, reward_model)
    )
    num_parameters = sum(parameter.numel() for parameter in policy.parameters())
    del reward_model
    counted = count_tokens(options, trainer)
    started, cpu_started = time.perf_counter(), time.process_time()
    trainer.train()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "episodes_per_second": options.prompts * options.rollouts / seconds,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_gb": peak_gb(),
        "imports_gb": imports_gb,
        "policy_parameters": num_parameters,
        **token_figures(counted, options.profile, cpu_seconds),
    }


def count_tokens(options: argparse.Namespace, trainer) -> Profile | TokensRead | None:
    """Counts what the models read; of one backbone nothing, since a pass there is not that of one model."""
    if options.side == "one_backbone":
        return None
    if options.side == "separate":
        return Profile(trainer, PASSES)
    pair = trainer.accelerator.unwrap_model(trainer.model)
    return TokensRead((pair.policy, pair.value_model, trainer.ref_model, trainer.reward_model))


def token_figures(counted: Profile | TokensRead | None, profiles: bool, cpu_seconds: float) -> dict[str, Any]:
    if isinstance(counted, TokensRead):
        return {"tokens_read": counted.count}
    if counted is None:
        return {}
    return {"tokens_needed": counted.tokens_needed()} | ({"profile": counted.figures(cpu_seconds)} if profiles else {})


def ending_policy(config):
    """A random policy that ends an answer after `MEAN_ANSWER_TOKENS` on average.

    The last bias of the network points one way, and the embedding of eos too: its logit is about constant.
    """
    import math

    import torch

    import pangu_trl

    policy = pangu_trl.GPTPanguForCausalLM(config)
    logit = math.log(VOCABULARY) - math.log(MEAN_ANSWER_TOKENS - 1)
    with torch.no_grad():
        direction = torch.nn.functional.normalize(torch.randn(config.hidden_size), dim=0)
        policy.transformer.wte.weight[EOS] = direction
        policy.transformer.h[-1].mlp.c_proj.bias.copy_(logit * direction)
    return policy


def tokenizer(size: int = VOCABULARY):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=f"w{EOS}", pad_token=f"w{PAD}", padding_side="left"
    )


def common_options(options: argparse.Namespace) -> dict:
    return dict(
        output_dir=str(options.folder / options.side),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=options.prompts // BATCH,
        num_ppo_epochs=PASSES,
        temperature=1.0,
        learning_rate=1e-6,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=100,
    )


def build_trl(options: argparse.Namespace, arguments: dict, reward_model):
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    args = PPOConfig(
        total_episodes=options.prompts * options.rollouts,
        response_length=ANSWER_TOKENS,
        stop_token="eos",
        num_sample_generations=0,
        activation_checkpointing=False,
        **common_options(options),
    )
    models = dict(reward_model=reward_model, value_model=copy.deepcopy(reward_model), ref_model=None)
    # Its loader for evaluation wants a dataset, which is never read.
    return PPOTrainer(args=args, eval_dataset=arguments["train_dataset"], **arguments, **models)


def build_ours(options: argparse.Namespace, arguments: dict, reward_model):
    from peft import LoraConfig, get_peft_model

    from pangu_trl import PPOConfig, PPOTrainer

    shares = options.side == "one_backbone"
    args = PPOConfig(
        max_steps=options.rollouts * PASSES,
        num_rollout_batches=options.prompts // BATCH,
        generation_batch_size=options.prompts,
        max_prompt_length=64,
        max_completion_length=ANSWER_TOKENS,
        share_backbone="all" if shares else "none",
        **common_options(options),
    )
    if not shares:
        return PPOTrainer(args=args, reward_model=reward_model, **arguments)
    folder = options.folder / "reward-adapter"
    base = arguments["model"]
    base.name_or_path = reward_model.name_or_path = "the random base model of this benchmark"
    lora = dict(r=16, target_modules="all-linear")
    get_peft_model(reward_model, LoraConfig(task_type="SEQ_CLS", **lora)).save_pretrained(folder)
    return PPOTrainer(
        args=args, reward_model=folder, peft_config=LoraConfig(task_type="CAUSAL_LM", **lora), **arguments
    )


def peak_gb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
