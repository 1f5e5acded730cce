"""The real demo: a pretrained chat model, from its first answers to a policy that writes what a judge prefers.

    make demo-real                  # SmolLM2-135M-Instruct on two cores of a CPU
    make demo-real STEPS=short      # half of the prompts, and of the rollouts of PPO
    make demo-real STEPS=smoke      # the same with a few prompts and steps, to see that everything runs

Every stage is a command that works alone, and is printed before it runs; docs/demo-real.md has them one by one. A run
that was stopped goes on where it was: started again, it leaves out what is done.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
# What both demos need stands in the other one's folder.
sys.path.append(str(HERE.parent / "demo"))

from base_model import write_base_model  # noqa: E402
from likelihoods import measure_likelihoods  # noqa: E402
from real_story import REAL_STORY  # noqa: E402
from report import plot_overview, write_report  # noqa: E402
from stage_launching import ROOT, launch_recipe, move_aside, run_command, short  # noqa: E402
from summary import peak_memory_gib, summarise, write_figures, write_samples, write_times  # noqa: E402

from pangu_trl.runs.checkpoints import last_whole_checkpoint  # noqa: E402
from pangu_trl.runs.lock import LOCK_FILE  # noqa: E402

JUDGE = f"{HERE / 'friendly_judge.py'}:friendliness"
PROMPTS = {
    split: ROOT / "data_cards" / "samples" / f"everyday-prompts.{split}.jsonl" for split in ("train", "held-out")
}
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Size:
    """How much of everything; the options of the trainings are in the YAML files beside this one.

    Attributes:
        num_answers: Answers to each prompt, K.
        answer_tokens: Longest answer.
        temperature: At which answers are sampled, here and by PPO.
        prompts: Number of prompts of each file; None takes all.
        overrides: Options that replace those of a stage's YAML file.
    """

    num_answers: int = 4
    answer_tokens: int = 40
    temperature: float = 0.8
    prompts: dict[str, int | None] = field(default_factory=lambda: {"train": None, "held-out": None})
    overrides: dict[str, dict[str, object]] = field(default_factory=dict)


SIZES = {
    "full": Size(),
    # Half of the prompts, and half of the rollouts.
    "short": Size(prompts={"train": 200, "held-out": 80}, overrides={"ppo": {"max_steps": 20}}),
    "smoke": Size(
        answer_tokens=12,
        prompts={"train": 8, "held-out": 4},
        overrides={
            "reward": {
                "max_steps": 2,
                "warmup_steps": 1,
                "eval_steps": 1,
                "logging_steps": 1,
                "per_device_train_batch_size": 4,
            },
            "ppo": {
                "max_steps": 4,
                "warmup_steps": 1,
                "logging_steps": 1,
                "save_steps": 2,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "num_rollout_batches": 2,
                "critic_warmup_steps": 0,
            },
        },
    ),
}


class RealDemo:
    """One run in one folder, which may hold an unfinished one.

    Args:
        run_dir: Folder of the run.
        size: How much of everything.
        dtype: In which models compute, `float32` or `bfloat16`; what learns is kept in float32.

    Raises:
        ValueError: The folder holds a run with other settings.
    """

    def __init__(self, run_dir: Path, size: Size, dtype: str = "float32") -> None:
        self.run_dir, self.size, self.dtype = run_dir, size, dtype
        self.samples = run_dir / "samples"
        self._claim()
        self.times_file = run_dir / "times.json"
        self.times: dict[str, dict[str, float]] = _read_json(self.times_file) if self.times_file.exists() else {}

    def run(self) -> dict:
        """Runs what is left of the stages and returns the summary that it also writes."""
        base, reward, ppo = (self.run_dir / name for name in ("base", "reward", "ppo"))
        with self._stage("prepare"):
            self._make(base, lambda: write_base_model(base, getattr(torch, self.dtype)))
        with self._stage("answers"):
            self._sample("base", "train", "start.train", seed=0)
            self._score("start.train", "ranked.train", JUDGE)
            self._sample("base", "held-out", "start.held-out", seed=1)
            self._score("start.held-out", "ranked.test", JUDGE)
        with self._stage("reward"):
            train_data, eval_data = self._samples("ranked.train"), self._samples("ranked.test")
            self._train("reward", train_data=train_data, eval_data=eval_data)
            self._score("ranked.test", "rankings.test", reward, column="reward_scores")
            report = self.run_dir / "reward-report"
            self._make(report, lambda: run_command("evaluate-reward", reward, "--data", eval_data, "--output", report))
        with self._stage("ppo"):
            self._train("ppo", train_data=PROMPTS["train"], reward_model=reward)
        with self._stage("judge"):
            self._sample("ppo", "held-out", "ppo.held-out", seed=1)
            for model in ("start", "ppo"):
                self._score(f"{model}.held-out", model, JUDGE, column="judge")
            self._compare()
            files = {model: self._samples(model) for model in ("start", "ppo")}
            output = self.run_dir / "likelihoods.json"
            self._make(output, lambda: measure_likelihoods(base, ppo, files, self.size.temperature, output))
        summary = summarise(self.run_dir, self.times)
        (self.run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        return summary

    def _claim(self) -> None:
        recipes = {stage: sha256((HERE / f"{stage}.yaml").read_bytes()).hexdigest() for stage in ("reward", "ppo")}
        prompts = {split: sha256(path.read_bytes()).hexdigest() for split, path in PROMPTS.items()}
        settings = asdict(self.size) | {"dtype": self.dtype, "recipes": recipes, "prompt_files": prompts}
        path = self.run_dir / "settings.json"
        if path.exists() and _read_json(path) != settings:
            raise ValueError(
                f"{short(self.run_dir)} holds a run with other settings or prompts (see {short(path)}). Start anew "
                "with --fresh (`make demo-real FRESH=1`), which keeps it under another name, or name another folder "
                "with --run-dir"
            )
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    def _train(self, stage: str, **options: Path) -> None:
        output_dir = self.run_dir / stage
        options = {
            "model_name_or_path": self.run_dir / "base",
            **options,
            "output_dir": output_dir,
            **self.size.overrides.get(stage, {}),
        }
        if self.dtype == "bfloat16":
            options |= {"bf16": "true"}
        if stage == "ppo":
            # The adapters learn in float32 all the same; the backbone need not be cast for each token.
            options |= {"dtype": self.dtype}
            options |= {"max_completion_length": self.size.answer_tokens, "temperature": self.size.temperature}
        if output_dir.exists() and not (output_dir / ADAPTER_FILE).exists():
            if _has_checkpoint(output_dir):
                options["resume_from_checkpoint"] = "true"
            elif any(path.name != LOCK_FILE for path in output_dir.iterdir()):
                move_aside(output_dir)
        self._make(output_dir / ADAPTER_FILE, lambda: launch_recipe(stage, HERE / f"{stage}.yaml", options))

    def _sample(self, model: str, split: str, output: str, seed: int) -> None:
        limit = self.size.prompts[split]
        path = self._samples(output)
        self._make(
            path,
            lambda: run_command(
                "sample",
                *("--model", self.run_dir / model),
                *("--prompts", PROMPTS[split]),
                *(() if limit is None else ("--limit", limit)),
                *("--num-answers", self.size.num_answers),
                *("--max-new-tokens", self.size.answer_tokens),
                *("--temperature", self.size.temperature),
                *("--batch-size", 80),
                *("--seed", seed),
                *("--output", path),
            ),
        )

    def _score(self, answers: str, output: str, judge: object, column: str = "scores") -> None:
        path = self._samples(output)
        options = ["--judge", judge, "--output", path, "--score-column", column]
        self._make(path, lambda: run_command("score", self._samples(answers), *options, "--batch-size", 16))

    def _compare(self) -> None:
        output = self.run_dir / "comparison.json"
        options = ["--against", self._samples("start"), "--score-column", "judge", "--output", output]
        self._make(output, lambda: run_command("evaluate", self._samples("ppo"), *options))

    def _samples(self, name: str) -> Path:
        return self.samples / f"{name}.jsonl"

    def _make(self, product: Path, make: Callable[[], object]) -> None:
        if product.exists():
            print(f"{short(product)} is there already.")
        else:
            make()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Counts what a stage takes, also where it is stopped: a later call adds to it."""
        print(f"\n=== {name} ===", flush=True)
        started, cpu_started = time.perf_counter(), _cpu_seconds()
        try:
            yield
        finally:
            spent = self.times.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0})
            spent["seconds"] = round(spent["seconds"] + time.perf_counter() - started, 1)
            spent["cpu_seconds"] = round(spent["cpu_seconds"] + _cpu_seconds() - cpu_started, 1)
            # Of processes there is only the most until now, so that of a stage is at most this.
            spent["peak_gib"] = max(spent.get("peak_gib", 0.0), round(peak_memory_gib(), 2))
            self.times_file.write_text(json.dumps(self.times, indent=2) + "\n", "utf-8")


def quick_dtype() -> str:
    """bfloat16 where the processor multiplies matrices of it, float32 elsewhere: half the time, or several times it."""
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


def _has_checkpoint(output_dir: Path) -> bool:
    try:
        return last_whole_checkpoint(output_dir) is not None
    except FileNotFoundError:
        return False


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", choices=SIZES, default="full", help="how much to train (default: %(default)s)")
    parser.add_argument(
        "--run-dir",
        type=Path,
        help="folder of the run (default: runs/demo-real; of the smaller sizes runs/demo-real-SIZE)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="in which models compute; auto is bfloat16 on CPUs that multiply it (AMX, AVX512-BF16), else float32",
    )
    parser.add_argument("--fresh", action="store_true", help="keep an earlier run under another name and start anew")
    args = parser.parse_args()
    run_dir = args.run_dir or Path("runs") / ("demo-real" if args.steps == "full" else f"demo-real-{args.steps}")
    if args.fresh:
        move_aside(run_dir)
    try:
        dtype = quick_dtype() if args.dtype == "auto" else args.dtype
        summary = RealDemo(run_dir, SIZES[args.steps], dtype).run()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"The demo stopped: the last command ended with exit status {error.returncode}.") from None
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"The demo stopped: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"Interrupted. Start it again, and it goes on with {short(run_dir)}.") from None
    report = write_report(run_dir, REAL_STORY)
    plot_overview(run_dir, REAL_STORY)
    print(f"\n{write_samples(summary)}\n\n{write_figures(summary)}\n\n{write_times(summary)}")
    print(f"\nAll figures: {short(run_dir / 'summary.json')}. Report: {report} (open it in a browser).")
    models = " ".join(short(run_dir / name) for name in ("base", "ppo"))
    print(f"Ask both models yourself: pangu-trl chat {models} --temperature 0.8")
    print("End what you ask as the prompts of the demo end, 'Answer in one short sentence.': nothing else was trained.")


if __name__ == "__main__":
    main()
