"""PPO inside the transformers Trainer: its loop, checkpoints, callbacks and engines."""

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import TrainOutput

from pangu_trl.models.modes import disable_dropout
from pangu_trl.models.sharding import prepare_frozen, runs_zero3
from pangu_trl.runs.broken_training import stop_on_broken_training
from pangu_trl.runs.checkpoints import checkpoint_dir
from pangu_trl.runs.coarse_weights import check_coarse_weights
from pangu_trl.runs.folders import EMA_FOLDER
from pangu_trl.runs.passed_optimizers import check_passed_optimizers
from pangu_trl.runs.pushing import keep_options_private
from pangu_trl.runs.resuming import resume_exactly
from pangu_trl.runs.stopping import save_when_told_to_stop
from pangu_trl.runs.streaming import is_stream, report_streams, resolve_stream
from pangu_trl.runs.whole_evaluation import evaluate_on_all

from .actor_critic.averaging import WeightAverage
from .actor_critic.build import build_models
from .actor_critic.optimizer import delay_policy, parameter_groups
from .actor_critic.quantised import check_quantised_launch
from .actor_critic.reference import check_reference
from .callbacks import AverageAfterStep
from .checkpoint import load_policy_and_value, save_learnt, save_policy_and_value
from .checks import (
    check_constructor,
    check_launch,
    check_models,
    check_passed_models,
    check_texts,
    check_tokenizer,
)
from .collector import RolloutCollector
from .config import PPOConfig
from .data_checks import check_best_metric, check_data_columns, check_datasets
from .evaluation import Evaluation, first_prompts
from .first_pass import check_first_pass, largest_gap
from .generation.engines import chosen_engine, resolve_engine, vllm_of
from .losses import policy_loss, value_loss
from .metrics import RunningMeans, update_figures
from .passes import PassesOverRollout
from .resolve import (
    resolve_checkpointing,
    resolve_model_pad_tokens,
    resolve_pad_token,
    resolve_padding,
    resolve_quantised,
    resolve_vocabulary,
)
from .reward_sources import ModelReward, Reward, RewardFunction, TextModelReward, reward_sources
from .rollout import Rollout
from .run_state import RunState, rollout_options, state_of, take_up
from .sample_tables import show_in_trackers, write_table
from .sampler import RolloutSampler
from .texts import TextBatches, prepare_prompts, stream_prompts
from .unused_options import check_unused


class PPOTrainer(Trainer):
    """Optimises a causal language model against a reward with PPO (arXiv:1707.06347, arXiv:2203.02155).

    What the loop fetches from the loader are prompts, the same for all mini-batches of a rollout. `training_step`
    answers them when a rollout is due: answers are sampled, scored by the rewards, the reference and the critic, and
    turned into advantages. `_prepare_inputs` then puts the mini-batch to learn from in the place of the prompts. Policy
    and critic are one module under one engine with one optimiser, whose groups have their own learning rates.

    Args:
        model: The policy; a PEFT model, or a model with `peft_config`, learns only its adapter.
        args: Options.
        reward_model: Sequence classification model with one label, a function
            `f(prompts, completions, **columns) -> list[float]`, with `share_backbone="all"` the folder (or PeftModel)
            of a reward adapter, or a list of these, weighted by `reward_weights`.
        value_model: The critic, a sequence classification model with one label, usually a second copy of the reward
            model. Default: a deep copy of the first reward model.
        ref_model: The reference of the KL penalty. Default: the policy as it is passed in. That is the policy with its
            adapter off where the adapter starts at nothing, and a frozen copy otherwise, which shares with the policy
            what does not learn. So a trained adapter's reference is that adapter, not its base model. None is kept with
            `kl_coef` 0 and without `eval_dataset`.
        train_dataset: Prompts, `{"prompt": ...}` (text or messages) or `{"input_ids": ...}`; other columns are passed
            to a reward function. An `IterableDataset` is read as it is needed, see docs/data.md.
        eval_dataset: Held-out prompts, or a dict of such datasets.
        processing_class: Tokenizer of the policy (and of a reward model without its own).
        peft_config: Adapter to put on the policy.
        reward_processing_class: Tokenizer of the reward model where it reads other tokens than the policy writes; a
            list for several rewards.
        ptx_dataset: Texts or demonstrations whose language-model loss is mixed in, weighted by `ptx_coef`.
        judge: Function that compares answers in the evaluation's win rate. Default: the reward.
        **kwargs: Passed to the Trainer (callbacks, optimizers, optimizer_cls_and_kwargs without a learning rate).

    Raises:
        ValueError: Models, data and options do not fit together; the message says which and what to do.
    """

    # `compute_loss` divides by the tokens of the whole accumulated batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: PPOConfig,
        reward_model: Reward | list[Reward],
        value_model: PreTrainedModel | PeftModel | None = None,
        ref_model: PreTrainedModel | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        reward_processing_class: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        ptx_dataset: Dataset | IterableDataset | None = None,
        judge: RewardFunction | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        # 1. What the user passed: refused, or completed.
        check_constructor(model, args, train_dataset, processing_class, data_collator)
        check_datasets(train_dataset, eval_dataset)
        check_best_metric(args, eval_dataset)
        check_unused(args, kwargs)
        if is_stream(train_dataset):
            resolve_stream(args, "PPOTrainer")
        check_tokenizer(processing_class)
        resolve_pad_token(processing_class)
        rewards = reward_sources(
            reward_model,
            reward_processing_class,
            args.reward_weights,
            processing_class,
            args.share_backbone,
            args.judge_form,
        )
        check_data_columns(rewards, judge, train_dataset, eval_dataset)
        has_own_reference, needs_reference = ref_model is not None, args.has_kl_penalty or eval_dataset is not None
        check_reference(ref_model, needs_reference)
        check_passed_models(model, value_model, ref_model, rewards, peft_config, args)
        resolve_quantised(model, value_model, ref_model, rewards)
        models, ref_model = build_models(model, value_model, ref_model, rewards, peft_config, args, needs_reference)
        chosen_engine(args, args, models.policy)
        check_models(models, ref_model, rewards, processing_class, args)
        resolve_model_pad_tokens(models, rewards, processing_class)
        resolve_vocabulary(models, ref_model, processing_class)
        resolve_checkpointing(args, models)
        disable_dropout(models)
        # 2. The Trainer, which knows devices and engines from here on.
        super().__init__(
            model=models,
            args=args,
            data_collator=list,
            train_dataset=stream_prompts(train_dataset, processing_class, args)
            if is_stream(train_dataset)
            else prepare_prompts(train_dataset, processing_class, args.max_prompt_length),
            eval_dataset=prepare_prompts(eval_dataset, processing_class, args.max_prompt_length),
            processing_class=processing_class,
            **kwargs,
        )
        check_quantised_launch(models.policy, self.is_fsdp_enabled or runs_zero3(args))
        resolve_padding(args, models, ref_model, rewards, tiles=not self.is_fsdp_enabled)
        resolve_engine(args, args, [models.policy] if ref_model is None else [models.policy, ref_model])
        check_passed_optimizers(self)
        if ptx_dataset is not None:
            check_texts(args)
        num_prompts = None if is_stream(self.train_dataset) else len(self.train_dataset)
        check_launch(args, num_prompts, self.is_deepspeed_enabled)
        # Every rank samples its own answers.
        set_seed(args.seed, device_specific=True)
        # 3. What does not learn.
        self.ref_model = None if ref_model is None else prepare_frozen(ref_model, self.accelerator)
        for reward in rewards:
            if isinstance(reward, TextModelReward):
                reward.check_reads(self.train_dataset[0])
            if isinstance(reward, ModelReward):
                reward.prepare(self.accelerator)
        # 4. What collects rollouts, and what learns from them.
        self._figures = RunningMeans()
        vllm = vllm_of(args, self.accelerator, processing_class, models)
        if vllm is not None:
            self.add_callback(vllm)
        self.collector = RolloutCollector(
            args,
            self.accelerator,
            processing_class,
            rewards,
            self.ref_model,
            self._figures,
            vllm,
            reference_is_start=not has_own_reference,
        )
        self.evaluation = Evaluation(self.collector, judge, needs_reference)
        self.texts = None if ptx_dataset is None else TextBatches(ptx_dataset, processing_class, args)
        texts = [] if self.texts is None else self.texts.texts
        self.rollout_options = rollout_options(args, num_prompts, None if is_stream(texts) else len(texts))
        self.average: WeightAverage | None = None
        self.passes = PassesOverRollout(args, self.accelerator)
        self.step_was_skipped = False
        self._learning_seconds = 0.0
        self._resumed_state: RunState | None = None
        self.add_callback(AverageAfterStep(self))
        report_streams(self, self.train_dataset, texts)
        check_coarse_weights(self)
        stop_on_broken_training(self)
        resume_exactly(self)
        keep_options_private(self)
        evaluate_on_all(self)
        save_when_told_to_stop(self)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the prompts of one rollout, each repeated for every mini-batch that is learnt from it."""
        sampler = None
        if not is_stream(self.train_dataset):
            sampler = RolloutSampler.of_run(self.args, len(self.train_dataset), lambda: self.state.global_step)
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.prompts_per_rollout,
            sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One optimiser; the groups of the critic have a learning rate and a weight decay of their own."""
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = parameter_groups(
                self.accelerator.unwrap_model(model), self.args, self.get_decay_parameter_names(model)
            )
            chosen = self.optimizer_cls_and_kwargs
            optimizer_class, optimizer_kwargs = chosen or self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule of `lr_scheduler_type`; the policy's is 0 for the first `critic_warmup_steps`."""
        is_new = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if is_new and self.args.critic_warmup_steps:
            delay_policy(scheduler, self.args.critic_warmup_steps, num_training_steps)
        return scheduler

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains as `Trainer.train` does, from a new rollout or the one of the checkpoint to resume from.

        `resume_from_checkpoint=True` takes the last checkpoint that is whole (`resume_exactly` sees to that).
        """
        self.passes = PassesOverRollout(self.args, self.accelerator)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # One step, in the order in which it happens.

    def training_step(
        self, model: nn.Module, inputs: list[dict[str, Any]], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Learns from one mini-batch, unless `target_kl` has ended the passes over the rollout.

        A step without a backward pass leaves no gradients, and an optimiser moves nothing without them.
        """
        passes = self.passes
        if passes.need_rollout:
            passes.start(self.collector.collect(self.model_wrapped, inputs, self.state.global_step))
        self.step_was_skipped = passes.is_stopped
        self._figures.record({"policy/skipped_steps": float(self.step_was_skipped)})
        loss = torch.zeros((), device=self.args.device)
        if not self.step_was_skipped:
            started = time.perf_counter()
            loss = super().training_step(model, inputs, num_items_in_batch)
            self._learning_seconds += time.perf_counter() - started
        passes.advance()
        if passes.need_rollout:
            self._figures.record({"time/learning": self._learning_seconds})
            self._learning_seconds = 0.0
        return loss

    def _prepare_inputs(self, inputs: list[dict[str, Any]]) -> Rollout:
        """Turns the batch of prompts that the loop fetched into the mini-batch to learn from.

        The inputs do not pass through the Trainer's own method, which under DeepSpeed would cast old
        log-probabilities and advantages to the model's dtype.
        """
        return self.passes.mini_batch()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Rollout,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Clipped policy loss + vf_coef * clipped value loss + ptx_coef * loss on texts.

        Means over the global batch, of tokens unless `loss_aggregation` says otherwise. While the critic warms up, the
        policy's losses are left out.
        """
        args, mask = self.args, inputs.learnt_mask
        texts = None if self.texts is None else self.texts.batch(self.passes.micro_step, self.accelerator.device)
        outputs = model(
            inputs.input_ids, inputs.attention_mask, inputs.completion_mask, args.temperature, text_batch=texts
        )
        if self.passes.micro_step == 0:
            limit = largest_gap(args, self.accelerator.unwrap_model(model).policy.dtype)
            check_first_pass(outputs, inputs, self.accelerator, limit)
        num_ranks = self.accelerator.num_processes
        num_tokens = self.passes.num_tokens() / num_ranks
        policy = policy_loss(
            outputs["logprobs"],
            inputs.logprobs,
            inputs.advantages,
            mask,
            args.cliprange,
            self.passes.policy_divisor() / num_ranks,
            args.cliprange_high,
            args.delta,
            inputs.importance_weights,
            args.loss_aggregation,
        )
        shares, value = {"policy/loss": policy.detach()}, 0.0
        if args.has_critic:
            clip = args.value_clip(self.state.global_step)
            value = value_loss(outputs["values"], inputs.values, inputs.returns, mask, clip, num_tokens)
            shares["value/loss"] = value.detach()
        if texts is not None:
            ptx = outputs["text_loss"] / (self.texts.num_labels(self.passes.micro_steps_of_update) / num_ranks)
            shares["policy/ptx_loss"] = ptx.detach()
            policy = policy + args.ptx_coef * ptx
        if self.state.global_step < args.critic_warmup_steps:
            policy = 0.0 * policy
        # The losses are shares of the optimiser step's; their mean over its mini-batches is to be the whole.
        self._figures.record({name: share * args.gradient_accumulation_steps for name, share in shares.items()})
        update = update_figures(outputs["logprobs"], inputs, args.cliprange, args.cliprange_high, args.delta)
        self._figures.record(update)
        self.passes.note_divergence(update["policy/approx_kl"])
        return policy + args.vf_coef * value

    # Logs and evaluation: each figure is defined once, in docs/ppo.md.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means over steps and ranks of what was recorded since the last training log."""
        if not any(key.startswith("eval_") for key in logs):
            logs |= self._figures.take(self.accelerator)
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Answers held-out prompts and scores the answers: reward, KL divergence, length, variety, win rate.

        Samples with the training options and a seed of its own, so that evaluations differ by the policy alone. The
        win rate compares with the reference's answers, which are sampled once.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ValueError("PPOTrainer: evaluate() needs prompts; pass eval_dataset to it or to the constructor.")
        if isinstance(eval_dataset, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.is_deepspeed_enabled and self.deepspeed is None:
            raise ValueError("PPOTrainer: under DeepSpeed evaluate during training (eval_on_start for a first figure).")
        dataset = prepare_prompts(eval_dataset, self.processing_class, self.args.max_prompt_length)
        ours, rivals = self.evaluation.answers(self.model_wrapped, dataset, self.get_eval_dataloader)
        metrics = {f"{metric_key_prefix}_{name}": figure for name, figure in ours.metrics(rivals).items()}
        if self.args.log_completions and self.is_world_process_zero():
            name = f"{metric_key_prefix}-{self.state.global_step}.jsonl"
            rows = ours.table(rivals)
            write_table(Path(self.args.output_dir) / "completions" / name, rows)
            show_in_trackers(self.args.report_to, self.callback_handler.callbacks, rows, self.state.global_step)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: answers have no labels to predict.

        Raises:
            ValueError: Always; the message says what to call.
        """
        raise ValueError(
            "PPOTrainer: predict() has no meaning for answers; evaluate(prompts) scores them and writes them with "
            "log_completions, generate_completions() prints a few, and `pangu-trl sample` keeps them in a file."
        )

    def generate_completions(self, sampling: bool = False) -> None:
        """Prints answers to the first evaluation prompts and their scores, as TRL's method of this name did.

        Args:
            sampling: As in TRL, whether a few prompts are enough: those of one batch instead of all.
        """
        num_prompts = self.args.per_device_eval_batch_size if sampling else None
        prompts = first_prompts(self.eval_dataset, num_prompts)
        ours, _ = self.evaluation.answers(self.model_wrapped, prompts, self.get_eval_dataloader)
        if self.is_world_process_zero():
            ours.print_scored()

    # Checkpoints.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves policy and critic, and with `ema_decay` the averaged policy in the folder `ema` beside them."""
        super().save_model(output_dir, _internal_call)
        if self.average is not None:
            weights = self.average.whole_weights()
            if self.args.should_save:
                folder = Path(output_dir or self.args.output_dir) / EMA_FOLDER
                save_learnt(self.accelerator.unwrap_model(self.model).policy, folder, weights)
                self.processing_class.save_pretrained(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            output_dir = self.args.output_dir if output_dir is None else output_dir
            for folder in save_policy_and_value(self.accelerator.unwrap_model(self.model), output_dir, state_dict):
                self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            # The engine's own file beside the models goes to the shards.
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_policy_and_value(
            self.accelerator.unwrap_model(self.model if model is None else model), resume_from_checkpoint
        )

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_policy_and_value(self.accelerator.unwrap_model(self.model), self.state.best_model_checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the state of the run, then what the Trainer writes."""
        if not self.args.save_only_model:
            folder = checkpoint_dir(self._get_output_dir(trial=trial), self.state.global_step)
            state_of(self).save(folder, self.accelerator.process_index, self.args.should_save)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also takes up the state of the run."""
        if checkpoint is not None:
            self._resumed_state = take_up(self, checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def start_average(self) -> None:
        """Starts or goes on with the average of the policy's weights; by now the engine has taken and loaded them."""
        if self.args.ema_decay is not None:
            self.average = WeightAverage(self.accelerator.unwrap_model(self.model).policy, self.args.ema_decay)
            if self._resumed_state is not None:
                self.average.load_state_dict(self._resumed_state.average)
        self._resumed_state = None
