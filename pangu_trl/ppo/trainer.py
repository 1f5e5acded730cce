"""PPO inside the transformers Trainer: its loop, checkpoints, callbacks and engines."""

import copy
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.models.utils import prepare_deepspeed

from pangu_trl.data.tokenizing import tokenize_prompts

from .advantages import gae, kl_divergence, shape_rewards
from .checkpoint import load_policy_and_value, load_rollout_state, save_policy_and_value, save_rollout_state
from .config import PPOConfig
from .losses import policy_loss, value_loss
from .policy_value import PolicyAndValue, completion_logprobs, disable_dropout
from .rollout import RewardFunction, Rollout, generate_rollout, policy_for_generation, score_completions

logger = logging.getLogger(__name__)


class RolloutSampler(Sampler[int]):
    """Prompts in the order in which rollouts use them: shuffled by (seed, epoch), each chunk repeated.

    Args:
        num_prompts: Size of the dataset.
        chunk_size: Prompts of one rollout over all ranks. What remains at the end of an epoch waits for another one.
        repeats: Mini-batches that are learnt from one rollout; the loop asks the loader for a batch at each.
        seed: Seed of the order.
    """

    def __init__(self, num_prompts: int, chunk_size: int, repeats: int, seed: int) -> None:
        self.num_prompts, self.chunk_size, self.repeats, self.seed = num_prompts, chunk_size, repeats, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; the Trainer calls it, also when it resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_prompts, generator=generator).tolist()
        for start in range(0, self.num_prompts - self.chunk_size + 1, self.chunk_size):
            for _ in range(self.repeats):
                yield from order[start : start + self.chunk_size]

    def __len__(self) -> int:
        return self.num_prompts // self.chunk_size * self.chunk_size * self.repeats


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
        if processing_class.pad_token_id is None:
            logger.warning("The tokenizer has no pad token; its eos token pads. Masks keep the two apart.")
            processing_class.pad_token = processing_class.eos_token
        zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
        if peft_config is not None:
            # ZeRO-3 wants one dtype for all trainable weights.
            model = get_peft_model(model, peft_config, autocast_adapter_dtype=not zero3)
        if value_model is None:
            if not isinstance(reward_model, nn.Module) or zero3:
                raise ValueError("PPOTrainer: pass value_model; it is copied from reward_model only without ZeRO-3.")
            value_model = copy.deepcopy(reward_model)
            value_model.requires_grad_(True)
        if ref_model is None and not isinstance(model, PeftModel):
            if zero3:
                raise ValueError("PPOTrainer: under ZeRO-3 a full policy needs ref_model, a second copy of it.")
            ref_model = copy.deepcopy(model)
        _check_models(model, value_model, ref_model, reward_model, args)
        train_dataset = tokenize_prompts(train_dataset, processing_class, args.max_prompt_length)
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: tokenize_prompts(dataset, processing_class, args.max_prompt_length)
                for name, dataset in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = tokenize_prompts(eval_dataset, processing_class, args.max_prompt_length)
        disable_dropout(model)
        disable_dropout(value_model)

        super().__init__(
            model=PolicyAndValue(model, value_model),
            args=args,
            data_collator=list,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        prompts_needed = args.rollout_batch_size * args.world_size
        if len(train_dataset) < prompts_needed:
            raise ValueError(
                f"PPOTrainer: one rollout needs per_device_train_batch_size * num_rollout_batches * ranks = "
                f"{prompts_needed} prompts; the training set has {len(train_dataset)}."
            )
        # Every rank samples its own answers.
        set_seed(args.seed, device_specific=True)
        self.ref_model = None if ref_model is None else self._prepare_frozen(ref_model)
        self.reward_model = self._prepare_frozen(reward_model) if isinstance(reward_model, nn.Module) else reward_model
        self.kl_coef = args.kl_coef
        self._rollout: Rollout | None = None
        self._update_tokens: Tensor | None = None
        self._micro_step: int | None = None
        self._metrics: dict[str, list[Tensor]] = defaultdict(list)

    def _prepare_frozen(self, model: nn.Module) -> nn.Module:
        """Readies a model that does not learn: its own engine under DeepSpeed, otherwise placed on the device."""
        model.eval().requires_grad_(False)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the prompts of one rollout, each repeated for every mini-batch that is learnt from it."""
        sampler = RolloutSampler(
            num_prompts=len(self.train_dataset),
            chunk_size=self.args.rollout_batch_size * self.args.world_size,
            repeats=self.args.mini_batches_per_rollout,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        loader = DataLoader(
            self.train_dataset, batch_size=self.args.rollout_batch_size, sampler=sampler, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One optimiser; the groups of the critic have `critic_learning_rate`."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups = []
            for prefix, learning_rate in (
                ("policy.", self.args.learning_rate),
                ("value_model.", self.args.critic_learning_rate),
            ):
                for decay in (True, False):
                    parameters = [
                        parameter
                        for name, parameter in model.named_parameters()
                        if parameter.requires_grad and name.startswith(prefix) and (name in decayed) == decay
                    ]
                    if parameters:
                        weight_decay = self.args.weight_decay if decay else 0.0
                        groups.append({"params": parameters, "lr": learning_rate, "weight_decay": weight_decay})
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
        return self.optimizer

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
        self._record_rollout(rollout, examples)
        self._adapt_kl_coef(rollout)
        self._metrics["time/generation"].append(torch.tensor(generated - started))
        self._metrics["time/scoring"].append(torch.tensor(time.perf_counter() - generated))
        return rollout

    def _answer_prompts(self, examples: list[dict[str, Any]]) -> Rollout:
        prompts = [example["prompt_input_ids"] for example in examples]
        gather = self.args.ds3_gather_for_generation
        with policy_for_generation(self.model_wrapped, self.accelerator, gather) as policy:
            return generate_rollout(policy, self.processing_class, prompts, self.args, self.accelerator.device)

    def _score_answers(self, rollout: Rollout, examples: list[dict[str, Any]]) -> None:
        """Scores of the answers; log-probabilities of policy and reference, and values, of their tokens.

        Runs in the batches of the first pass: learning repeats the very same computation, so its first ratio is
        exactly 1.
        """
        batch_size, width = self.args.per_device_train_batch_size, rollout.completion_width
        rollout.scores = score_completions(self.reward_model, self.processing_class, rollout, examples, batch_size)
        outputs = defaultdict(list)
        self.model_wrapped.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for start in range(0, len(rollout.input_ids), batch_size):
                batch = rollout.select(slice(start, start + batch_size))
                for name, tensor in self._token_scores(batch).items():
                    outputs[name].append(nn.functional.pad(tensor, (0, width - tensor.shape[1])))
        for name, tensors in outputs.items():
            setattr(rollout, name, torch.cat(tensors))

    def _token_scores(self, batch: Rollout) -> dict[str, Tensor]:
        arguments = (batch.input_ids, batch.attention_mask, batch.completion_width, self.args.temperature)
        scores = self.model_wrapped(*arguments)
        if self.ref_model is None:
            reference = self.model_wrapped(*arguments, use_reference=True, with_values=False)
            scores["ref_logprobs"] = reference["logprobs"]
        else:
            scores["ref_logprobs"], _ = completion_logprobs(self.ref_model, *arguments)
        return scores

    def _estimate_advantages(self, rollout: Rollout) -> None:
        """Rewards from scores and KL, then advantages and returns."""
        args, mask = self.args, rollout.completion_mask
        scores = rollout.scores
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * (~rollout.ended)
        rewards = shape_rewards(
            scores,
            rollout.logprobs,
            rollout.ref_logprobs,
            mask,
            self.kl_coef,
            args.kl_estimator,
            args.reward_clip,
        )
        rollout.advantages, rollout.returns = gae(rewards, rollout.values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            rollout.advantages = self._whiten(rollout.advantages, mask)
        self._metrics["reward/shaped"].append(rewards.sum(dim=1).mean())

    def _mini_batch_rows(self, micro_step: int) -> Tensor:
        """Rows of this rank's rollout in a mini-batch: in order in the first pass, shuffled anew in each later one."""
        size, position = self.args.per_device_train_batch_size, micro_step % self.args.mini_batches_per_rollout
        epoch, index = divmod(position, self.args.num_rollout_batches)
        rows = torch.arange(self.args.rollout_batch_size)
        if epoch > 0:
            first_of_pass = micro_step - index
            generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + first_of_pass)
            rows = rows[torch.randperm(len(rows), generator=generator)]
        return rows[index * size : (index + 1) * size].to(self.accelerator.device)

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
        self._record_update(outputs, inputs, policy.detach(), value.detach())
        self._micro_step += 1
        return policy + args.vf_coef * value

    def _tokens_of_update(self) -> Tensor:
        """Answer tokens of the current optimiser step, over its mini-batches and all ranks."""
        accumulation = self.args.gradient_accumulation_steps
        index = self._micro_step % accumulation
        if index == 0:
            first = self._micro_step - index
            rows = torch.cat([self._mini_batch_rows(first + offset) for offset in range(accumulation)])
            local = self._rollout.completion_mask[rows].sum()
            self._update_tokens = self.accelerator.reduce(local, reduction="sum")
        return self._update_tokens

    def _whiten(self, values: Tensor, mask: Tensor) -> Tensor:
        """Shifts and scales (N, C) to mean 0 and standard deviation 1 over the masked places of all ranks."""
        kept = values[mask].double()
        count, total = self.accelerator.reduce(
            torch.stack([torch.tensor(float(len(kept)), dtype=torch.float64, device=kept.device), kept.sum()]), "sum"
        )
        mean = total / count
        variance = self.accelerator.reduce((kept - mean).square().sum(), "sum") / count
        return torch.where(mask, (values - mean) / (variance.sqrt() + 1e-8), 0.0).to(values.dtype)

    def _adapt_kl_coef(self, rollout: Rollout) -> None:
        """Moves kl_coef so that the KL divergence tends to its target (Ziegler et al. 2019, 2.2, arXiv:1909.08593)."""
        if self.args.adaptive_kl_target is None:
            return
        divergence = self.accelerator.reduce(_kl_per_answer(rollout).mean(), reduction="mean").item()
        error = min(max(divergence / self.args.adaptive_kl_target - 1, -0.2), 0.2)
        answers = self.args.rollout_batch_size * self.accelerator.num_processes
        self.kl_coef *= 1 + error * answers / self.args.kl_horizon

    # Figures: each is defined once, in docs/ppo.md.

    def _record_rollout(self, rollout: Rollout, examples: list[dict[str, Any]]) -> None:
        metrics, mask = self._metrics, rollout.completion_mask
        for name, per_answer in _answer_figures(rollout).items():
            metrics[name].append(per_answer.mean())
        metrics["reward/std"].append(rollout.scores.std(correction=0))
        metrics["kl/coef"].append(torch.tensor(self.kl_coef))
        metrics["policy/entropy"].append(rollout.entropy[mask].mean())
        metrics["value/mean"].append(rollout.values[mask].mean())
        if self.args.log_completions and self.is_world_process_zero():
            texts = self.processing_class.batch_decode(rollout.completions()[:4], skip_special_tokens=True)
            for example, text, score in zip(examples, texts, rollout.scores.tolist(), strict=False):
                tqdm.write(f"step {self.state.global_step} | {score:+.2f} | {example['prompt']} => {text}")

    def _record_update(self, outputs: dict[str, Tensor], batch: Rollout, policy: Tensor, value: Tensor) -> None:
        mask = batch.completion_mask
        log_ratio = (outputs["logprobs"].detach() - batch.logprobs)[mask]
        clipped = (log_ratio.exp() - 1).abs() > self.args.cliprange
        accumulation = self.args.gradient_accumulation_steps
        self._metrics["policy/loss"].append(policy * accumulation)
        self._metrics["value/loss"].append(value * accumulation)
        self._metrics["policy/clip_fraction"].append(clipped.float().mean())
        self._metrics["policy/approx_kl"].append((log_ratio.exp() - 1 - log_ratio).mean())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means over steps and ranks of what was recorded since the last training log."""
        if self._metrics and not any(key.startswith("eval_") for key in logs):
            names = list(self._metrics)
            means = torch.stack(
                [
                    torch.stack([value.float().to(self.accelerator.device) for value in self._metrics[name]]).mean()
                    for name in names
                ]
            )
            logs |= dict(zip(names, self.accelerator.reduce(means, reduction="mean").tolist(), strict=True))
            self._metrics.clear()
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
        with _own_random_numbers(self.args.seed, self.accelerator.device):
            for examples in self.get_eval_dataloader(eval_dataset):
                rollout = self._answer_prompts(examples)
                self._score_answers(rollout, examples)
                for name, per_answer in _answer_figures(rollout).items():
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

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        save_rollout_state(folder, self.accelerator.process_index, self._rollout, self.kl_coef)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = load_rollout_state(checkpoint, self.accelerator.process_index, self.accelerator.device)
            self._rollout, self.kl_coef = state


def _kl_per_answer(rollout: Rollout) -> Tensor:
    """KL divergence of each answer (N,): the k1 estimates summed over its tokens, in nats."""
    divergence = kl_divergence(rollout.logprobs, rollout.ref_logprobs)
    return torch.where(rollout.completion_mask, divergence, 0.0).sum(dim=1)


def _answer_figures(rollout: Rollout) -> dict[str, Tensor]:
    """What is known of each answer, (N,) each."""
    return {
        "reward/mean": rollout.scores,
        "kl/mean": _kl_per_answer(rollout),
        "completion/length": rollout.completion_mask.sum(dim=1).float(),
        "completion/eos_rate": rollout.ended.float(),
    }


@contextmanager
def _own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Runs the body with random numbers from `seed` and leaves the global ones where they were."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type="cuda" if device.type == "cpu" else device.type):
        set_seed(seed, device_specific=True)
        yield


def _check_models(
    policy: nn.Module, value_model: nn.Module, ref_model: nn.Module | None, reward_model: Any, args: PPOConfig
) -> None:
    """Refuses models that cannot work together, before anything is sampled."""
    models = {"model": policy, "value_model": value_model, "ref_model": ref_model, "reward_model": reward_model}
    models = {name: model for name, model in models.items() if isinstance(model, nn.Module)}
    length = args.max_prompt_length + args.max_completion_length
    for name, model in models.items():
        config = model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and length > positions:
            raise ValueError(
                f"PPOTrainer: max_prompt_length + max_completion_length = {length} is more than the {positions} "
                f"positions of {name}. Lower one of the two."
            )
        if config.vocab_size != policy.config.get_text_config().vocab_size:
            raise ValueError(
                f"PPOTrainer: {name} has a vocabulary of {config.vocab_size} tokens, the policy one of "
                f"{policy.config.get_text_config().vocab_size}; they read the same token ids and must agree."
            )
        if name in ("value_model", "reward_model") and config.num_labels != 1:
            raise ValueError(f"PPOTrainer: {name} must have num_labels=1; got {config.num_labels}.")
    if not hasattr(value_model, "score"):
        raise ValueError(
            f"PPOTrainer: value_model needs a linear head called `score`; {type(value_model).__name__} has none."
        )
