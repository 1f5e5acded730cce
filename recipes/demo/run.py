"""The demo: from raw Chinese reviews to a PPO-tuned GPTPangu, on a laptop's CPU.

    make demo                  # three to ten minutes
    make demo STEPS=smoke      # the same with tiny settings, to see that everything runs
    make demo STEPS=large      # a model ten times as large, an hour or more; docs/small-gptpangu.md has its figures

Every stage is a command that works alone, and is printed before it runs: `pangu-trl sft`, `reward` and `ppo`, and
`sample`, `score` and `evaluate` in between. A run that stands in the folder already is moved aside.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from demo_story import DEMO_STORY
from report import plot_overview, write_report
from results import before_and_after, logged, read_log_history
from reviews import SplitCounts, prepare_reviews
from stage_launching import ROOT, launch_recipe, move_aside, run_command, short

from pangu_trl import GPTPanguConfig, GPTPanguForCausalLM
from pangu_trl.answers.printing import printable
from pangu_trl.data import read_jsonl
from pangu_trl.gptpangu.vocabulary_training import train_vocabulary

JUDGE = f"{ROOT / 'recipes' / 'demo' / 'judge.py'}:sentiment"
NUM_ANSWERS = 4


@dataclass(frozen=True)
class Size:
    """How much of everything; the options of the three trainings are in the YAML files beside this one.

    Attributes:
        counts: Reviews and openings of each file.
        vocabulary: Pieces of the tokenizer.
        hidden_size: Width of the model.
        num_layers: Blocks of the model.
        answer_tokens: Longest answer.
        overrides: Options that replace those of a stage's YAML file.
    """

    counts: SplitCounts
    vocabulary: int
    hidden_size: int
    num_layers: int
    answer_tokens: int
    overrides: dict[str, dict[str, object]] = field(default_factory=dict)


SIZES = {
    "full": Size(
        counts=SplitCounts(demonstrations_test=200, reward_train=3200, reward_test=250, ppo=1200, judge=150),
        vocabulary=3000,
        hidden_size=192,
        num_layers=4,
        answer_tokens=16,
    ),
    # How far a GPTPangu of 25 million weights gets on the same reviews: docs/small-gptpangu.md.
    "large": Size(
        counts=SplitCounts(demonstrations_test=200, reward_train=3200, reward_test=250, ppo=1200, judge=150),
        vocabulary=6000,
        hidden_size=512,
        num_layers=7,
        answer_tokens=16,
        overrides={
            "sft": {"max_steps": 1200, "learning_rate": 1e-3, "warmup_steps": 60},
            "reward": {"learning_rate": 3e-4},
            "ppo": {"learning_rate": 5e-5, "critic_learning_rate": 2e-4},
        },
    ),
    "smoke": Size(
        counts=SplitCounts(
            demonstrations_train=200, demonstrations_test=16, reward_train=24, reward_test=16, ppo=16, judge=8
        ),
        vocabulary=1200,
        hidden_size=32,
        num_layers=2,
        answer_tokens=8,
        overrides={
            "sft": {"max_steps": 6, "warmup_steps": 2, "eval_steps": 3, "logging_steps": 2},
            "reward": {
                "max_steps": 4,
                "warmup_steps": 1,
                "eval_steps": 2,
                "logging_steps": 2,
                "per_device_train_batch_size": 4,
            },
            "ppo": {
                "max_steps": 4,
                "eval_steps": 2,
                "logging_steps": 2,
                "per_device_train_batch_size": 4,
                "num_rollout_batches": 2,
                "max_completion_length": 8,
            },
        },
    ),
}


class Demo:
    """One run in one folder.

    Args:
        run_dir: Folder of the run, new.
        size: How much of everything.
        seed: Of all that is drawn: the split of the reviews, the first weights, the answers, the order of training.
    """

    def __init__(self, run_dir: Path, size: Size, seed: int = 0) -> None:
        self.run_dir, self.size, self.seed = run_dir, size, seed
        self.data, self.samples = run_dir / "data", run_dir / "samples"
        self.stage_seconds: dict[str, float] = {}

    def run(self) -> dict:
        """Runs all stages and returns the summary that it also writes."""
        with self._stage("prepare"):
            self.prepare()
        with self._stage("sft"):
            self._train("sft", model_name_or_path="base")
        with self._stage("rank"):
            for split in ("train", "test"):
                self._sample("sft", f"prompts.reward_{split}", f"ranking_samples.{split}", self.seed)
                self._score(f"ranking_samples.{split}", f"ranked.{split}", JUDGE)
        with self._stage("reward"):
            self._train("reward", model_name_or_path="base")
            self._score("ranked.test", "rankings.test", self.run_dir / "reward", column="reward_scores")
        with self._stage("ppo"):
            self._train("ppo", model_name_or_path="sft", reward_model="reward")
        with self._stage("judge"):
            for model in ("base", "sft", "ppo"):
                self._sample(model, "prompts.judge", f"{model}.unscored", self.seed + 1)
                self._score(f"{model}.unscored", model, JUDGE, column="judge")
            against = ("--against", self._samples("sft"), "--score-column", "judge")
            run_command("evaluate", self._samples("ppo"), *against)
        return self._summarise()

    def prepare(self) -> None:
        """Cuts the reviews into openings and completions, trains the vocabulary, makes a model of random weights."""
        report = prepare_reviews(self.data, self.size.counts, self.seed)
        print(f"reviews: {report['lines']} lines, left out {report['left_out']}, records {report['records']}")
        reviews = read_jsonl(self.data / "demonstrations.train.jsonl")
        texts = [review["prompt"] + review["completion"] for review in reviews]
        tokenizer = train_vocabulary(texts, self.run_dir / "base", self.size.vocabulary)
        torch.manual_seed(self.seed)
        config = GPTPanguConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.size.hidden_size,
            num_layers=self.size.num_layers,
            num_heads=4,
            max_position_embeddings=256,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        model = GPTPanguForCausalLM(config)
        model.save_pretrained(self.run_dir / "base")
        print(f"model: {model.num_parameters():,} parameters, vocabulary of {len(tokenizer)} pieces")

    def _train(self, stage: str, **models: str) -> None:
        files = {
            "sft": ("data/demonstrations.train.jsonl", "data/demonstrations.test.jsonl"),
            "reward": ("samples/ranked.train.jsonl", "samples/ranked.test.jsonl"),
            "ppo": ("data/prompts.ppo.jsonl", "data/prompts.judge.jsonl"),
        }
        train_data, eval_data = (self.run_dir / name for name in files[stage])
        options = {
            **{name: self.run_dir / folder for name, folder in models.items()},
            "train_data": train_data,
            "eval_data": eval_data,
            "output_dir": self.run_dir / stage,
            # 42 is what the recipes have.
            "seed": 42 + self.seed,
            **self.size.overrides.get(stage, {}),
        }
        launch_recipe(stage, ROOT / f"recipes/demo/{stage}.yaml", options)

    def _sample(self, model: str, prompts: str, output: str, seed: int) -> None:
        run_command(
            "sample",
            *("--model", self.run_dir / model),
            *("--prompts", self.data / f"{prompts}.jsonl"),
            *("--output", self._samples(output)),
            *("--num-answers", NUM_ANSWERS),
            *("--max-new-tokens", self.size.answer_tokens),
            *("--batch-size", 256),
            *("--seed", seed),
        )

    def _score(self, answers: str, output: str, judge: object, column: str = "scores") -> None:
        options = ["--judge", judge, "--output", self._samples(output), "--score-column", column]
        run_command("score", self._samples(answers), *options, "--batch-size", 64)

    def _samples(self, name: str) -> Path:
        return self.samples / f"{name}.jsonl"

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        print(f"\n=== {name} ===", flush=True)
        started = time.perf_counter()
        yield
        self.stage_seconds[name] = round(time.perf_counter() - started, 1)

    def _summarise(self) -> dict:
        sft, reward, ppo = (read_log_history(self.run_dir / stage) for stage in ("sft", "reward", "ppo"))
        judged = {model: _mean_judgement(self._samples(model)) for model in ("base", "sft", "ppo")}
        summary = {
            "sft": before_and_after(sft, "eval_loss"),
            "reward": {
                **before_and_after(reward, "eval_pair_accuracy", "pair_accuracy"),
                "num_pairs": logged(reward, "eval_num_pairs")[-1],
            },
            "ppo": {
                **before_and_after(ppo, "eval_reward/mean", "reward"),
                "kl": logged(ppo, "eval_kl/mean")[-1],
                "judge_before": judged["sft"],
                "judge_after": judged["ppo"],
                "judge_of_random_weights": judged["base"],
            },
            "seconds": round(sum(self.stage_seconds.values()), 1),
            "stage_seconds": self.stage_seconds,
        }
        (self.run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        return summary

    def show_samples(self, count: int = 4) -> None:
        """Prints what each stage writes after the same openings."""
        stages = {model: read_jsonl(self._samples(model))[:count] for model in ("base", "sft", "ppo")}
        for records in zip(*stages.values(), strict=True):
            print(f"\n{printable(records[0]['prompt'])}")
            for name, record in zip(stages, records, strict=True):
                print(f"  {name:>5} {record['judge'][0]:.2f}  {printable(record['responses'][0])}")


def _mean_judgement(path: Path) -> float:
    scores = [score for record in read_jsonl(path) for score in record["judge"]]
    return sum(scores) / len(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", choices=SIZES, default="full", help="how much to train (default: %(default)s)")
    parser.add_argument(
        "--run-dir", type=Path, default=Path("runs/demo"), help="folder of the run (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    args = parser.parse_args()
    move_aside(args.run_dir)
    demo = Demo(args.run_dir, SIZES[args.steps], args.seed)
    started = time.perf_counter()
    try:
        summary = demo.run()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"The demo stopped: the last command ended with exit status {error.returncode}.") from None
    except KeyboardInterrupt:
        raise SystemExit(f"Interrupted. What was made so far is in {short(args.run_dir)}.") from None
    report = write_report(args.run_dir, DEMO_STORY)
    plot_overview(args.run_dir, DEMO_STORY)
    demo.show_samples()
    print(
        f"\n{json.dumps(summary, indent=2)}\n\nReport: {report} (open it in a browser). "
        f"{time.perf_counter() - started:.0f} s."
    )


if __name__ == "__main__":
    main()
