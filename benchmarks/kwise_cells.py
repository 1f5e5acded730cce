"""One cell of the K-wise study: an annotator's rankings, a reward model trained on them, and how good it is.

Beside the trainer's own losses three that look at less of a ranking: adjacent pairs, best against worst, and the best
of all (the first draw of Plackett-Luce). With K = 2 all five are the same loss.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer, PPOConfig, PPOTrainer
from pangu_trl.answers.sampling import SamplingConfig, sample_answers
from pangu_trl.data.tokenized_datasets import tokenize_rankings
from pangu_trl.reward.calibration import calibration_metrics
from pangu_trl.reward.evaluation import are_highest, ranking_metrics
from pangu_trl.reward.losses import has_pair, mean_over_pairs, ordered_pairs

MAX_LENGTH = 64
BATCH_PROMPTS, PASSES, LEARNING_RATE = 16, 2, 1e-2
# Reward models are smaller than what wrote the answers, and start from random weights, for the reason that
# recipes/demo/reward.yaml gives.
REWARD_SHAPE = dict(hidden_size=32, num_layers=1)
PPO_SETTINGS = dict(
    per_device_train_batch_size=32,
    generation_batch_size=128,
    num_rollout_batches=4,
    num_ppo_epochs=2,
    learning_rate=2e-4,
    critic_learning_rate=5e-4,
    lr_scheduler_type="constant",
    kl_coef=0.1,
    max_prompt_length=64,
)


@dataclass(frozen=True)
class Cell:
    """What one reward model is trained on.

    Attributes:
        text: Name of the text.
        loss: One of `LOSSES`, or "pairwise" or "plackett_luce".
        num_answers: K.
        noise: Share of all pairs that the annotator gets the wrong way round.
        num_prompts: Rankings.
        seed: Draws the rankings, the annotator's mistakes, the score head and the order.
        ppo_steps: Optimiser steps of PPO against the trained model; 0 for none.
    """

    text: str
    loss: str
    num_answers: int
    noise: float
    num_prompts: int
    seed: int
    ppo_steps: int = 0


def adjacent_pairs(labels: Tensor, mask: Tensor) -> Tensor:
    """The ordered pairs with no answer between them, (B, K, K); arguments as `ordered_pairs`."""
    pairs = ordered_pairs(labels, mask)
    # [i, a, b]: the answers c of the prompt with a > c > b.
    between = pairs.float() @ pairs.float()
    return pairs & (between == 0)


def best_and_worst_pairs(labels: Tensor, mask: Tensor) -> Tensor:
    """The pairs of a best and a worst answer, (B, K, K); arguments as `ordered_pairs`."""
    ends = are_highest(labels, mask).unsqueeze(2) & are_highest(-labels, mask).unsqueeze(1)
    return ends & ordered_pairs(labels, mask)


def chosen_pairs_loss(scores: Tensor, pairs: Tensor) -> Tensor:
    """Mean negative log-likelihood of the marked pairs of each prompt, (B,)."""
    scores = scores.masked_fill(~(pairs.any(dim=2) | pairs.any(dim=1)), 0.0)
    return mean_over_pairs(-functional.logsigmoid(scores.unsqueeze(2) - scores.unsqueeze(1)), pairs)


def top1_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Negative log-probability that a best answer is drawn from all, averaged over the best; 0 without a pair, (B,)."""
    is_best = are_highest(labels, mask)
    logprobs = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).log_softmax(dim=1)
    losses = -torch.where(is_best, logprobs, 0.0).sum(dim=1) / is_best.sum(dim=1)
    return torch.where(has_pair(labels, mask), losses, 0.0)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "adjacent": lambda scores, labels, mask: chosen_pairs_loss(scores, adjacent_pairs(labels, mask)),
    "best_worst": lambda scores, labels, mask: chosen_pairs_loss(scores, best_and_worst_pairs(labels, mask)),
    "top1": top1_loss,
}


class StudyTrainer(KWiseRewardTrainer):
    """The trainer with one of `LOSSES` in the place of its own, if it is given one."""

    studied_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def _ranking_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.studied_loss is None:
            return super()._ranking_losses(model, inputs)
        rewards = self.score_answers(model, inputs)
        return rewards, self.studied_loss(rewards, inputs["scores"], inputs["answer_mask"])


class Annotator:
    """Ranks by utility plus Gumbel noise: the share of the pairs that it gets wrong is Bradley-Terry's.

    Answer a is put before b with probability sigmoid((u_a - u_b) / temperature), and the order is transitive
    (Plackett-Luce). One draw of the noise serves all shares: more noise turns round the same pairs and more.

    Args:
        utilities: What the judge thinks, (N, K).
        noise: Mean share of pairs with different utilities to turn round, 0 to below 0.5.
    """

    def __init__(self, utilities: np.ndarray, noise: float) -> None:
        gaps = np.abs(utilities[:, :, None] - utilities[:, None, :])
        gaps = gaps[gaps > 0]
        low, high = 1e-3, 1e4
        for _ in range(60):
            middle = math.sqrt(low * high)
            wrong = float(np.mean(1 / (1 + np.exp(np.minimum(gaps / middle, 700)))))
            low, high = (middle, high) if wrong < noise else (low, middle)
        self.temperature = low if noise else 0.0

    def rank(self, utilities: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Noisy scores of the answers, which give their order, in the shape of the utilities."""
        return utilities + self.temperature * generator.gumbel(size=utilities.shape)


class Pool:
    """Prompts of one text with all their answers as tokens, and the judge's utilities.

    Args:
        model: What wrote the answers, and what reward models start from.
        train, test: Records of all answers; those with an empty one are left out.
    """

    def __init__(self, model: Path, train: list[dict], test: list[dict]) -> None:
        self.model = model
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        # A ranking may hold no empty answer.
        train, test = ([r for r in records if all(map(str.strip, r["responses"]))] for records in (train, test))
        self.train_records, self.test_records = train, test
        encoded_train, self.test = (
            tokenize_rankings(Dataset.from_list(records), self.tokenizer, MAX_LENGTH) for records in (train, test)
        )
        self.train = encoded_train.to_list()
        self.train_utilities, self.test_utilities = (
            np.array([record["scores"] for record in records]) for records in (train, test)
        )

    def rankings(self, cell: Cell) -> tuple[Dataset, float]:
        """The annotated rankings of a cell, and the share of their pairs that are the wrong way round.

        Seeds draw prompts and answers in one order, so that cells with more of either have those with fewer, too.
        """
        generator = np.random.default_rng([cell.seed, 1])
        prompts = generator.permutation(len(self.train))[: cell.num_prompts]
        answers = np.stack([generator.permutation(self.train_utilities.shape[1]) for _ in self.train])
        annotator = Annotator(self.train_utilities, cell.noise)
        scores = annotator.rank(self.train_utilities, np.random.default_rng([cell.seed, 2]))
        records, utilities = [], []
        for row in prompts:
            places = answers[row][: cell.num_answers]
            tokens = self.train[row]["response_input_ids"]
            records.append(
                {
                    "prompt_input_ids": self.train[row]["prompt_input_ids"],
                    "response_input_ids": [tokens[place] for place in places],
                    "scores": scores[row][places].tolist(),
                }
            )
            utilities.append(self.train_utilities[row][places])
        return Dataset.from_list(records), turned_round(np.array([r["scores"] for r in records]), np.array(utilities))


def turned_round(scores: np.ndarray, utilities: np.ndarray) -> float:
    """Share of the pairs with different utilities that the scores put the other way, both (N, K)."""
    by_scores, by_utilities = (np.sign(values[:, :, None] - values[:, None, :]) for values in (scores, utilities))
    return float((by_scores * by_utilities < 0).sum() / (by_utilities != 0).sum())


def run_cell(cell: Cell, pool: Pool, judge: Callable[[list[str]], list[float]]) -> dict[str, Any]:
    """Trains and measures one reward model; returns the cell and its figures."""
    dataset, wrong_share = pool.rankings(cell)
    torch.manual_seed(cell.seed)
    config = AutoConfig.from_pretrained(
        pool.model, num_labels=1, pad_token_id=pool.tokenizer.pad_token_id, **REWARD_SHAPE
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        args = KWiseRewardConfig(
            output_dir=folder,
            loss_type="pairwise" if cell.loss in LOSSES else cell.loss,
            num_train_epochs=PASSES,
            per_device_train_batch_size=BATCH_PROMPTS,
            per_device_eval_batch_size=64,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            # Adam makes a loss and its double the same; a bound on the norm of gradients would not.
            max_grad_norm=0.0,
            activation_checkpointing=False,
            seed=cell.seed,
            **_QUIET,
        )
        trainer = StudyTrainer(model, args, train_dataset=dataset, processing_class=pool.tokenizer)
        trainer.studied_loss = LOSSES.get(cell.loss)
        trainer.train()
        rewards = torch.from_numpy(np.asarray(trainer.predict(pool.test).predictions, dtype=np.float64))
        figures = measure(rewards, pool, cell.noise)
        figures |= {"wrong_share": wrong_share, "steps": trainer.state.global_step}
        if cell.ppo_steps:
            figures |= follow_with_ppo(cell, pool, trainer.model, judge, folder)
    return asdict(cell) | figures


def measure(rewards: Tensor, pool: Pool, noise: float) -> dict[str, float]:
    """Figures of a reward model on the held-out prompts.

    Accuracies and gains are those by the judge, without mistakes. Calibration is that by an annotator who makes as many
    mistakes as the one who was learnt from: the model's probabilities are meant for that.
    """
    labels = torch.from_numpy(pool.test_utilities)
    mask = torch.ones_like(labels, dtype=torch.bool)
    metrics = ranking_metrics(rewards, labels, mask)
    annotated = Annotator(pool.train_utilities, noise).rank(pool.test_utilities, np.random.default_rng(3))
    better = ordered_pairs(torch.from_numpy(annotated), mask)
    calibration = calibration_metrics((rewards.unsqueeze(2) - rewards.unsqueeze(1))[better])
    chosen = labels.gather(1, rewards.argmax(dim=1, keepdim=True)).squeeze(1)
    gain, possible = ((values - labels.mean(dim=1)).mean().item() for values in (chosen, labels.amax(dim=1)))
    names = ("pair_accuracy", "best_of_k_accuracy", "kendall_tau")
    return {name: metrics[name] for name in names} | calibration | {"gain": gain, "gain_share": gain / possible}


def follow_with_ppo(
    cell: Cell, pool: Pool, reward_model: nn.Module, judge: Callable[[list[str]], list[float]], folder: str
) -> dict[str, float]:
    """Trains the policy against the reward model; what the judge thinks of its answers before and after."""
    policy = AutoModelForCausalLM.from_pretrained(pool.model)
    answer_tokens = max(len(answer) for record in pool.test for answer in record["response_input_ids"])
    before = judged(policy, pool, judge, answer_tokens)
    reward_model.save_pretrained(f"{folder}/reward")
    reward, critic = (AutoModelForSequenceClassification.from_pretrained(f"{folder}/reward") for _ in range(2))
    args = PPOConfig(
        output_dir=f"{folder}/ppo",
        max_completion_length=answer_tokens,
        max_steps=cell.ppo_steps,
        seed=cell.seed,
        **PPO_SETTINGS,
        **_QUIET,
    )
    prompts = [{"prompt": record["prompt"]} for record in pool.train_records]
    rollout = PPO_SETTINGS["per_device_train_batch_size"] * PPO_SETTINGS["num_rollout_batches"]
    prompts *= math.ceil(rollout / len(prompts))
    trainer = PPOTrainer(
        policy, args, reward, critic, train_dataset=Dataset.from_list(prompts), processing_class=pool.tokenizer
    )
    trainer.train()
    return {"judge_before": before, "judge_after": judged(trainer.model.policy, pool, judge, answer_tokens)}


def judged(policy: nn.Module, pool: Pool, judge: Callable[[list[str]], list[float]], answer_tokens: int) -> float:
    """Mean utility of four answers of a policy to each held-out prompt."""
    prompts = [record["prompt"] for record in pool.test_records]
    sampling = SamplingConfig(max_new_tokens=answer_tokens)
    answers = sample_answers(policy, pool.tokenizer, prompts, 4, sampling, 256, seed=30)
    return float(np.mean(judge([answer.text for group in answers for answer in group])))


_QUIET = dict(
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
    save_strategy="no",
    logging_strategy="no",
    dataloader_num_workers=0,
)
