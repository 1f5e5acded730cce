"""Folders as runs leave them, with everything that a page on them can show."""

import json
import math
from pathlib import Path
from typing import Any

PROMPTS = ("房间很干净，<b>位置</b>也不错，", "Write a line about " + "x" * 90, "系统难搞，用了一天时间，")


def write_ppo_run(folder: Path, shift: float = 0.0, finished: bool = True) -> Path:
    """A PPO run of 160 steps, evaluated three times, with samples, warnings and settings."""
    history: list[dict[str, Any]] = []
    for step in range(8, 161, 8):
        history.append(
            {
                "step": step,
                "loss": 0.4 - step / 1000,
                "reward/mean": shift + 3 * (1 - math.exp(-step / 60)),
                "kl/mean": step / 14,
                "policy/entropy": 4 - step / 80,
                "policy/clip_fraction": 0.1 + step / 2000,
                "value/loss": 0.5 + 10 / step,
                "completion/length": 14 + step / 100,
                "completion/eos_rate": 0.2 + step / 400,
                "learning_rate": 2e-4,
                "time/generation": 3.2,
                "time/scoring": 1.1,
                "time/learning": 2.4,
            }
        )
    for step in (0, 80, 160):
        history.append(
            {
                "step": step,
                "eval_reward/mean": shift + step / 60,
                "eval_win_rate": 0.5 + step / 400,
                "eval_completion/length": 14.0,
            }
        )
    settings = {"kl_coef": 0.1, "learning_rate": 2e-4, "model_name_or_path": "sft", "reward_model": "r" * 120}
    _write(folder, "ppo", history, settings, finished, ["A warning with a_very_long_name_" + "x" * 150])
    table = folder / "completions" / "eval-160.jsonl"
    table.parent.mkdir()
    samples = [
        {
            "prompt": PROMPTS[i % 3],
            "completion": "很好，" * (i + 1),
            "score": i - 3.5,
            "reference_completion": "一般 & 普通" if i else "",
            "reference_score": 0.25,
        }
        for i in range(7)
    ]
    table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples), "utf-8")
    return folder


def write_reward_run(folder: Path) -> Path:
    """A run of the reward stage, evaluated at every 50 steps."""
    history: list[dict[str, Any]] = [
        {"step": step, "loss": 0.7 - step / 1000, "accuracy": 0.5 + step / 600, "margin": step / 100}
        for step in range(10, 151, 10)
    ]
    history += [
        {"step": step, "eval_loss": 0.69 - step / 1500, "eval_pair_accuracy": 0.5 + step / 500}
        for step in (0, 50, 100, 150)
    ]
    _write(folder, "reward", history, {"loss_type": "plackett_luce"}, True, [])
    return folder


def _write(
    folder: Path, stage: str, history: list[dict[str, Any]], settings: dict[str, Any], finished: bool, warnings: list
) -> None:
    folder.mkdir(parents=True)
    log = {
        "stage": stage,
        "log_history": history,
        "settings": settings,
        "step": 160,
        "max_steps": 160,
        "finished": finished,
        "seconds": 754.0,
        "warnings": warnings,
    }
    (folder / "_run_log.json").write_text(json.dumps(log, ensure_ascii=False), "utf-8")
