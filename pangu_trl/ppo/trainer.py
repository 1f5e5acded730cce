"""PPO inside the transformers Trainer: its loop, checkpoints, callbacks and engines."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from trl.models.utils import prepare_deepspeed

from pangu_trl.data.tokenizing import tokenize_prompts

from .advantages import add_at_last_token, gae, shape_rewards, whiten
from .checkpoint import (
    load_policy_and_value,
    load_rollout_state,
    rollout_options,
    save_policy_and_value,
    save_rollout_state,
)
from .checks import check_launch, check_models, check_passed_models, check_tokenizer
from .config import PPOConfig
from .figures import RunningMeans, answer_figures, kl_per_answer, own_random_numbers, rollout_figures, update_figures
from .losses import policy_loss, value_loss
from .models import complete_models
from .policy_value import disable_dropout, parameter_groups
from .rollout import RewardFunction, Rollout, evaluation_mode, generate_rollout, score_completions, score_tokens
from .sampler import RolloutSampler, mini_batch_rows


class PPOTrainer(Trainer):
    """Optimises a causal language model against a reward with PPO (arXiv:1707.06347, arXiv:2203.02155).

    A rollout is collected when the loop asks for the first of its mini-batches: answers are sampled, scored by the
    reward model, the reference and the critic, and turned into advantages; the mini-batches of all passes follow.
    Policy and critic are one module under one engine with one optimiser, whose groups have their own learning rates.

    Args:
        model: The policy; a PEFT model, or a model with `peft_config`, learns only its adapter.
        args: Options.
        reward_model: Sequence classification model with one label, or a function
            `f(prompts, completions, **columns) -> list[float]`.
        value_model: The critic, a sequence classification model with one label, usually a second copy of the reward
            model. Default: a deep copy of `reward_model`.
        ref_model: The reference of the KL penalty. Default: the policy with its adapter off, or for a full policy a
            deep copy of it.
        train_dataset: Prompts, `{"prompt": ...}`; other columns are passed to a reward function.
        eval_dataset: Held-out prompts, or a dict of such datasets.
        processing_class: Tokenizer of the policy (and of the reward model).
        peft_config: Adapter to put on the policy.
        **kwargs: Passed to the Trainer (callbacks, optimizers).

    Raises:
        ValueError: Models, data and options do not fit together; the message says which and what to do.
    """

    # `compute_loss` divides by the tokens of the whole accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: PPOConfig,
        reward_model: PreTrainedModel | RewardFunction,
        value_model: PreTrainedModel | PeftModel | None = None,
        ref_model: PreTrainedModel | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None or train_dataset is None:
            raise ValueError("PPOTrainer: pass train_dataset (prompts) and processing_class (the policy's tokenizer).")
        check_tokenizer(processing_class)
        check_passed_models(model, value_model, ref_model, reward_model, peft_config)
        models, ref_model = complete_models(model, value_model, ref_model, reward_model, peft_config, args)
        check_models(models.policy, models.value_model, ref_model, reward_model, processing_class, args)
        disable_dropout(models)

        def tokenize(dataset: Dataset) -> Dataset:
            return tokenize_prompts(dataset, processing_class, args.max_prompt_length)

        train_dataset = tokenize(train_dataset)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: tokenize(dataset) for name, dataset in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = tokenize(eval_dataset)
        super().__init__(
            model=models,
            args=args,
            data_collator=list,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_launch(args, len(train_dataset))
        # Every rank samples its own answers.
        set_seed(args.seed, device_specific=True)
        self.ref_model = None if ref_model is None else self._prepare_frozen(ref_model)
        self.reward_model = self._prepare_frozen(reward_model) if isinstance(reward_model, nn.Module) else reward_model
        self.kl_coef = args.kl_coef
        self._rollout: Rollout | None = None
        self._update_tokens: Tensor | None = None
        self._micro_step: int | None = None
        self._figures = RunningMeans()

    def _prepare_frozen(self, model: nn.Module) -> nn.Module:
        """Readies a model that does not learn: its own engine under DeepSpeed, otherwise placed on the device."""
        model.eval().requires_grad_(False)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the prompts of one rollout, each repeated for every mini-batch that is learnt from it."""
        chunk_size, repeats = self.args.rollout_batch_size * self.args.world_size, self.args.mini_batches_per_rollout
        mini_batches_per_epoch = len(self.train_dataset) // chunk_size * repeats
        steps_per_epoch = mini_batches_per_epoch // self.args.gradient_accumulation_steps
        sampler = RolloutSampler(
            num_prompts=len(self.train_dataset),
            chunk_size=chunk_size,
            repeats=repeats,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            current_epoch=lambda: self.state.global_step // steps_per_epoch,
        )
        loader = DataLoader(
            self.train_dataset, batch_size=self.args.rollout_batch_size, sampler=sampler, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One optimiser; the groups of the critic have `critic_learning_rate`."""
        if self.optimizer is None:
            model = self.model if model is None else model
            learning_rates = {"policy": self.args.learning_rate, "value_model": self.args.critic_learning_rate}
            decayed = set(self.get_decay_parameter_names(model))
            groups = parameter_groups(model, learning_rates, decayed, self.args.weight_decay)
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
        return self.optimizer

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains as `Trainer.train` does, from a new rollout or the one of the checkpoint to resume from."""
        self._rollout, self._micro_step = None, None
        return super().train(*args, **kwargs)

    # One step, in the order in which it happens.

    def _prepare_inputs(self, inputs: list[dict[str, Any]]) -> Rollout:
        """Turns the batch of prompts that the loop fetched into the mini-batch to learn from.

        The inputs do not pass through the Trainer's own method, which under DeepSpeed would cast old
        log-probabilities and advantages to the model's dtype.
        """
        if self._micro_step is None:
            self._micro_step = self.state.global_step * self.args.gradient_accumulation_steps
        position = self._micro_step % self.args.mini_batches_per_rollout
        if position == 0:
            self._rollout = self._collect_rollout(inputs)
        elif self._rollout is None:
            raise RuntimeError("PPOTrainer: no rollout to go on with; the checkpoint was made without its rollout.")
        return self._rollout.select(self._mini_batch_rows(self._micro_step))

    def _collect_rollout(self, examples: list[dict[str, Any]]) -> Rollout:
        """Answers the prompts of this rank and computes the advantages of every answer token."""
        started = time.perf_counter()
        rollout = self._answer_prompts(examples)
        generated = time.perf_counter()
        self._score_answers(rollout, examples)
        self._estimate_advantages(rollout)
        self._figures.record(rollout_figures(rollout) | {"kl/coef": self.kl_coef})
        self._figures.record({"time/generation": generated - started, "time/scoring": time.perf_counter() - generated})
        self._print_completions(rollout, examples)
        self._adapt_kl_coef(rollout)
        return rollout

    def _answer_prompts(self, examples: list[dict[str, Any]]) -> Rollout:
        prompts = [example["prompt_input_ids"] for example in examples]
        return generate_rollout(self.model_wrapped, self.processing_class, prompts, self.args, self.accelerator)

    def _score_answers(self, rollout: Rollout, examples: list[dict[str, Any]]) -> None:
        """Scores of the answers; log-probabilities of policy and reference, and values, of their tokens.

        Runs in the batches of the first pass: learning repeats the very same computation, so its first ratio is
        exactly 1.
        """
        batch_size = self.args.per_device_train_batch_size
        rollout.scores = score_completions(self.reward_model, self.processing_class, rollout, examples, batch_size)
        unwrapped = self.accelerator.unwrap_model(self.model_wrapped)
        with evaluation_mode(unwrapped), self.compute_loss_context_manager():
            score_tokens(self.model_wrapped, self.ref_model, rollout, batch_size, self.args.temperature)

    def _estimate_advantages(self, rollout: Rollout) -> None:
        """Rewards from scores and KL, then advantages and returns."""
        args, mask = self.args, rollout.completion_mask
        rewards = shape_rewards(
            rollout.scores,
            rollout.logprobs,
            rollout.ref_logprobs,
            mask,
            self.kl_coef,
            args.kl_estimator,
            args.reward_clip,
        )
        if args.missing_eos_penalty is not None:
            # After the clip, which would swallow the penalty of an answer whose score is below -reward_clip.
            rewards = add_at_last_token(rewards, -args.missing_eos_penalty * (~rollout.ended), mask)
        rollout.advantages, rollout.returns = gae(rewards, rollout.values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            rollout.advantages = whiten(rollout.advantages, mask, self._sum_over_ranks)
        self._figures.record({"reward/shaped": rewards.sum(dim=1).mean()})

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _mini_batch_rows(self, micro_step: int) -> Tensor:
        args = self.args
        rows = mini_batch_rows(
            micro_step, args.per_device_train_batch_size, args.num_rollout_batches, args.num_ppo_epochs, args.seed
        )
        return rows.to(self.accelerator.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Rollout,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Clipped policy loss + vf_coef * clipped value loss, means over the answer tokens of the global batch."""
        args, mask = self.args, inputs.completion_mask
        outputs = model(inputs.input_ids, inputs.attention_mask, inputs.completion_width, args.temperature)
        num_tokens = self._tokens_of_update() / self.accelerator.num_processes
        policy = policy_loss(outputs["logprobs"], inputs.logprobs, inputs.advantages, mask, args.cliprange, num_tokens)
        value = value_loss(outputs["values"], inputs.values, inputs.returns, mask, args.cliprange_value, num_tokens)
        # The losses are shares of the optimiser step's; their mean over its mini-batches is to be the whole.
        shares = {"policy/loss": policy.detach(), "value/loss": value.detach()}
        self._figures.record({name: share * args.gradient_accumulation_steps for name, share in shares.items()})
        self._figures.record(update_figures(outputs["logprobs"], inputs, args.cliprange))
        self._micro_step += 1
        return policy + args.vf_coef * value

    def _tokens_of_update(self) -> Tensor:
        """Answer tokens of the current optimiser step, over its mini-batches and all ranks."""
        accumulation = self.args.gradient_accumulation_steps
        if self._micro_step % accumulation == 0:
            rows = torch.cat([self._mini_batch_rows(self._micro_step + offset) for offset in range(accumulation)])
            local = self._rollout.completion_mask[rows].sum()
            self._update_tokens = self._sum_over_ranks(local)
        return self._update_tokens

    def _adapt_kl_coef(self, rollout: Rollout) -> None:
        """Moves kl_coef so that the KL divergence tends to its target (Ziegler et al. 2019, 2.2, arXiv:1909.08593)."""
        if self.args.adaptive_kl_target is None:
            return
        divergence = self.accelerator.reduce(kl_per_answer(rollout).mean(), reduction="mean").item()
        error = min(max(divergence / self.args.adaptive_kl_target - 1, -0.2), 0.2)
        answers = self.args.rollout_batch_size * self.accelerator.num_processes
        self.kl_coef *= 1 + error * answers / self.args.kl_horizon

    # Figures: each is defined once, in docs/ppo.md.

    def _print_completions(self, rollout: Rollout, examples: list[dict[str, Any]]) -> None:
        if self.args.log_completions and self.is_world_process_zero():
            texts = self.processing_class.batch_decode(rollout.completions()[:4], skip_special_tokens=True)
            for example, text, score in zip(examples, texts, rollout.scores.tolist(), strict=False):
                tqdm.write(f"step {self.state.global_step} | {score:+.2f} | {example['prompt']} => {text}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means over steps and ranks of what was recorded since the last training log."""
        if not any(key.startswith("eval_") for key in logs):
            logs |= self._figures.take(self.accelerator)
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Answers held-out prompts and scores the answers: reward, KL divergence, length, share that ended.

        Samples with the training options and a seed of its own, so that evaluations differ by the policy alone.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ValueError("PPOTrainer: evaluate() needs prompts; pass eval_dataset to it or to the constructor.")
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, dataset in eval_dataset.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if "prompt_input_ids" not in eval_dataset.column_names:
            eval_dataset = tokenize_prompts(eval_dataset, self.processing_class, self.args.max_prompt_length)
        if self.is_deepspeed_enabled and self.deepspeed is None:
            raise ValueError("PPOTrainer: under DeepSpeed evaluate during training (eval_on_start for a first figure).")
        figures = defaultdict(list)
        with own_random_numbers(self.args.seed, self.accelerator.device):
            for examples in self.get_eval_dataloader(eval_dataset):
                rollout = self._answer_prompts(examples)
                self._score_answers(rollout, examples)
                for name, per_answer in answer_figures(rollout).items():
                    figures[name].append(self.accelerator.gather_for_metrics(per_answer))
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {f"{metric_key_prefix}_{name}": torch.cat(parts).mean().item() for name, parts in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            output_dir = self.args.output_dir if output_dir is None else output_dir
            save_policy_and_value(self.accelerator.unwrap_model(self.model), output_dir, state_dict)
            self.processing_class.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_policy_and_value(
            self.accelerator.unwrap_model(self.model if model is None else model), resume_from_checkpoint
        )

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_policy_and_value(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self.args.save_only_model:
            # First, since the Trainer pushes and rotates checkpoints once it has written its own part.
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            rank, options = self.accelerator.process_index, rollout_options(self.args)
            save_rollout_state(folder, rank, self._rollout, self.kl_coef, options)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            rank, device = self.accelerator.process_index, self.accelerator.device
            self._rollout, self.kl_coef = load_rollout_state(checkpoint, rank, device, rollout_options(self.args))
        super()._load_optimizer_and_scheduler(checkpoint)
