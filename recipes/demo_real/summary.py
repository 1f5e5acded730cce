"""What a run of the real demo comes to: its figures, and whether they reach what the demo is meant to show."""

import json
import resource
from pathlib import Path

from friendly_judge import PARTS, answer_text, judge_parts
from results import before_and_after, logged, read_log_history

from pangu_trl.answers.printing import printable
from pangu_trl.data import read_jsonl

# What the demo is meant to show: the figure, and the least or most that it should be.
TARGETS = {
    ("reward", "pair_accuracy_after"): ("at least", 0.70),
    ("ppo", "win_rate"): ("at least", 0.75),
    ("ppo", "kl"): ("at most", 20.0),
    ("ppo", "perplexity_ratio"): ("at most", 1.5),
}

PART_LABELS = ("tone", "ease of reading", "form")
OTHER_FIGURES = (
    ("words of an answer", "words"),
    ("share of answers that end by themselves", "finished"),
    ("share of different answers among all", "distinct"),
)


def summarise(run_dir: Path, times: dict[str, dict[str, float]]) -> dict:
    """Figures of a finished run.

    Args:
        run_dir: Its folder.
        times: Seconds, CPU seconds and most memory by stage.
    """
    reward, ppo = (read_log_history(run_dir / stage) for stage in ("reward", "ppo"))
    comparison, likelihoods = (
        json.loads((run_dir / name).read_text("utf-8")) for name in ("comparison.json", "likelihoods.json")
    )
    start, tuned = (describe_answers(read_jsonl(run_dir / "samples" / f"{name}.jsonl")) for name in ("start", "ppo"))
    rewards = logged(ppo, "reward/mean")
    summary = {
        "reward": {
            **before_and_after(reward, "eval_pair_accuracy", "pair_accuracy"),
            "num_pairs": logged(reward, "eval_num_pairs")[-1],
        },
        "ppo": {
            "reward_before": rewards[0],
            "reward_after": rewards[-1],
            "judge_before": start["judge"],
            "judge_after": tuned["judge"],
            "win_rate": comparison["against/win_rate"],
            "kl": likelihoods["kl"],
            "perplexity_before": likelihoods["perplexity_start"],
            "perplexity_after": likelihoods["perplexity_ppo"],
            "perplexity_ratio": likelihoods["perplexity_ppo"] / likelihoods["perplexity_start"],
        },
        "answers": {"start": start, "ppo": tuned},
        "samples": first_answers(run_dir),
        "seconds": round(sum(spent["seconds"] for spent in times.values()), 1),
        "cpu_seconds": round(sum(spent["cpu_seconds"] for spent in times.values()), 1),
        "peak_memory_gib": max(spent["peak_gib"] for spent in times.values()),
        "stages": times,
    }
    return summary | {"targets": check_targets(summary)}


def check_targets(summary: dict) -> dict[str, dict]:
    """Whether each figure of `TARGETS` is what it should be, by its name in the summary."""
    checked = {}
    for (stage, name), (bound, limit) in TARGETS.items():
        value = summary[stage][name]
        is_met = value >= limit if bound == "at least" else value <= limit
        checked[f"{stage}.{name}"] = {"value": value, bound: limit, "met": is_met}
    return checked


def describe_answers(records: list[dict]) -> dict[str, float]:
    """Means over all answers of a file that has the judge's scores.

    Returns:
        `judge` and its parts; `words` of an answer; `finished`, the share that the model ended by itself; and
        `distinct`, the share of different answers among all.
    """
    texts = [answer_text(response) for record in records for response in record["responses"]]
    scores = [score for record in records for score in record["judge"]]
    finished = [is_finished for record in records for is_finished in record["finished"]]
    parts = [judge_parts(text) for text in texts]
    return {
        "judge": _mean(scores),
        **{name: _mean([part[name] for part in parts]) for name in PARTS},
        "words": _mean([len(text.split()) for text in texts]),
        "finished": _mean(finished),
        "distinct": len(set(texts)) / len(texts),
    }


def peak_memory_gib() -> float:
    """Most memory that this process, or one of those that it started and that have ended, held at a time."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) / 2**20


def first_answers(run_dir: Path, count: int = 5) -> list[dict]:
    """The first answer of both models to the first held-out prompts, each with the judge's score."""
    start, tuned = (read_jsonl(run_dir / "samples" / f"{name}.jsonl")[:count] for name in ("start", "ppo"))
    return [
        {
            "prompt": before["prompt"][-1]["content"],
            **{
                name: {"answer": answer_text(record["responses"][0]), "judge": record["judge"][0]}
                for name, record in (("start", before), ("ppo", after))
            },
        }
        for before, after in zip(start, tuned, strict=True)
    ]


def write_samples(summary: dict) -> str:
    """The samples of a summary as they are printed."""
    lines = []
    for sample in summary["samples"]:
        lines += ["", printable(sample["prompt"])]
        lines += [
            f"  {name:>5} {sample[name]['judge']:.2f}  {printable(sample[name]['answer'])}" for name in ("start", "ppo")
        ]
    return "\n".join(lines[1:])


def write_figures(summary: dict) -> str:
    """The figures of a summary as a table in Markdown, beside what they are meant to be."""
    targets = {name: f"{bound} {limit:g}" for (_, name), (bound, limit) in TARGETS.items()}
    reward, ppo, answers = (summary[name] for name in ("reward", "ppo", "answers"))
    rows = [
        (
            f"pair accuracy of the reward model, {reward['num_pairs']:.0f} held-out pairs",
            f"{reward['pair_accuracy_before']:.3f}",
            f"{reward['pair_accuracy_after']:.3f}",
            targets["pair_accuracy_after"],
        ),
        ("win rate of PPO's answers by the judge", "0.5", f"{ppo['win_rate']:.3f}", targets["win_rate"]),
        ("judge's score, the mean of the next three", f"{ppo['judge_before']:.3f}", f"{ppo['judge_after']:.3f}", ""),
        *(_described(answers, label, name) for name, label in zip(PARTS, PART_LABELS, strict=True)),
        ("KL divergence, nats an answer", "0", f"{ppo['kl']:.1f}", targets["kl"]),
        (
            "perplexity under the start model",
            f"{ppo['perplexity_before']:.2f}",
            f"{ppo['perplexity_after']:.2f}, {ppo['perplexity_ratio']:.2f} times",
            targets["perplexity_ratio"] + " times",
        ),
    ]
    rows += [_described(answers, label, name) for label, name in OTHER_FIGURES]
    return table(("", "before", "after", "meant to be"), rows)


def _described(answers: dict[str, dict[str, float]], label: str, name: str) -> tuple[str, ...]:
    """A row of what `describe_answers` found."""
    return label, *(f"{answers[model][name]:.2f}" for model in ("start", "ppo")), ""


def write_times(summary: dict) -> str:
    """What each stage took, as a table in Markdown."""
    rows = [
        (name, f"{spent['cpu_seconds']:.0f}", f"{spent['seconds']:.0f}", f"{spent['peak_gib']:.1f}")
        for name, spent in summary["stages"].items()
    ]
    whole = (f"{summary['cpu_seconds']:.0f}", f"{summary['seconds']:.0f}", f"{summary['peak_memory_gib']:.1f}")
    return table(("", "CPU seconds", "seconds", "GiB until its end"), [*rows, ("all", *whole)])


def table(heading: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
