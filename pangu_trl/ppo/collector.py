"""One rollout from prompts to advantages: answers, scores, log-probabilities, rewards."""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pangu_trl.answers.printing import printable
from pangu_trl.models.modes import evaluation_mode
from pangu_trl.models.score_head import innermost
from pangu_trl.runs.hang_guard import phase

from .advantages import add_at_last_token, overlong_penalties, shape_rewards, whiten
from .config import PPOConfig
from .control import KLController, RunningStd
from .dynamic_sampling import draw_dull_groups_anew, dull_groups
from .engine_gap import check_sampling, correct_sampling, watch_of
from .estimators import estimate_advantages
from .first_pass import largest_gap
from .generation.generate import generate_rollout, generation_mode
from .generation.sampled_logprobs import SampledLogprobs
from .generation.vllm_sampler import VLLMSampler
from .metrics import RunningMeans, explained_variance, kl_per_answer, rollout_figures
from .reward_sources import RewardSource
from .rollout import Rollout
from .sampler import batches_by_length
from .scoring import combine_scores, score_completions, score_tokens

logger = logging.getLogger(__name__)


class RolloutCollector:
    """Collects rollouts, and keeps what they teach about the rewards.

    Args:
        args: Options.
        accelerator: Knows engine, device and ranks.
        tokenizer: The policy's.
        rewards: Parts of the reward.
        ref_model: The reference; None takes the policy with its adapter off.
        figures: Where figures of rollouts are recorded.
        vllm: Samples the policy's answers in its place.
        reference_is_start: Whether the reference is to be the policy as it starts, since the user passed none.
    """

    def __init__(
        self,
        args: PPOConfig,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        rewards: list[RewardSource],
        ref_model: nn.Module | None,
        figures: RunningMeans,
        vllm: VLLMSampler | None = None,
        reference_is_start: bool = False,
    ) -> None:
        self.args, self.accelerator, self.tokenizer = args, accelerator, tokenizer
        self.rewards, self.ref_model, self.figures, self.vllm = rewards, ref_model, figures, vllm
        self.kl_controller = KLController(args.kl_coef, args.adaptive_kl_target, args.kl_horizon)
        self.score_statistics = RunningStd()
        self._told_mode = False
        self.reference_is_start = reference_is_start

    def collect(self, model: nn.Module, examples: list[dict[str, Any]], step: int) -> Rollout:
        """Answers the prompts of this rank and computes the advantages of every answer token.

        Args:
            model: PolicyAndValue, as its engine wraps it.
            examples: Prompt records of this rank.
            step: Optimiser steps so far, for what is printed.
        """
        examples = [example for example in examples for _ in range(self.args.num_generations)]
        watch = watch_of(self.args, len(examples))
        self._tell_generation_mode(model)

        # 1. Sample an answer to every prompt.
        with self.figures.timed("generation"):
            rollout = self.answer(model, examples, watch=watch)
        if self.args.dynamic_sampling_rounds:
            with self.figures.timed("redrawing"):
                rollout = self._draw_dull_groups_anew(model, rollout, examples)
        # 2. Score the answers; of their tokens, log-probabilities of policy and reference, and values.
        with self.figures.timed("scoring"):
            self.score(model, rollout, examples, asks_reference=self.args.has_kl_penalty)
        # 3. Stop, or warn, before anything is learnt from numbers that are off; correct what can be.
        check_sampling(watch, rollout, self.figures)
        if self.args.vllm_importance_sampling_correction:
            correct_sampling(rollout, self.args, self.figures)
        rollout.sampling_logprobs = None
        self._check_finite(rollout, examples)
        if self.reference_is_start and self.args.has_kl_penalty and step == 0:
            self._check_start(rollout, innermost(model).policy.dtype)
        self.reference_is_start = False
        # 4. Rewards from scores and divergence; from these advantages and returns.
        critic_warms_up = step < self.args.critic_warmup_steps
        self._estimate_advantages(rollout, critic_warms_up)
        self._record(rollout, examples, step)
        # 5. Move the weight of the divergence for the next rollout, unless the policy stands still.
        if self.args.has_kl_penalty and not critic_warms_up:
            divergence = self.accelerator.reduce(kl_per_answer(rollout).mean(), reduction="mean").item()
            self.kl_controller.update(divergence, self.args.rollout_batch_size * self.accelerator.num_processes)
        return rollout

    def answer(
        self,
        model: nn.Module,
        examples: list[dict[str, Any]],
        watch: SampledLogprobs | None = None,
        by_reference: bool = False,
    ) -> Rollout:
        """Samples one answer to each prompt, by the policy or by the reference."""
        reference = (self.ref_model or "adapter off") if by_reference else None
        prompts = [example["prompt_input_ids"] for example in examples]
        with phase("rollout"):
            if self.vllm is not None and reference is None:
                rollout = self.vllm.answer(model, prompts, watch)
            else:
                rollout = generate_rollout(
                    model, self.tokenizer, prompts, self.args, self.accelerator, watch, reference
                )
        if watch is not None and watch.sees_all and watch.logprobs is not None:
            rollout.sampling_logprobs = watch.logprobs[:, : rollout.completion_width]
        return rollout

    def score(
        self, model: nn.Module, rollout: Rollout, examples: list[dict[str, Any]], asks_reference: bool = True
    ) -> None:
        """Scores of the answers; log-probabilities of policy and reference, and values, of their tokens.

        Runs in the batches of the first pass: learning repeats the very same computation, so its first ratio is
        exactly 1.
        """
        args = self.args
        rows = torch.arange(len(rollout.input_ids))
        batches = batches_by_length(
            rows, rollout.lengths.cpu(), args.per_device_train_batch_size, args.gradient_accumulation_steps
        )
        batches = [batch.to(self.accelerator.device) for batch in batches]
        if rollout.scores is None:
            self.score_answers(model, rollout, examples)
        unwrapped = self.accelerator.unwrap_model(model)
        with phase("scoring"), evaluation_mode(unwrapped), self.accelerator.autocast():
            score_tokens(model, self.ref_model, rollout, batches, args.temperature, asks_reference)

    def score_answers(self, model: nn.Module, rollout: Rollout, examples: list[dict[str, Any]]) -> None:
        """Fills in the scores of the answers."""
        batch_size = self.args.per_device_train_batch_size
        with phase("scoring"), evaluation_mode(self.accelerator.unwrap_model(model)):
            rollout.source_scores = score_completions(
                self.rewards, model, self.tokenizer, rollout, examples, batch_size
            )
        args = self.args
        rollout.scores = combine_scores(
            rollout.source_scores, self.rewards, args.reward_combination, args.reward_std_coef
        )

    def _draw_dull_groups_anew(self, model: nn.Module, rollout: Rollout, examples: list[dict[str, Any]]) -> Rollout:
        """Scores the answers and has groups whose scores are all equal answered again."""
        args = self.args

        def draw(drawn: list[dict[str, Any]]) -> Rollout:
            anew = self.answer(model, drawn, watch=watch_of(args, len(drawn)))
            self.score_answers(model, anew, drawn)
            return anew

        self.score_answers(model, rollout, examples)
        rollout, num_redrawn = draw_dull_groups_anew(
            rollout,
            examples,
            draw,
            args.num_generations,
            args.dynamic_sampling_rounds,
            lambda count: int(self.accelerator.gather(count.reshape(1)).max()),
            self.tokenizer.pad_token_id,
        )
        self.figures.record({"group/redrawn": float(num_redrawn)})
        return rollout

    def _estimate_advantages(self, rollout: Rollout, critic_warms_up: bool) -> None:
        """Rewards from scores and KL, then advantages and returns."""
        args, mask = self.args, rollout.completion_mask
        scores, steps = rollout.scores, rollout.step_rewards
        rewards = shape_rewards(
            self._scaled(scores if steps is None else scores - steps.sum(dim=1)),
            rollout.logprobs,
            rollout.ref_logprobs,
            mask,
            self.kl_controller.coefficient,
            args.kl_estimator,
            args.reward_clip,
        )
        if steps is not None:
            # At their own tokens, as they are.
            rewards, rollout.step_rewards = rewards + steps, None
        # After the clip, which would swallow the penalty of an answer whose score is below -reward_clip.
        if args.missing_eos_penalty is not None:
            rewards = add_at_last_token(rewards, -args.missing_eos_penalty * (~rollout.ended), mask)
        if args.min_completion_length:
            too_short = mask.sum(dim=1) < args.min_completion_length
            rewards = add_at_last_token(rewards, -args.short_completion_penalty * too_short, mask)
        if args.overlong_buffer_length:
            shares = overlong_penalties(mask.sum(dim=1), args.max_completion_length, args.overlong_buffer_length)
            rewards = add_at_last_token(rewards, -args.overlong_penalty * shares, mask)
        self.figures.record({"reward/shaped": rewards.sum(dim=1).mean()})
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, self._sum_over_ranks, shift_mean=False)
        rollout.advantages, rollout.returns = estimate_advantages(
            rewards, rollout.values, mask, args, self._sum_over_ranks, critic_warms_up
        )
        if args.mask_truncated_completions:
            rollout.kept_mask = mask & rollout.ended.unsqueeze(1)
            self.figures.record({"completion/masked": (~rollout.ended).float().mean()})
        if args.has_critic:
            arguments = (rollout.values, rollout.returns, rollout.learnt_mask, self._sum_over_ranks)
            self.figures.record(explained_variance(*arguments))
        if args.whiten_advantages:
            rollout.advantages = whiten(rollout.advantages, rollout.learnt_mask, self._sum_over_ranks)

    def _scaled(self, scores: Tensor) -> Tensor:
        """Scores (N,) on the scale that `reward_scaling` asks for."""
        if self.args.reward_scaling == "stored":
            config = innermost(self.rewards[0].model).config
            return (scores - config.reward_mean) / config.reward_std
        if self.args.reward_scaling == "running":
            count, total = self._sum_over_ranks(scores.new_tensor([len(scores), scores.sum()])).tolist()
            squares = self._sum_over_ranks((scores - total / count).square().sum()).item()
            self.score_statistics.update(count, total / count, squares)
            self.figures.record({"reward/running_std": self.score_statistics.std})
            return scores / self.score_statistics.std
        return scores

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _check_start(self, rollout: Rollout, dtype: torch.dtype) -> None:
        """Refuses to measure divergence from something else than the policy as it starts."""
        mask = rollout.completion_mask
        gap = self._sum_over_ranks(((rollout.logprobs - rollout.ref_logprobs).abs() * mask).sum())
        gap = (gap / self._sum_over_ranks(mask.sum())).item()
        if gap > largest_gap(self.args, dtype):
            raise ValueError(
                f"PPOTrainer: before the first step the log-probabilities of policy and reference differ by {gap:.4f} "
                "nats a token on average, and should not: without ref_model the reference is the policy as it was "
                "passed in. Nothing was learnt. Likely causes: weights that were changed after the trainer was built, "
                "an adapter whose start is not its base model, or a model that does not give the same twice. Pass "
                "ref_model, a second copy of what the policy must stay close to."
            )

    def _check_finite(self, rollout: Rollout, examples: list[dict[str, Any]]) -> None:
        """Refuses what would make every advantage NaN, and with the first step every weight of the policy."""
        for what, computed in (
            ("policy's log-probabilities", rollout.logprobs),
            ("reference's log-probabilities", rollout.ref_logprobs),
            ("critic's values", rollout.values),
        ):
            if computed is None:
                continue
            bad = (~torch.isfinite(computed) & rollout.completion_mask).any(dim=1).nonzero().flatten().tolist()
            if bad:
                answer = self.tokenizer.decode(rollout.completions()[bad[0]])
                raise ValueError(
                    f"The {what} are not finite numbers in {len(bad)} of {len(examples)} answers; the first is to "
                    f"prompt {examples[bad[0]]['prompt']!r} and answer {answer!r}. No update was made with them. Check "
                    "that model's weights and dtype (float16 overflows where bfloat16 does not) and the learning rate."
                )

    def _tell_generation_mode(self, model: nn.Module) -> None:
        if not self._told_mode:
            logger.info("Generation: %s.", generation_mode(model, self.args, self.accelerator))
            self._told_mode = True

    def _record(self, rollout: Rollout, examples: list[dict[str, Any]], step: int) -> None:
        """Figures of the rollout, and a few answers in print."""
        self.figures.record(rollout_figures(rollout) | {"kl/coef": self.kl_controller.coefficient})
        if self.args.num_generations > 1:
            is_dull = dull_groups(rollout.scores, self.args.num_generations)
            self.figures.record({"group/dull": is_dull.float().mean()})
        if len(self.rewards) > 1:
            means = rollout.source_scores.mean(dim=0)
            names = [reward.name for reward in self.rewards]
            self.figures.record({f"reward/{name}": mean for name, mean in zip(names, means, strict=True)})
        if self.args.reward_combination != "sum":
            self.figures.record({"reward/disagreement": rollout.source_scores.std(dim=1, correction=0).mean()})
        if self.args.log_completions and self.accelerator.is_main_process:
            texts = rollout.texts(self.tokenizer)[:4]
            for example, text, score in zip(examples, texts, rollout.scores.tolist(), strict=False):
                tqdm.write(f"step {step} | {score:+.2f} | {printable(str(example['prompt']))} => {printable(text)}")
