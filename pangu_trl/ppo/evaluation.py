"""Evaluation on held-out prompts: what the answers of all ranks add up to."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from pangu_trl.answers.summary import distinct_ngrams, win_share

from .collector import RolloutCollector
from .metrics import answer_figures, own_random_numbers
from .reward_sources import FunctionReward, RewardFunction
from .rollout import Rollout
from .sample_tables import COLUMNS
from .scoring import score_completions

# What an evaluation is measured by; `metric_for_best_model` is one of them.
FIGURES = (
    "reward/mean",
    "kl/mean",
    "completion/length",
    "completion/eos_rate",
    "completion/distinct_1",
    "completion/distinct_2",
    "win_rate",
)


@dataclass
class EvaluatedAnswers:
    """N answers of all ranks, in the order of the prompts.

    Attributes:
        prompts: Texts or messages.
        completions: Texts.
        tokens: Token ids of each answer.
        figures: Figures of each answer, (N,) each.
        judged: What the judge says of each answer, (N,).
    """

    prompts: list[Any]
    completions: list[str]
    tokens: list[list[int]]
    figures: dict[str, Tensor]
    judged: Tensor

    def metrics(self, rivals: "EvaluatedAnswers") -> dict[str, float]:
        """Means of the figures, variety of the tokens, and how often the judge prefers these answers to the rivals'."""
        return {name: per_answer.mean().item() for name, per_answer in self.figures.items()} | {
            "completion/distinct_1": distinct_ngrams(self.tokens, 1),
            "completion/distinct_2": distinct_ngrams(self.tokens, 2),
            "win_rate": win_share(self.judged - rivals.judged).mean().item(),
        }

    def table(self, rivals: "EvaluatedAnswers") -> list[dict[str, Any]]:
        """Prompts and answers of both sides, a row each."""
        sides = (self.prompts, self.completions, self.judged.tolist(), rivals.completions, rivals.judged.tolist())
        return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*sides, strict=True)]

    def print_scored(self) -> None:
        """Prints each answer with its score and its prompt."""
        for prompt, answer, score in zip(self.prompts, self.completions, self.judged.tolist(), strict=True):
            print(f"{score:+.2f} | {prompt} => {answer}")


class Evaluation:
    """Answers held-out prompts and scores the answers, on all ranks together.

    Args:
        collector: Samples and scores.
        judge: Function that compares answers; None takes the score.
        has_reference: Whether a reference was kept.
    """

    def __init__(self, collector: RolloutCollector, judge: RewardFunction | None, has_reference: bool = True) -> None:
        self.collector, self.has_reference = collector, has_reference
        form, tokenizer = collector.args.judge_form, collector.tokenizer
        self.judge = None if judge is None else FunctionReward("judge", 1.0, judge, tokenizer, form)
        self._rivals: dict[str, EvaluatedAnswers] = {}

    def answers(
        self, model: nn.Module, dataset: Dataset, loader: Callable[[Dataset], Iterable[list[dict[str, Any]]]]
    ) -> tuple[EvaluatedAnswers, EvaluatedAnswers]:
        """Answers of the policy and of the reference, which answers a set once.

        Args:
            model: PolicyAndValue, as its engine wraps it.
            dataset: Tokenised prompts.
            loader: Gives the batches of this rank, by a loader that accelerate prepared.

        Raises:
            ValueError: There is no reference to compare with.
        """
        if not self.has_reference:
            raise ValueError(
                "PPOTrainer: an evaluation compares with the answers of the reference, and none was kept, since "
                "kl_coef is 0 and the constructor got no eval_dataset. Pass eval_dataset to the constructor."
            )
        if dataset._fingerprint not in self._rivals:
            self._rivals[dataset._fingerprint] = self._answers(model, loader(dataset), by_reference=True)
        return self._answers(model, loader(dataset), by_reference=False), self._rivals[dataset._fingerprint]

    def _answers(
        self, model: nn.Module, batches: Iterable[list[dict[str, Any]]], by_reference: bool
    ) -> EvaluatedAnswers:
        collector = self.collector
        accelerator = collector.accelerator
        gathered: dict[str, list[Any]] = defaultdict(list)
        # Policy and reference draw the same numbers, at every evaluation.
        with own_random_numbers(collector.args.seed, accelerator.device):
            for examples in batches:
                rollout = collector.answer(model, examples, by_reference=by_reference)
                if by_reference:
                    collector.score_answers(model, rollout, examples)
                    figures = {}
                else:
                    collector.score(model, rollout, examples)
                    figures = answer_figures(rollout)
                for name, per_answer in (figures | {"judged": self._judged(model, rollout, examples)}).items():
                    gathered[name].append(accelerator.gather_for_metrics(per_answer))
                prompts = [example["prompt"] for example in examples]
                objects = zip(prompts, rollout.texts(collector.tokenizer), rollout.completions(), strict=True)
                gathered["objects"] += accelerator.gather_for_metrics(list(objects), use_gather_object=True)
        prompts, completions, tokens = (list(part) for part in zip(*gathered.pop("objects"), strict=True))
        tensors = {name: torch.cat(parts) for name, parts in gathered.items()}
        return EvaluatedAnswers(prompts, completions, tokens, judged=tensors.pop("judged"), figures=tensors)

    def _judged(self, model: nn.Module, rollout: Rollout, examples: list[dict[str, Any]]) -> Tensor:
        if self.judge is None:
            return rollout.scores
        return score_completions([self.judge], model, self.collector.tokenizer, rollout, examples, len(examples))[:, 0]


def first_prompts(eval_dataset: Dataset | dict[str, Dataset] | None, num_prompts: int | None) -> Dataset:
    """The first prompts of the evaluation set (of several, of the first set); None for all.

    Raises:
        ValueError: There is no evaluation set.
    """
    if isinstance(eval_dataset, dict):
        eval_dataset = next(iter(eval_dataset.values()))
    if eval_dataset is None:
        raise ValueError("PPOTrainer: generate_completions() needs prompts; pass eval_dataset to the constructor.")
    return eval_dataset if num_prompts is None else eval_dataset.select(range(min(len(eval_dataset), num_prompts)))
