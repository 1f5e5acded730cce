import json
import struct
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

SUMMARY = {
    "sft": {"eval_loss_before": 8.361, "eval_loss_after": 5.412},
    "reward": {"pair_accuracy_before": 0.497, "pair_accuracy_after": 0.713},
    "ppo": {"reward_before": -0.12, "reward_after": 1.384, "kl": 6.21, "judge_before": 0.352, "judge_after": 0.683},
    "seconds": 754.2,
    "stage_seconds": {"sft": 301.4},
}
PROMPT = "外观<b>很&漂亮，"
VOID_TAGS = {"meta"}


@pytest.fixture(scope="module")
def report(demo_module):
    return demo_module("report")


@pytest.fixture(scope="module")
def story(demo_module):
    return demo_module("demo_story").DEMO_STORY


@pytest.fixture(scope="module")
def results(demo_module):
    return demo_module("results")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with all that a report can show; tests only read it."""
    folder = tmp_path_factory.mktemp("run")
    write_json(folder / "summary.json", SUMMARY)
    steps = range(1, 4)
    write_history(folder, "sft", [{"step": s, "loss": 8 - s, "eval_loss": 8.5 - s} for s in steps])
    write_history(
        folder,
        "reward",
        [{"step": s, "loss": 0.7, "eval_loss": 0.7, "eval_pair_accuracy": 0.5 + 0.1 * s} for s in steps],
    )
    metrics = ("reward/mean", "kl/mean", "policy/clip_fraction", "value/loss", "completion/length")
    write_history(folder, "ppo", [{"step": s} | dict.fromkeys(metrics, 0.1 * s) for s in steps])
    for name, score in {"base": 0.1, "sft": 0.3, "ppo": 0.9}.items():
        write_samples(folder, name, {"responses": [f"{name}<eot>的回答", "其他"], "judge": [score, 0.5]})
    write_samples(
        folder, "rankings.test", {"responses": ["好", "坏"], "scores": [0.9, 0.1], "reward_scores": [2.0, 1.0]}
    )
    return folder


@pytest.fixture(scope="module")
def page(report, run_dir, story):
    return Page(report.write_report(run_dir, story))


def write_json(path: Path, content) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def write_history(run_dir: Path, stage: str, entries: list[dict]) -> None:
    write_json(run_dir / stage / "trainer_state.json", {"log_history": entries})


def write_samples(run_dir: Path, name: str, *records: dict) -> None:
    path = run_dir / "samples" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": PROMPT} | record, ensure_ascii=False) + "\n" for record in records))


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, text, and whether the tags nest."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.texts, self.open_tags = [], [], []
        self.feed(path.read_text("utf-8"))
        assert not self.open_tags
        self.text = "\n".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if self.open_tags[-1:] != ["style"]:
            self.texts.append(data)

    def attributes(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_shows_every_chart_and_leaves_nothing_out(page):
    assert "Left out" not in page.text
    charts = [attributes["aria-label"] for attributes in page.attributes("svg")]
    assert charts == [
        *("Loss", "Loss", "Accuracy", "Scores of the best and worst answer, as share"),
        *("Reward", "KL divergence from the reference", "Length of answers, tokens", "Clipped share of tokens"),
        *("Loss of the critic", "Scores of the judge before and after PPO, as share"),
    ]


def test_page_loads_nothing(page, run_dir):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img"}
    assert not [key for _, attributes in page.tags for key in ("src", "srcset", "href") if key in attributes]
    assert "url(" not in run_dir.joinpath("report.html").read_text("utf-8")


def test_headlines_show_before_and_after(page):
    tiles = page.text[: page.text.index("Samples")]
    for before, after in [("8.36 → ", "5.41"), ("50% → ", "71%"), ("-0.12 → ", "1.38"), ("0.35 → ", "0.68")]:
        assert f"{before}\n{after}" in tiles
    assert "6.21" in tiles
    assert "12.6 min" in tiles  # 754.2 / 60 = 12.57


def test_summary_is_shown_in_full(page):
    assert "ppo.reward_before\n-0.12" in page.text
    assert "stage_seconds.sft\n301.4" in page.text


def test_samples_stand_side_by_side_with_their_own_scores_as_plain_text(page):
    samples = page.text[page.text.index("Samples") :]
    assert samples.index(PROMPT) > 0
    positions = [
        samples.index(f"{label}, score \n{score}{mark}\n{answer}<eot>的回答")
        for label, score, mark, answer in [
            ("Random weights", "0.10", "", "base"),
            ("After fine-tuning", "0.30", " ▲", "sft"),
            ("After PPO", "0.90", " ▲", "ppo"),
        ]
    ]
    assert positions == sorted(positions)
    assert not page.attributes("b")  # none from the prompt


def test_empty_answer_is_named_as_such(report, tmp_path, story):
    write_samples(tmp_path, "ppo", {"responses": [""], "judge": [0.0]})
    assert "After PPO, score \n0.00\n(empty)" in Page(report.write_report(tmp_path, story)).text


def test_samples_to_other_prompts_are_left_out(report, tmp_path, story):
    write_samples(tmp_path, "base", {"responses": ["回答"], "judge": [0.1]})
    write_samples(tmp_path, "ppo", {"prompt": "别的", "responses": ["回答"], "judge": [0.9]})
    page = Page(report.write_report(tmp_path, story))
    assert "samples/ppo.jsonl has other prompts than samples/base.jsonl." in page.text
    assert "After PPO" not in page.text


def test_samples_beyond_the_first_ones_are_folded_and_counted(report, tmp_path, story):
    write_samples(tmp_path, "sft", *({"prompt": f"第{i}个", "responses": ["回答"], "judge": [0.1]} for i in range(30)))
    page = Page(report.write_report(tmp_path, story))
    assert "The first 24 of 30 held-out prompts" in page.text
    assert page.text.index("第5个") < page.text.index("18 more") < page.text.index("第6个")
    assert "第23个" in page.text
    assert "第24个" not in page.text


def test_empty_run_gives_a_page_that_names_what_is_missing(report, tmp_path, story):
    page = Page(report.write_report(tmp_path, story))
    assert not page.attributes("svg")
    for reason in [
        "summary.json has no number 'sft.eval_loss_before'",
        "samples/base.jsonl is missing or empty",
        "sft/ holds no log of a run",
        "samples/rankings.test.jsonl is missing or empty",
        "ppo/ holds no log of a run",
    ]:
        assert reason in page.text


def test_missing_pieces_do_not_take_others_with_them(report, tmp_path, story):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "base.jsonl").write_text("")
    write_samples(tmp_path, "ppo", {"responses": ["回答"], "judge": [0.9]})
    write_samples(tmp_path, "rankings.test", {"responses": ["好", "坏"], "scores": [0.9, 0.1]})
    write_history(tmp_path, "sft", [{"step": 5, "eval_loss": 6.0}, {"step": 5, "train_runtime": 3.0}])
    page = Page(report.write_report(tmp_path, story))
    assert len(page.attributes("svg")) == 1
    assert "samples/base.jsonl is missing or empty" in page.text
    assert "samples/rankings.test.jsonl has no 'reward_scores'" in page.text
    assert "After PPO, score \n0.90" in page.text


def test_score_that_is_no_number_is_named_by_file_and_line(report, tmp_path, story):
    answers = {"responses": ["好", "坏"], "scores": [1, 0], "reward_scores": [float("inf"), 0.0]}
    write_samples(tmp_path, "rankings.test", answers)
    with pytest.raises(ValueError, match=r"rankings\.test\.jsonl:1: numbers must be finite; got Infinity"):
        report.write_report(tmp_path, story)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("summary.json", "{", r"summary\.json: must be JSON"),
        ("summary.json", "[]", r"summary\.json: must hold a dict; got a list"),
        ("ppo/trainer_state.json", '{"log_history": {}}', r"'log_history' must be a list; got a dict"),
        (
            "samples/ppo.jsonl",
            '{"prompt": "甲", "responses": ["乙"], "judge": [1, 2]}',
            r"ppo\.jsonl:1: 'judge' must",
        ),
        ("samples/ppo.jsonl", '\n{"responses": ["乙"], "judge": [1]}', r"ppo\.jsonl:2: 'prompt' must be a text"),
        ("samples/sft.jsonl", '{"prompt": "甲", "responses": [], "judge": []}', r"sft\.jsonl:1: 'responses' must"),
    ],
)
def test_damaged_file_is_named(report, tmp_path, path, content, message, story):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(content)
    with pytest.raises(ValueError, match=message):
        report.write_report(tmp_path, story)


def test_missing_run_is_named(report, tmp_path, story):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        report.write_report(tmp_path / "nowhere", story)


def test_overview_is_one_wide_picture_even_of_an_empty_run(report, run_dir, tmp_path_factory, story):
    for folder in (run_dir, tmp_path_factory.mktemp("empty")):
        path = report.plot_overview(folder, story)
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width > 4 * height


def test_overview_leaves_out_a_stage_that_the_story_has_not(report, run_dir, story):
    whole = struct.unpack(">I", report.plot_overview(run_dir, story).read_bytes()[16:20])[0]
    sections = {name: section for name, section in story.sections.items() if name != "sft"}
    shorter = report.plot_overview(run_dir, replace(story, sections=sections))
    # Three pictures of four.
    assert struct.unpack(">I", shorter.read_bytes()[16:20])[0] == pytest.approx(0.75 * whole, abs=2)


def test_best_and_worst_answers_skip_ties(results):
    records = [
        {"scores": [0.5, 0.9, 0.1], "reward_scores": [9.0, 2.0, 1.0]},
        {"scores": [0.2, 0.8], "reward_scores": [3.0, 4.0]},
        {"scores": [0.5, 0.5], "reward_scores": [50.0, 60.0]},
    ]
    found = results.RunResults({}, {}, {"rankings.test": records}, "sft").best_and_worst()
    assert found == {"worst answer": [1.0, 3.0], "best answer": [2.0, 4.0]}


def test_judgements_are_of_all_answers_before_and_after(results):
    samples = {"sft": [{"scores": [0.0, 0.5]}, {"scores": [0.4]}], "ppo": [{"scores": [1.0]}]}
    found = results.RunResults({}, {}, samples, "sft").judgements()
    assert found == {"before PPO": [0.0, 0.5, 0.4], "after PPO": [1.0]}
