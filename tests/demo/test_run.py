"""The whole demo at its smallest, as `make demo STEPS=smoke` runs it."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_trl.data import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
takes_fifteen_processes = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run and what it printed; an earlier run stood in the folder."""
    run_dir = tmp_path_factory.mktemp("runs") / "demo"
    run_dir.mkdir()
    (run_dir / "summary.json").write_text("an earlier run")
    result = subprocess.run(
        [sys.executable, ROOT / "recipes/demo/run.py", "--steps", "smoke", "--run-dir", run_dir],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return run_dir, result.stdout


@takes_fifteen_processes
def test_summary_has_every_figure(finished):
    run_dir, _ = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["seconds"] > 0
    for stage, names in {
        "sft": ("eval_loss_before", "eval_loss_after"),
        "reward": ("pair_accuracy_before", "pair_accuracy_after"),
        "ppo": ("reward_before", "reward_after", "kl", "judge_before", "judge_after"),
    }.items():
        assert all(isinstance(summary[stage][name], float) for name in names)
    assert summary["sft"]["eval_loss_after"] < summary["sft"]["eval_loss_before"]
    assert all(0 <= summary["ppo"][f"judge_{when}"] <= 1 for when in ("before", "after"))


@takes_fifteen_processes
def test_judged_samples_keep_all_answers_of_every_stage(finished):
    run_dir, _ = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    for model, name in (("sft", "judge_before"), ("ppo", "judge_after")):
        records = read_jsonl(run_dir / "samples" / f"{model}.jsonl")
        assert len(records) == 8
        assert all(len(record["responses"]) == len(record["judge"]) == 4 for record in records)
        scores = [score for record in records for score in record["judge"]]
        assert summary["ppo"][name] == pytest.approx(sum(scores) / len(scores))


@takes_fifteen_processes
def test_held_out_openings_are_in_no_training_file(finished):
    run_dir, _ = finished
    files = {path.name: {record["prompt"] for record in read_jsonl(path)} for path in (run_dir / "data").iterdir()}
    names = sorted(files)
    assert len(names) == 6
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert not files[one] & files[other], (one, other)


@takes_fifteen_processes
def test_report_and_overview_are_written(finished):
    run_dir, printed = finished
    page = (run_dir / "report.html").read_text("utf-8")
    assert "Left out" not in page
    assert (run_dir / "pictures" / "overview.png").stat().st_size > 10_000
    assert "report.html (open it in a browser)" in printed
    assert "$ pangu-trl sft" in printed and "$ pangu-trl sample" in printed


@takes_fifteen_processes
def test_an_earlier_run_is_kept_under_another_name(finished):
    run_dir, printed = finished
    assert run_dir.with_name("demo.1").joinpath("summary.json").read_text() == "an earlier run"
    assert "held an earlier run" in printed


@pytest.mark.parametrize(
    "stop, message",
    [
        (subprocess.CalledProcessError(3, ["accelerate"]), "the last command ended with exit status 3"),
        (KeyboardInterrupt(), "Interrupted. What was made so far is in "),
    ],
)
def test_a_demo_that_stops_says_why_and_keeps_the_folder(tmp_path, monkeypatch, demo_module, stop, message):
    run = demo_module("run")

    def run_until_it_stops(demo):
        demo.run_dir.mkdir()
        raise stop

    monkeypatch.setattr(run.Demo, "run", run_until_it_stops)
    monkeypatch.setattr(sys, "argv", ["run.py", "--steps", "smoke", "--run-dir", str(tmp_path / "demo")])
    with pytest.raises(SystemExit, match=message):
        run.main()
    assert (tmp_path / "demo").exists()


@pytest.fixture(scope="module")
def demo_seeds():
    return runpy.run_path(str(ROOT / "benchmarks" / "demo_seeds.py"))


def test_seeds_have_a_row_each_then_mean_and_range(demo_seeds):
    rows = {seed: dict.fromkeys(demo_seeds["FIGURES"], value) for seed, value in ((0, 0.5), (1, 120.4))}
    *_, mean, spread = demo_seeds["table"](rows).splitlines()
    assert mean.startswith("| mean | 60.45 | 60.45 |")
    assert spread.startswith("| range | 0.50 to 120 | 0.50 to 120 |")


def test_readme_shows_the_figures_of_the_seeds(demo_seeds):
    rows = json.loads((ROOT / "docs" / "demo-seeds.json").read_text("utf-8"))
    assert demo_seeds["table"](rows) in (ROOT / "README.md").read_text("utf-8")


def test_the_page_on_small_models_shows_both_sizes(demo_seeds):
    sizes = {"2.4 million": "demo-seeds.json", "25 million": "demo-large.json"}
    rows = {
        f"{weights}, {seed}": figures
        for weights, name in sizes.items()
        for seed, figures in json.loads((ROOT / "docs" / name).read_text("utf-8")).items()
    }
    *found, _, _ = demo_seeds["table"](rows).splitlines()
    page = (ROOT / "docs" / "small-gptpangu.md").read_text("utf-8")
    assert "\n".join(found).replace("| seed |", "| weights, seed |") in page
