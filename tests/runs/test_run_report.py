"""The page on a run: what it reads, what it shows, and what it says where there is nothing."""

import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from pangu_trl.cli import main
from pangu_trl.runs import run_log
from pangu_trl.runs.ending import tell_end
from pangu_trl.runs.report.charts import Line, histogram, line_chart, ticks
from pangu_trl.runs.report.figures import changes, phase_seconds
from pangu_trl.runs.report.page import render
from pangu_trl.runs.report.reading import read_run
from pangu_trl.runs.report.words import WORDS
from pangu_trl.runs.run_log import LOG_FILE, RunLog

VOID = {"meta"}


class _Page(HTMLParser):
    """Text, tags that stay open, and addresses that would be loaded."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.texts, self.loaded = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


HISTORY = [
    {
        "step": 1,
        "loss": 0.1,
        "reward/mean": 0.5,
        "kl/mean": 0.0,
        "value/loss": 2.0,
        "time/generation": 3.0,
        "time/learning": 1.0,
    },
    {"step": 1, "eval_reward/mean": 0.25, "eval_win_rate": 0.5},
    {
        "step": 3,
        "loss": 0.2,
        "reward/mean": 1.5,
        "kl/mean": 4.0,
        "value/loss": 3.0,
        "time/generation": 5.0,
        "time/learning": 1.0,
    },
    {"step": 3, "eval_reward/mean": 1.25, "eval_win_rate": 0.75},
    {"step": 3, "train_runtime": 61.0},
]
SAMPLE = {
    "prompt": "房间<b>很</b>",
    "completion": "干净 & 安静",
    "score": 0.9,
    "reference_completion": "",
    "reference_score": 0.1,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of PPO that has ended."""
    folder = tmp_path / "ppo"
    (folder / "completions").mkdir(parents=True)
    content = {
        "stage": "ppo",
        "settings": {"learning_rate": 1e-6, "train_data": "p.jsonl"},
        "step": 3,
        "max_steps": 3,
        "finished": True,
        "seconds": 61.2,
        "warnings": ["look <here>"],
        "log_history": HISTORY,
    }
    (folder / LOG_FILE).write_text(json.dumps(content), "utf-8")
    (folder / "completions" / "step-3.jsonl").write_text(json.dumps(SAMPLE, ensure_ascii=False) + "\n", "utf-8")
    return folder


def test_changes_are_judged_by_what_each_figure_is_for(folder):
    found = {change.name: change for change in changes(read_run(folder))}
    reward = found["reward"]
    # Evaluated twice, so it is the held-out figure; more reward is better, more loss of the critic worse.
    assert (reward.held_out, reward.first, reward.last, reward.verdict) == (True, 0.25, 1.25, 1)
    assert (found["critic"].held_out, found["critic"].verdict) == (False, -1)
    assert (found["win_rate"].last, found["win_rate"].verdict) == (0.75, 1)
    # The loss of PPO is one against its own rollout, and a larger distance from the reference is neither.
    assert found["loss"].verdict == 0
    assert (found["kl"].last, found["kl"].verdict) == (4.0, 0)
    assert phase_seconds(read_run(folder)) == {"generation": 4.0, "learning": 1.0}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_holds_everything_and_loads_nothing(folder, language):
    page = _Page(render([read_run(folder)], language))
    assert page.open == [] and page.loaded == []
    for text in ("房间<b>很</b>", "干净 & 安静", "look <here>", "learning_rate", "1e-06", "61 s", "80 %", "20 %"):
        assert text in page.text
    place = ("en", "zh").index(language)
    for key in ("changes", "evaluation", "samples", "times", "settings", "better", "worse", "win_rate"):
        assert WORDS[key][place] in page.text
    if language == "zh":
        foreign = {WORDS[key][0] for key in ("changes", "evaluation", "samples", "times", "settings", "reward")}
        assert not [text for text in foreign if text in page.text]


def test_several_runs_stand_on_one_page_with_names_of_their_own(folder, tmp_path, capsys):
    other = tmp_path / "second" / "ppo"
    other.mkdir(parents=True)
    (other / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY[:2], "global_step": 1}))
    path = tmp_path / "both.html"
    assert main(["report", str(folder), str(other), "--output", str(path)]) == 0
    page = _Page(path.read_text("utf-8"))
    assert "ppo (1), held out" in page.text and "ppo (2), training" in page.text
    assert main(["report", str(folder), str(other)]) == 2
    assert "name it with --output" in capsys.readouterr().err


def test_what_is_no_run_is_refused_by_name(tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "absent: no such folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "bad")]) == 2
    assert "so it is no run of a recipe" in capsys.readouterr().err
    (tmp_path / "bad" / LOG_FILE).write_text("{")
    assert main(["report", str(tmp_path / "bad")]) == 2
    assert f"{LOG_FILE}: is damaged" in capsys.readouterr().err


def test_a_page_that_is_watched_is_read_again_until_the_run_has_ended(folder, monkeypatch, capsys):
    log = json.loads((folder / LOG_FILE).read_text())
    (folder / LOG_FILE).write_text(json.dumps(log | {"finished": False, "log_history": []}))
    seen = []

    def end_the_run(seconds):
        seen.append((seconds, (folder / "_report.html").read_text("utf-8")))
        (folder / LOG_FILE).write_text(json.dumps(log))

    monkeypatch.setattr("time.sleep", end_the_run)
    assert main(["report", str(folder), "--watch", "7"]) == 0
    ((seconds, first),) = seen
    assert seconds == 7
    assert '<meta http-equiv="refresh" content="7">' in first and "Nothing has been logged yet." in first
    assert "refresh" not in (folder / "_report.html").read_text("utf-8")


def test_axes_span_the_values_with_round_numbers():
    assert ticks(0.0, 1.0, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(0.13, 0.94, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(3, 3, 5) == [3]
    # Only steps that there are.
    assert ticks(1, 4, 5, whole=True) == [1, 2, 3, 4]
    assert ticks(0, 100, 5, whole=True) == [0, 25, 50, 75, 100]
    for points in ([(1, 2.0)], [(1, 2.0), (2, 2.0)], [(5, -1e-9), (9, 1e12)]):
        assert "nan" not in line_chart("x", [Line("a", points)]).svg


def test_the_log_is_whole_at_every_moment_and_names_what_was_set(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "_collecting", None)
    # Before there is a trainer, as of data and models.
    run_log.collect_warnings()
    logging.getLogger("pangu_trl.test").warning("early")
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=0.25, use_cpu=True, report_to="none")
    log = RunLog("sft", (args,))
    state, control = TrainerState(max_steps=4), TrainerControl()
    log.on_train_begin(args, state, control)
    logging.getLogger("pangu_trl.test").warning("twice\nsaid")
    logging.getLogger("transformers.test").warning("of a library")
    logging.getLogger("pangu_trl.test").warning("twice\nsaid")
    state.log_history.append({"step": 1, "loss": float("nan"), "grad_norm": 1.0})
    state.global_step = 1
    log.on_log(args, state, control)
    run = read_run(tmp_path)
    assert (run.stage, run.step, run.max_steps, run.finished) == ("sft", 1, 4, False)
    assert run.settings["learning_rate"] == 0.25 and "weight_decay" not in run.settings
    assert run.warnings == ["early", "twice said", "of a library"]
    # A loss that is no number is a gap in the curve.
    assert run.series("loss") == [] and run.series("grad_norm") == [(1, 1.0)]
    log.on_train_end(args, state, control)
    log.on_log(args, state, control)
    assert read_run(tmp_path).finished
    other = SimpleNamespace(is_world_process_zero=False)
    (tmp_path / LOG_FILE).unlink()
    log.on_log(args, other, control)
    assert not (tmp_path / LOG_FILE).exists()


def test_a_run_ends_with_figures_before_and_after_and_the_next_command(folder):
    text = tell_end(folder)
    assert (folder / "_report.html").is_file()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "ppo: 3 steps"
    assert "Reward (held out) 0.25 -> 1.25 better" in lines
    assert "Loss of the critic (training) 2 -> 3 worse" in lines
    assert f"model {folder}" in lines and f"next pangu-trl chat {folder}" in lines


def test_a_run_of_one_step_says_so_in_the_singular(folder):
    content = json.loads((folder / LOG_FILE).read_text("utf-8"))
    (folder / LOG_FILE).write_text(json.dumps(content | {"step": 1}), "utf-8")
    assert tell_end(folder).splitlines()[0] == "ppo: 1 step"


def test_what_is_collected_is_still_printed(monkeypatch, capsys):
    monkeypatch.setattr(run_log, "_collecting", None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    collected = run_log.collect_warnings()
    logging.getLogger("pangu_trl.runs.hang_guard").warning("no progress")
    logging.getLogger("transformers").removeHandler(collected)
    assert collected.texts == ["no progress"]
    assert capsys.readouterr().err == "no progress\n"


def test_histogram_shows_shares_of_each_group_and_their_means():
    chart = histogram("scores", {"few": [0.0, 1.0], "many": [0.0, 0.0, 0.0, 0.9]}, num_bins=2, limits=(0.0, 1.0))
    # Of two values one in each half; of four three in the first. The mean of the four is 0.225.
    assert re.findall(r"<title>(.*?)</title>", chart.svg) == ["few: 0.5", "few: 0.5", "many: 0.75", "many: 0.25"]
    assert [key.label for key in chart.keys] == ["few, 0.5", "many, 0.225"]
    heights = [float(text) for text in re.findall(r'<rect[^>]* height="([\d.]+)"', chart.svg)]
    # Bars are as high as their shares: 0.75 is 1.5 times 0.5.
    assert heights[2] == pytest.approx(1.5 * heights[0], abs=0.2) and heights[3] == pytest.approx(
        heights[0] / 2, abs=0.2
    )
    assert "nan" not in histogram("constant", {"one": [2.0, 2.0]}).svg


def test_intervals_are_drawn_between_their_ends():
    line = Line("accuracy", [(1, 0.5), (2, 0.75), (3, 0.5)], intervals=[(0.0, 1.0), (0.5, 1.0), None])
    chart = line_chart("x", [line], is_share=True, over_steps=False)
    ends = re.findall(r'class="whisker c0" x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', chart.svg)
    # The picture is 210 high; 26 below and 10 above the axes: 0 is at 184, 1 at 10, 0.5 between.
    assert ends == [("184.0", "10.0"), ("97.0", "10.0")]
