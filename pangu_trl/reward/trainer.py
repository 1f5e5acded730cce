"""Training of a reward model on K ranked answers."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import EvalPrediction, PreTrainedModel
from transformers.trainer_utils import PredictionOutput, TrainOutput
from trl import RewardTrainer

from pangu_trl.data.collators import PackedRankingCollator, RankingCollator
from pangu_trl.data.streams import read_whole
from pangu_trl.data.tokenized_datasets import RANKING_ANNOTATIONS
from pangu_trl.models.attribute_head import (
    attribute_weights,
    check_attribute_head,
    describe_attributes,
    shown_as_one_output,
)
from pangu_trl.models.sharding import runs_zero3
from pangu_trl.runs.broken_training import stop_on_broken_training
from pangu_trl.runs.coarse_weights import check_coarse_weights
from pangu_trl.runs.passed_optimizers import check_passed_optimizers
from pangu_trl.runs.pushing import keep_options_private
from pangu_trl.runs.streaming import is_stream, report_streams, resolve_stream
from pangu_trl.runs.whole_evaluation import evaluate_on_all

from .answer_scores import answer_attributes, answer_scores, scores_at_tokens
from .attributes import COLUMN as ATTRIBUTE_COLUMN
from .batch_figures import batch_sums, weight_of_batch
from .card import RewardCard, read_reward_card
from .config import KWiseRewardConfig
from .evaluation import ranking_metrics
from .language_model import head_states, language_model_losses, mean_of_ranked
from .losses import (
    attribute_loss,
    centring_loss,
    has_pair,
    pairwise_loss,
    plackett_luce_loss,
    preference_shares,
    sum_to_zero_penalty,
    tokenwise_loss,
)
from .preparation import PREDICTED, prepare_rankings
from .resolve import resolve_scoring
from .sampler import LengthBucketSampler, ranking_lengths


class KWiseRewardTrainer(RewardTrainer):
    """Trains a sequence classification model with one output on prompts with K >= 2 ranked answers each.

    Takes what TRL's RewardTrainer takes (PEFT, evaluation sets by name, hub), with rankings as the data:
    `{"prompt", "responses", "scores"}` or `{"prompt", "chosen", "rejected"}`, or the last two alone, with a `margin` if
    the pairwise loss is to have one; or token ids, `{"chosen_ids", "rejected_ids"}`. The objective is
    the mean over the prompts of the GLOBAL batch that have an ordered pair, so it does not depend on gradient
    accumulation, the number of ranks, padding or order. With K = 2 it is RewardTrainer's. Evaluation is exact over
    ranks, see `ranking_metrics`.
    """

    # `compute_loss` divides by the prompts of the whole accumulated batch.
    loss_is_scaled_for_ga = True
    _tag_names = ["pangu_trl", "k-wise-reward-trainer"]
    _name = "K-wise Reward"

    def __init__(
        self,
        model: Any,
        args: KWiseRewardConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: Any = None,
        compute_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Takes RewardTrainer's arguments.

        `compute_metrics` is called with the rewards and the annotated scores, and its figures are added to ours.
        """
        if args is None:
            args = KWiseRewardConfig()
        # Of the streams the one that is learnt from; `_prepare_dataset` gets the others too, whatever their names.
        self._stream = train_dataset if is_stream(train_dataset) else None
        if self._stream is not None:
            resolve_stream(args, "KWiseRewardTrainer")
        self._extra_metrics = compute_metrics
        has_own_collator = data_collator is not None
        if not has_own_collator:
            # The pad id is replaced below: TRL decides in its constructor what pads.
            if args.prefix_sharing:
                data_collator = PackedRankingCollator(-1, args.max_row_tokens, args.pad_to_multiple_of)
            else:
                data_collator = RankingCollator(-1, args.pad_to_multiple_of)
        if args.attributes:
            check_attribute_head(
                "KWiseRewardTrainer: the model", model, len(args.attributes), kwargs.get("peft_config")
            )
        # RewardTrainer takes models with one output only, and looks at nothing but this number.
        with shown_as_one_output(model) if args.attributes else nullcontext():
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=self._ranking_metrics,
                **kwargs,
            )
        if args.attributes:
            describe_attributes(model.config, args.attributes, self._attribute_weights())
        if not has_own_collator:
            data_collator.pad_token_id = self.processing_class.pad_token_id
        with self.accelerator.autocast():
            resolve_scoring(
                args,
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                shards_weights=runs_zero3(args) or self.is_fsdp_enabled,
            )
        check_passed_optimizers(self)
        check_coarse_weights(self)
        stop_on_broken_training(self)
        keep_options_private(self)
        report_streams(self, self.train_dataset)
        evaluate_on_all(self)
        self._max_answers = 2 if is_stream(self.train_dataset) else max(map(len, self.train_dataset["scores"]))
        self._score_statistics: dict[str, Any] = {}
        # Whether no step has changed the weights since the last evaluation.
        self.weights_are_evaluated = False

    def _attribute_weights(self) -> list[float] | None:
        """Weight of each attribute; None where there are none."""
        names = self.args.attributes
        return None if not names else self.args.attribute_weights or [1.0] * len(names)

    def _prepare_dataset(
        self, dataset: Dataset | IterableDataset, processing_class: Any, args: KWiseRewardConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        # TRL's only hook for another record format.
        is_learnt_stream = is_stream(dataset) and dataset is self._stream
        if is_learnt_stream:
            self._stream = None
        return prepare_rankings(dataset, processing_class, args, dataset_name, is_learnt_stream)

    def predict(self, test_dataset: Dataset, *args: Any, **kwargs: Any) -> PredictionOutput:
        """RewardTrainer's, on rankings as they are read, too.

        Raises:
            ValueError: A ranking is longer than `max_length`, so that its answers cannot be scored.
        """
        if is_stream(test_dataset):
            test_dataset = read_whole(test_dataset, None, PREDICTED)
        encoded = self._prepare_dataset(test_dataset, self.processing_class, self.args, PREDICTED)
        if len(encoded) < len(test_dataset):
            raise ValueError(
                f"KWiseRewardTrainer: {len(test_dataset) - len(encoded)} of {len(test_dataset)} rankings to predict "
                f"have more than max_length = {self.args.max_length} tokens. Leave them out, or raise max_length."
            )
        return super().predict(encoded, *args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """RewardTrainer's, also after an evaluation.

        transformers prepares the model for evaluation only, accelerate then takes it for prepared, and several ranks
        would train apart without averaging their gradients.
        """
        if self.model_wrapped is self.model:
            self.model._is_accelerate_prepared = False
        return super().train(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["prompt_input_ids", "response_input_ids", "scores", *RANKING_ANNOTATIONS]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return LengthBucketSampler(
            ranking_lengths(dataset),
            batch_size=self.args.train_batch_size * self.args.world_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            # The epoch is a share of the steps taken; what rounding leaves below a whole number belongs to it.
            current_epoch=lambda: int((self.state.epoch or 0.0) + 1e-6),
        )

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # transformers would sort evaluation data by length too, and `predict` return another order than the data's.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Fetches the batches of one optimiser step and counts their prompts with an ordered pair, over all ranks.

        Where the data has weights, it adds up those of these prompts.
        """
        batch_samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = sum(weight_of_batch(batch) for batch in batch_samples)
        if is_stream(self.train_dataset):
            largest = torch.tensor(max((batch["answer_mask"].shape[1] for batch in batch_samples), default=0))
            self._max_answers = max(self._max_answers, int(self.accelerator.gather(largest.to(device)).max()))
        return batch_samples, self.accelerator.reduce(torch.as_tensor(count, device=device), reduction="sum")

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Under DeepSpeed transformers casts float inputs to the model's dtype; in bfloat16 close scores would tie.
        names = [name for name in ("scores", *RANKING_ANNOTATIONS) if name in inputs]
        exact = {name: inputs[name].to(self.args.device) for name in names}
        return super()._prepare_inputs(inputs) | exact

    def _reward_model(self) -> PreTrainedModel:
        """The sequence classification model inside whatever training wrapped around it."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    def score_answers(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Reward of every answer, (B, K) in float32, by the (wrapped) reward model; see `answer_scores`."""
        return answer_scores(model, inputs, self._attribute_weights())

    def _ranking_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Rewards (B, K) and the loss of each prompt (B,)."""
        labels, answer_mask, args = inputs["scores"], inputs["answer_mask"], self.args
        if args.loss_type == "regression":
            weights = self._attribute_weights()
            attributes = answer_attributes(model, inputs, len(weights))
            rewards = attributes @ attributes.new_tensor(weights)
            losses = attribute_loss(attributes, inputs[ATTRIBUTE_COLUMN], answer_mask)
        elif args.loss_type == "tokenwise":
            rewards, scores = scores_at_tokens(model, inputs)
            lengths = inputs["prompt_lengths"].unsqueeze(1) + inputs["answer_lengths"]
            losses = tokenwise_loss(scores, inputs["input_ids"], lengths, labels, answer_mask)
        else:
            rewards = answer_scores(model, inputs, whole_rows=args.lm_coefficient is not None)
            if args.loss_type == "plackett_luce":
                losses = plackett_luce_loss(rewards, labels, answer_mask)
            else:
                annotated = inputs.get("annotator_scores")
                losses = pairwise_loss(
                    rewards,
                    labels,
                    answer_mask,
                    args.margin_coefficient,
                    inputs.get("margin"),
                    args.label_smoothing,
                    None if annotated is None else preference_shares(annotated),
                )
        if args.center_rewards_coefficient is not None:
            losses = losses + args.center_rewards_coefficient * centring_loss(rewards, labels, answer_mask)
        if args.sum_to_zero_coefficient is not None:
            penalty = args.sum_to_zero_coefficient * sum_to_zero_penalty(rewards, answer_mask)
            # A share for each prompt that counts, so that batches of an optimiser step count by their prompts.
            losses = losses + penalty * has_pair(labels, answer_mask)
        return rewards, losses * inputs["weight"] if "weight" in inputs else losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Sum of the prompts' losses over the number of prompts with a pair in the global batch."""
        with head_states(self._reward_model()) if self.args.lm_coefficient is not None else nullcontext() as states:
            rewards, losses = self._ranking_losses(model, inputs)
        if states:
            of_answers = language_model_losses(self._reward_model(), states[0], inputs, self.args)
            self._metrics["train"]["lm_loss"].append(mean_of_ranked(of_answers.detach(), inputs).item())
            losses = losses + self.args.lm_coefficient * of_answers * inputs.get("weight", 1.0)
        if num_items_in_batch is None:
            num_items_in_batch = weight_of_batch(inputs)
            num_ranks = 1
        else:
            # Gradients are averaged over the ranks, the objective is a sum over them.
            num_ranks = self.accelerator.num_processes
        loss = losses.sum() * num_ranks / (float(num_items_in_batch) or 1)
        self._record_batch(rewards.detach(), inputs)
        return (loss, rewards) if return_outputs else loss

    def _record_batch(self, rewards: Tensor, inputs: dict[str, Tensor]) -> None:
        """Keeps TRL's training figures (RewardTrainer.log averages them over the steps since the last log)."""
        # The step changes the weights.
        self.weights_are_evaluated = False
        metrics = self._metrics["train"]
        sums = batch_sums(rewards, inputs)
        num_tokens, reward, num_answers, right, gap, num_pairs = self.accelerator.reduce(sums, "sum").tolist()
        if not math.isfinite(reward):
            raise ValueError(
                f"KWiseRewardTrainer: the reward model gave {reward} at step {self.state.global_step}; stopped before "
                "the update. Check the weights that it started from, and lower the learning rate."
            )
        self._total_train_tokens += int(num_tokens)
        metrics["num_tokens"] = [self._total_train_tokens]
        metrics["mean_reward"].append(reward / num_answers)
        if num_pairs:
            metrics["accuracy"].append(right / num_pairs)
            metrics["margin"].append(gap / num_pairs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Rewards (B, K); annotated scores, mask and lengths of the answers. The loss is that of the whole set."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            rewards = self.score_answers(model, inputs)
        return None, rewards, (inputs["scores"], inputs["answer_mask"].long(), inputs["answer_lengths"])

    def _ranking_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        labels, mask, lengths = (torch.from_numpy(np.asarray(array)) for array in prediction.label_ids)
        rewards = torch.from_numpy(np.asarray(prediction.predictions))
        # Batches with fewer answers were padded with -100, in the mask too.
        metrics = ranking_metrics(rewards, labels, mask == 1, self.args.min_score_gap, lengths)
        if self._extra_metrics is not None:
            metrics |= self._extra_metrics(prediction)
        return metrics

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """RewardTrainer's, and keeps mean and standard deviation of the scores for the model's card."""
        metrics = super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if f"{metric_key_prefix}_reward_mean" in metrics:
            self._score_statistics = {
                "score_mean": metrics[f"{metric_key_prefix}_reward_mean"],
                "score_std": metrics[f"{metric_key_prefix}_reward_std"],
                "scored_set": metric_key_prefix,
            }
            self.weights_are_evaluated = True
        return metrics

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also takes up the largest K, which of a stream only those know who have read it."""
        card = None if checkpoint is None else read_reward_card(checkpoint)
        if card is not None:
            self._max_answers = max(self._max_answers, card.max_answers)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        card = read_reward_card(self.state.best_model_checkpoint)
        if card is not None:
            self._score_statistics = card.score_statistics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            # Every rank comes here, and there is one folder.
            return
        card = RewardCard.describe(
            self.processing_class,
            loss_type=self.args.loss_type,
            max_answers=self._max_answers,
            attributes=attribute_weights(self._reward_model().config, "KWiseRewardTrainer: the model"),
            **(self._score_statistics if self.weights_are_evaluated else {}),
        )
        card.save(output_dir or self.args.output_dir)
