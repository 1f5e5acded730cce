"""Which figures a page shows together, and whether more of one is better or worse."""

from dataclasses import dataclass

from .reading import Run

HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Group:
    """Figures of one chart.

    Attributes:
        name: Its key in the words of the page.
        metrics: Names as they are logged in training, the first of which a run has is drawn; with `eval_` before it
            the same of held-out records.
        better: HIGHER, LOWER, or empty where neither is.
        is_share: Whether it is between 0 and 1.
    """

    name: str
    metrics: tuple[str, ...]
    better: str = ""
    is_share: bool = False

    def series(self, run: Run, held_out: bool) -> list[tuple[int, float]]:
        """Steps and values of a run."""
        for metric in self.metrics:
            found = run.series(f"eval_{metric}" if held_out else metric)
            if found:
                return found
        return []


GROUPS = (
    Group("loss", ("loss",), LOWER),
    Group("accuracy", ("pair_accuracy", "rewards/accuracies", "mean_token_accuracy"), HIGHER, is_share=True),
    Group("best_of_k", ("best_of_k_accuracy",), HIGHER, is_share=True),
    Group("reward", ("reward/mean", "reward"), HIGHER),
    Group("win_rate", ("win_rate",), HIGHER, is_share=True),
    Group("margin", ("rewards/margins", "margin"), HIGHER),
    Group("kl", ("kl/mean", "kl")),
    Group("length", ("completion/length", "completions/mean_length")),
    Group("entropy", ("policy/entropy", "entropy")),
    Group("clip", ("policy/clip_fraction", "clip_ratio/region_mean"), is_share=True),
    Group("critic", ("value/loss",), LOWER),
    Group("eos", ("completion/eos_rate",), is_share=True),
    Group("learning_rate", ("learning_rate",)),
)


@dataclass(frozen=True)
class Change:
    """First and last value of a figure, and whether it became better (1), worse (-1) or neither (0)."""

    name: str
    held_out: bool
    first: float
    last: float
    verdict: int


def changes(run: Run) -> list[Change]:
    """Of each figure of `GROUPS` but the learning rate that was logged twice or more; held-out ones where there are."""
    found = []
    for group in GROUPS:
        held_out = len(group.series(run, True)) > 1
        series = group.series(run, held_out)
        if len(series) < 2 or group.name == "learning_rate":
            continue
        first, last = series[0][1], series[-1][1]
        sign = (last > first) - (last < first)
        verdict = {HIGHER: sign, LOWER: -sign}.get(group.better, 0)
        if group.name == "loss" and run.stage in ("ppo", "grpo"):
            # Measured against the rollout that was just drawn: it says nothing about the policy.
            verdict = 0
        found.append(Change(group.name, held_out, first, last, verdict))
    return found


def phase_seconds(run: Run) -> dict[str, float]:
    """Mean seconds of each phase of a rollout, as PPO logs them."""
    times = {phase: run.series(f"time/{phase}") for phase in ("generation", "scoring", "learning")}
    return {phase: sum(value for _, value in series) / len(series) for phase, series in times.items() if series}
