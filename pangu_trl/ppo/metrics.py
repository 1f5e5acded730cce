"""What is logged and evaluated; each figure is defined once, in docs/ppo.md."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from .advantages import kl_divergence
from .rollout import Rollout


class RunningMeans:
    """Figures recorded since the last log."""

    def __init__(self) -> None:
        self._recorded: dict[str, list[Tensor]] = defaultdict(list)

    def record(self, figures: dict[str, Tensor | float]) -> None:
        """Adds one value (a scalar) of each figure."""
        for name, value in figures.items():
            self._recorded[name].append(torch.as_tensor(value))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Records the seconds that the body takes as `time/<name>`."""
        started = time.perf_counter()
        yield
        self.record({f"time/{name}": time.perf_counter() - started})

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over what was recorded and over the ranks, which must record alike; forgets it."""
        if not self._recorded:
            return {}
        means = [
            torch.stack([value.float().to(accelerator.device) for value in values]).mean()
            for values in self._recorded.values()
        ]
        means = accelerator.reduce(torch.stack(means), reduction="mean").tolist()
        figures = dict(zip(self._recorded, means, strict=True))
        self._recorded.clear()
        return figures


def kl_per_answer(rollout: Rollout) -> Tensor:
    """KL divergence of each answer (N,): the k1 estimates summed over its tokens, in nats."""
    divergence = kl_divergence(rollout.logprobs, rollout.ref_logprobs)
    return torch.where(rollout.completion_mask, divergence, 0.0).sum(dim=1)


def answer_figures(rollout: Rollout) -> dict[str, Tensor]:
    """What is known of each answer, (N,) each; no divergence where the reference was not asked."""
    return {
        "reward/mean": rollout.scores,
        **({} if rollout.ref_logprobs is None else {"kl/mean": kl_per_answer(rollout)}),
        "completion/length": rollout.completion_mask.sum(dim=1).float(),
        "completion/eos_rate": rollout.ended.float(),
    }


def rollout_figures(rollout: Rollout) -> dict[str, Tensor]:
    """What is known of a rollout as a whole, scalars."""
    mask = rollout.completion_mask
    return {name: per_answer.mean() for name, per_answer in answer_figures(rollout).items()} | {
        "reward/std": rollout.scores.std(correction=0),
        "policy/entropy": rollout.entropy[mask].mean(),
        **({} if rollout.values is None else {"value/mean": rollout.values[mask].mean()}),
    }


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Share of the variance of the returns that the values explain, over the masked tokens of all ranks, a scalar.

    1 - Var(returns - values) / Var(returns): 1 for values that are the returns, 0 for values that say nothing, negative
    for worse. Left out where the returns are constant, or none is masked, on all ranks alike.
    """
    kept = torch.stack([returns[mask], (returns - values)[mask]]).float()
    count = sum_over_ranks(mask.sum().float())
    means = sum_over_ranks(kept.sum(dim=1)) / count
    squares = sum_over_ranks((kept - means.unsqueeze(1)).square().sum(dim=1))
    return {"value/explained_variance": 1 - squares[1] / squares[0]} if squares[0] > 0 else {}


def update_figures(
    logprobs: Tensor, batch: Rollout, cliprange: float, cliprange_high: float | None = None, delta: float | None = None
) -> dict[str, Tensor]:
    """How far the policy, with `logprobs` (B, C) now, has moved from the one that sampled the mini-batch; scalars."""
    mask = batch.completion_mask
    log_ratio = (logprobs.detach() - batch.logprobs)[mask]
    change = log_ratio.exp() - 1
    high = cliprange if cliprange_high is None else cliprange_high
    figures = {
        "policy/clip_fraction": ((change < -cliprange) | (change > high)).float().mean(),
        "policy/approx_kl": (change - log_ratio).mean(),
    }
    if delta is not None:
        figures["policy/dual_clip_fraction"] = ((change > delta - 1) & (batch.advantages[mask] < 0)).float().mean()
    return figures


def importance_figures(ratios: Tensor, weights: Tensor, sampling_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Ratios (N, C) of learnt to sampling probabilities before their bounds, and what those change; scalars."""
    return {
        "importance/mean": ratios[mask].mean(),
        "importance/min": ratios[mask].min(),
        "importance/max": ratios[mask].max(),
        "importance/bounded": (weights != ratios)[mask].float().mean(),
        "importance/unknown": sampling_logprobs[mask].isnan().float().mean(),
    }


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Runs the body with random numbers from `seed` and leaves the global ones, of all libraries, where they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices=devices, device_type="cuda" if device.type == "cpu" else device.type):
            set_seed(seed, device_specific=True)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
