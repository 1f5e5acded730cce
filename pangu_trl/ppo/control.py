"""What a run learns about its own rewards and adjusts from rollout to rollout; saved with every checkpoint."""

import math
from dataclasses import dataclass


@dataclass
class KLController:
    """Weight of the KL penalty, moved so that the KL divergence tends to a target.

    Ziegler et al. 2019, section 2.2 (arXiv:1909.08593): proportional control of the relative error, clipped to +-0.2.

    Attributes:
        coefficient: Current weight.
        target: KL divergence per answer in nats; None keeps the weight.
        horizon: Answers after which the weight has changed by about the error.
    """

    coefficient: float
    target: float | None
    horizon: int

    def update(self, divergence: float, num_answers: int) -> None:
        """Takes note of a rollout.

        Args:
            divergence: Mean KL divergence per answer, over all ranks.
            num_answers: Answers of the rollout, over all ranks.
        """
        if self.target is not None:
            error = min(max(divergence / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * num_answers / self.horizon


@dataclass
class RunningStd:
    """Standard deviation of all scores so far (Chan et al. 1983: counts, means and squared deviations of parts add up).

    Attributes:
        count: Number of scores.
        mean: Their mean.
        squares: Sum of their squared deviations from the mean.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, count: float, mean: float, squares: float) -> None:
        """Adds a set of scores by its count, mean and sum of squared deviations from that mean."""
        total = self.count + count
        gap = mean - self.mean
        self.squares += squares + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Population standard deviation; 1 while there is none, so that dividing by it changes nothing."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 1e-8 else 1.0
