"""How far the probabilities that a reward model gives to preferences can be trusted.

The reward model says that answer a beats answer b with probability sigmoid(r_a - r_b). A temperature, which divides the
rewards, changes no ranking, so the probabilities are judged after the temperature that fits them best as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pangu_trl.answers.summary import win_share

NUM_BINS = 10
TEMPERATURE_RANGE = (1e-3, 1e3)


@dataclass(frozen=True)
class CalibrationCurve:
    """Pairs in bins of equal width by the probability of the answer that the model prefers, from 0.5 to 1.

    Attributes:
        confidence: Mean probability in each bin, (NUM_BINS,); NaN for an empty one.
        accuracy: Share of the pairs in it whose preferred answer is the better one, likewise.
        counts: Number of pairs in it.
    """

    confidence: Tensor
    accuracy: Tensor
    counts: Tensor

    @property
    def expected_error(self) -> float:
        """Distance of confidence and accuracy, averaged over the pairs (ECE, Guo et al., arXiv:1706.04599)."""
        if not self.counts.sum():
            return float("nan")
        distance = (self.confidence - self.accuracy).abs().nan_to_num()
        return ((distance * self.counts).sum() / self.counts.sum()).item()


def calibration_metrics(differences: Tensor) -> dict[str, float]:
    """Calibration of the pair probabilities.

    Args:
        differences: Reward of the better answer minus that of the worse one, for each pair, (M,).

    Returns:
        calibration_error: Expected calibration error of the probabilities as they are.
        temperature: What to divide rewards by for the best likelihood of the annotated preferences.
        calibration_error_at_temperature: Expected calibration error after that.
        All NaN without a pair.
    """
    temperature = fit_temperature(differences)
    return {
        "calibration_error": calibration_curve(differences).expected_error,
        "temperature": temperature,
        "calibration_error_at_temperature": calibration_curve(differences, temperature).expected_error,
    }


def calibration_curve(differences: Tensor, temperature: float = 1.0) -> CalibrationCurve:
    """Sorts pairs into bins. `differences` as in `calibration_metrics`; equal rewards count as half right."""
    differences = differences.double()
    confidence = torch.sigmoid(differences.abs() / temperature)
    bins = ((confidence - 0.5) * 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    counts = torch.bincount(bins, minlength=NUM_BINS)
    sums = [torch.bincount(bins, weights=values, minlength=NUM_BINS) for values in (confidence, win_share(differences))]
    return CalibrationCurve(sums[0] / counts, sums[1] / counts, counts)


def fit_temperature(differences: Tensor, num_steps: int = 60) -> float:
    """The temperature of the highest likelihood, within `TEMPERATURE_RANGE`; NaN without a pair.

    The likelihood is concave in the inverse of the temperature, so its derivative has one zero, found by bisection. If
    all pairs are right the likelihood rises without end, and the lower end of the range is returned.
    """
    if not len(differences):
        return float("nan")
    differences = differences.double()
    low, high = (torch.tensor(bound, dtype=torch.float64).log() for bound in TEMPERATURE_RANGE)
    for _ in range(num_steps):
        middle = (low + high) / 2
        # Derivative of mean log sigmoid(d / temperature) by 1 / temperature.
        slope = (differences * torch.sigmoid(-differences / middle.exp())).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return ((low + high) / 2).exp().item()
