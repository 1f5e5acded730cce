"""The page on a run as people see it: two widths, two colour schemes, two languages, on paper."""

import pytest
import torch

from pangu_trl.reward.evaluation import ranking_metrics
from pangu_trl.reward.intervals import accuracy_intervals
from pangu_trl.reward.report import Evaluation, write_report
from pangu_trl.runs.report.page import write_page
from pangu_trl.runs.report.reading import read_run

from .run_folders import write_ppo_run, write_reward_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "ppo": [write_ppo_run(folder / "ppo")],
        "reward": [write_reward_run(folder / "reward")],
        "several": [write_ppo_run(folder / f"ppo-with-a-rather-long-name-{i}", i / 2, i < 2) for i in range(3)],
    }


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", ["ppo", "reward", "several"])
def test_page_of_a_run(look, runs, tmp_path, kind, language):
    path = tmp_path / "page.html"
    write_page(path, [read_run(folder) for folder in runs[kind]], language)
    page = look(path)
    charts = page.locator("svg")
    assert charts.count() >= 3
    # A curve that cannot be seen would be no error.
    for chart in charts.all():
        assert chart.bounding_box()["height"] > 100
    assert page.evaluate("document.documentElement.lang") == {"en": "en", "zh": "zh-CN"}[language]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_of_an_evaluation(look, tmp_path, language):
    torch.manual_seed(0)
    labels, mask = torch.rand(40, 4).double(), torch.ones(40, 4, dtype=torch.bool)
    rewards = labels * 3 + torch.randn(40, 4)
    probe = {"prompts": 40, "best_answer_wins": 0.4, "mean_score": 2.5, "mean_best_score": 2.0}
    evaluation = Evaluation(
        rewards,
        labels,
        mask,
        0.0,
        ranking_metrics(rewards, labels, mask),
        {"empty": probe, "answer_to_another_prompt": probe | {"best_answer_wins": 0.9}},
        accuracy_intervals(rewards, labels, mask),
    )
    write_report(tmp_path, evaluation, {"model": "runs/" + "m" * 100, "data": "held-out.jsonl[train]"}, language)
    page = look(tmp_path / "report.html")
    assert page.locator("svg").count() == 3
    assert page.locator(".whisker").count() == 8
    assert page.locator("p.worse").count() == 1


def test_page_on_paper_is_whole(browser, runs, tmp_path):
    path = tmp_path / "page.html"
    write_page(path, [read_run(folder) for folder in runs["ppo"]])
    # A4 with margins, in the pixels of CSS.
    context = browser.new_context(viewport={"width": 718, "height": 1000}, color_scheme="dark")
    page = context.new_page()
    page.goto(path.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    # Ink on white, whatever the screen shows.
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    # Nobody can scroll or unfold paper.
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(box => box.scrollWidth <= box.clientWidth + 1)"
    )
    assert page.locator("details .card").last.is_visible()
    assert page.pdf().startswith(b"%PDF")
    context.close()
