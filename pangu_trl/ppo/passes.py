"""Where a run stands in its passes over a rollout, and when they end early."""

import torch
from accelerate import Accelerator
from torch import Tensor

from .config import PPOConfig
from .losses import loss_divisor
from .rollout import Rollout
from .sampler import mini_batch_rows


class PassesOverRollout:
    """Hands out the mini-batches of a rollout, pass after pass.

    A mini-batch is one micro-step of the Trainer's loop; `gradient_accumulation_steps` of them make an optimiser step.

    Args:
        args: Options.
        accelerator: Adds up over the ranks.

    Attributes:
        rollout: The rollout that is being learnt from.
        micro_step: Mini-batches since the start of the run.
        is_stopped: Whether `target_kl` has ended the passes over this rollout.
    """

    def __init__(self, args: PPOConfig, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        self.rollout: Rollout | None = None
        self.micro_step = 0
        self.is_stopped = False
        self._lengths: Tensor | None = None
        self._divisors: Tensor | None = None
        self._divergences: list[Tensor] = []

    @property
    def need_rollout(self) -> bool:
        """Whether the mini-batch to come is the first of a rollout."""
        return self.micro_step % self.args.mini_batches_per_rollout == 0

    @property
    def micro_steps_of_update(self) -> range:
        """The micro-steps of the optimiser step that is being taken."""
        accumulation = self.args.gradient_accumulation_steps
        first = self.micro_step // accumulation * accumulation
        return range(first, first + accumulation)

    def start(self, rollout: Rollout) -> None:
        """Begins the passes over a new rollout."""
        self.rollout, self.is_stopped = rollout, False
        self._lengths = rollout.lengths.cpu()

    def resume(self, rollout: Rollout, micro_step: int, is_stopped: bool) -> None:
        """Goes on in the middle of the passes over a rollout."""
        self.start(rollout)
        self.micro_step, self.is_stopped = micro_step, is_stopped

    def mini_batch(self) -> Rollout:
        """Answers of the mini-batch to come."""
        return self.rollout.select(self._rows(self.micro_step))

    def num_tokens(self) -> Tensor:
        """Learnt answer tokens of the current optimiser step, over its mini-batches and all ranks."""
        return self._divisors_of_update()[0]

    def policy_divisor(self) -> Tensor:
        """What the policy's loss divides by in the current optimiser step, likewise; see `loss_divisor`."""
        return self._divisors_of_update()[-1]

    def _divisors_of_update(self) -> Tensor:
        if self.micro_step == self.micro_steps_of_update.start:
            rows = torch.cat([self._rows(micro_step) for micro_step in self.micro_steps_of_update])
            mask, args = self.rollout.learnt_mask[rows], self.args
            kinds = dict.fromkeys(["token", args.loss_aggregation])
            divisors = [loss_divisor(mask, kind, args.max_completion_length) for kind in kinds]
            self._divisors = self.accelerator.reduce(torch.stack(divisors), reduction="sum")
        return self._divisors

    def note_divergence(self, divergence: Tensor) -> None:
        """Takes note of how far the policy is from the one that sampled (scalar, nats per token)."""
        self._divergences.append(divergence)

    def advance(self) -> None:
        """Goes on to the next mini-batch; ends the passes after an optimiser step that was too far out."""
        self.micro_step += 1
        if self.micro_step % self.args.gradient_accumulation_steps != 0:
            return
        if self.args.target_kl is not None and self._divergences:
            divergence = self.accelerator.reduce(torch.stack(self._divergences).mean(), reduction="mean")
            self.is_stopped = divergence.item() > self.args.target_kl
        self._divergences.clear()

    def _rows(self, micro_step: int) -> Tensor:
        return mini_batch_rows(micro_step, self._lengths, self.args).to(self.accelerator.device)
