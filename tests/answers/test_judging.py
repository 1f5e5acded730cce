"""Judges and what is made of their scores; expected figures are worked out by hand."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pangu_trl.answers.judge import Judge, load_judge, score_answers
from pangu_trl.answers.records import Answers
from pangu_trl.answers.summary import compare_scores, match_prompts, summarise_answers
from pangu_trl.models.reward_model import ScoringError
from pangu_trl.reward.evaluation import judge_agreement

LENGTH_JUDGE = "def length(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"


def answers_of(*records: dict) -> Answers:
    return Answers(list(records), [f"answers.jsonl:{line}" for line in range(1, len(records) + 1)])


@pytest.fixture
def judge_file(tmp_path) -> Path:
    path = tmp_path / "my_judge.py"
    path.write_text(LENGTH_JUDGE + "def two_arguments(prompts, completions):\n    return []\nnumber = 3\n")
    return path


def test_a_function_in_a_file_judges(judge_file):
    assert load_judge(f"{judge_file}:length", batch_size=2)(["p"] * 3, ["a", "", "ccc"]) == [1.0, 0.0, 3.0]


def test_a_function_in_a_module_judges(judge_file, monkeypatch):
    monkeypatch.syspath_prepend(judge_file.parent)
    monkeypatch.delitem(sys.modules, "my_judge", raising=False)
    assert load_judge("my_judge:length", batch_size=1)(["p"], ["ab"]) == [2.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("size", "no function 'size'; it has length, two_arguments"),
        ("number", "no function 'number'"),
        ("two_arguments", r"must take \(prompts, completions, \*\*columns\).*it takes \(prompts, completions\)"),
    ],
)
def test_a_function_that_cannot_judge_is_refused(judge_file, function, message):
    with pytest.raises(ValueError, match=message):
        load_judge(f"{judge_file}:{function}", batch_size=1)


def test_a_judge_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.py: there is no such file"):
        load_judge(f"{tmp_path}/absent.py:f", batch_size=1)
    with pytest.raises(ValueError, match="No module named 'no_such_module'.*path/to/file.py:FUNCTION"):
        load_judge("no_such_module:f", batch_size=1)
    with pytest.raises(ValueError, match=r"name the function that judges, as in judge\.py:FUNCTION"):
        load_judge("judge.py", batch_size=1)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(: pass", r"SyntaxError: .*\(judge\.py, line 1\)$"),
        ("\nimport no_such_module", r"ModuleNotFoundError: No module named 'no_such_module' at .*/judge\.py:2$"),
        ("import sys\nsys.exit(3)", r"SystemExit: 3 at .*/judge\.py:2$"),
        ("import sys\ndef f(p, c, **columns): sys.exit()", r"judge\.py:f: SystemExit: .*at .*/judge\.py:2$"),
        ("\n\ndef f(p, c, **columns): return columns['x']", r"judge\.py:f: KeyError: 'x' at .*/judge\.py:3$"),
    ],
)
def test_an_error_in_a_judge_is_a_message_with_its_line(tmp_path, code, message):
    (tmp_path / "judge.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        load_judge(f"{tmp_path}/judge.py:f", batch_size=1)(["p"], ["c"])


def test_a_judge_that_was_mended_is_loaded_again(tmp_path):
    (tmp_path / "mended.py").write_text("1 / 0")
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        load_judge(f"{tmp_path}/mended.py:f", batch_size=1)
    # Another length, as Python tells versions of a file apart by time and size.
    (tmp_path / "mended.py").write_text("def f(prompts, completions, **columns): return [1.0]")
    assert load_judge(f"{tmp_path}/mended.py:f", batch_size=1)(["p"], ["c"]) == [1.0]


def test_a_judge_gets_batches_of_prompts_completions_and_columns():
    calls = []

    def record_call(prompts: list, completions: list, **columns: list) -> list[float]:
        calls.append((prompts, completions, columns))
        return [0.0] * len(prompts)

    Judge("j", record_call, batch_size=2)(["p", "p", "q"], ["a", "b", "c"], topic=["x", "y", "z"])
    assert calls == [(["p", "p"], ["a", "b"], {"topic": ["x", "y"]}), (["q"], ["c"], {"topic": ["z"]})]


@pytest.mark.parametrize(
    ("judge", "index", "message"),
    [
        (lambda prompts, completions, **_: [0.0], 0, "a list of 2 numbers for 2 answers; got 1 numbers"),
        (lambda prompts, completions, **_: (0.0, 0.0, 0.0), 0, "for 2 answers; got 3 numbers"),
        (lambda prompts, completions, **_: None, 0, "got NoneType"),
        (lambda prompts, completions, **_: "ab", 0, "got str"),
        (lambda prompts, completions, **_: [math.nan if c == "c" else 0 for c in completions], 2, "got nan"),
        (lambda prompts, completions, **_: [math.inf if c == "b" else 0 for c in completions], 1, "got inf"),
        (lambda prompts, completions, **_: [None for _ in completions], 0, "finite numbers; got None"),
    ],
)
def test_missing_and_unusable_scores_are_refused_with_the_place(judge: Callable, index: int, message: str):
    with pytest.raises(ScoringError, match=message) as error:
        Judge("j", judge, batch_size=2)(["p"] * 3, ["a", "b", "c"])
    assert error.value.index == index


def test_an_unusable_score_is_traced_to_line_and_answer():
    answers = answers_of({"prompt": "p", "responses": ["a", "a"]}, {"prompt": "q", "responses": ["b", "c"]})
    judge = Judge("j", lambda prompts, completions, **_: [math.nan if c == "c" else 0 for c in completions], 10)
    with pytest.raises(ValueError, match=r"answers\.jsonl:2: 'responses\[1\]': judge j .*got nan"):
        score_answers(judge, answers)


def test_equal_answers_to_a_prompt_are_judged_once_and_share_the_score():
    counter = iter(range(10))
    judge = Judge("moody", lambda prompts, completions, **_: [float(next(counter)) for _ in completions], 10)
    answers = answers_of({"prompt": "p", "responses": ["a", "b", "a"]}, {"prompt": "q", "responses": ["a"]})
    assert score_answers(judge, answers) == [[0.0, 1.0, 0.0], [2.0]]


def test_columns_of_numbers_go_to_the_judge_answer_by_answer_and_others_repeated():
    seen = {}

    def judge(prompts: list, completions: list, **columns: list) -> list[float]:
        seen.update(columns, prompts=prompts)
        return [0.0] * len(completions)

    first = {"prompt": "p", "responses": ["a", "b"], "finished": [True, False], "tags": ["x", "y"]}
    score_answers(Judge("j", judge, 10), answers_of(first, {"prompt": "q", "responses": ["c"], "topic": 7}))
    assert seen == {
        "prompts": ["p", "p", "q"],
        "finished": [True, False, None],
        "tags": [["x", "y"], ["x", "y"], None],
        "topic": [None, None, 7],
    }


def test_summary_of_answers_and_scores():
    answers = answers_of(
        {"prompt": "p", "responses": ["aab", "aab", ""], "finished": [True, False, True]},
        {"prompt": "q", "responses": ["ab"], "finished": [True]},
    )
    metrics = summarise_answers(answers, [[1.0, 2.0, 3.0], [6.0]])
    assert metrics == pytest.approx(
        {
            "prompts": 2,
            "answers": 4,
            "score/mean": 3.0,
            # Squared distances from 3: 4 + 1 + 0 + 9 = 14.
            "score/std": math.sqrt(14 / 4),
            "score/min": 1.0,
            "score/max": 6.0,
            "score/best_of_k": (3 + 6) / 2,
            "length/mean_characters": (3 + 3 + 0 + 2) / 4,
            "share/finished": 3 / 4,
            "share/empty": 1 / 4,
            # The second aab; the ab of the other prompt repeats nothing.
            "share/duplicate": 1 / 4,
            # Words aab, ab among aab aab ab.
            "distinct/1": 2 / 3,
            "distinct/2": 0.0,
        }
    )


def test_summary_leaves_out_what_the_file_does_not_say():
    metrics = summarise_answers(answers_of({"prompt": "p", "responses": ["", ""]}))
    assert metrics == {
        "prompts": 1,
        "answers": 2,
        "length/mean_characters": 0,
        "share/empty": 1,
        "share/duplicate": 0.5,
        "distinct/1": 0,
        "distinct/2": 0,
    }


def test_the_text_of_an_answer_in_messages_is_what_counts():
    chat = {"prompt": [{"role": "user", "content": "p"}], "responses": [[{"role": "assistant", "content": "abc"}]]}
    assert summarise_answers(answers_of(chat))["length/mean_characters"] == 3


@pytest.mark.parametrize(
    ("min_score_gap", "expected"),
    [
        # By reference: 3>2 right, 3>1 tied, 2>1 wrong; in the second prompt 5>4 right, twice; the fours make no pair.
        (0.0, {"judge/pairs": 5, "judge/pair_accuracy": (1 + 0.5 + 0 + 1 + 1) / 5}),
        (2.0, {"judge/pairs": 1, "judge/pair_accuracy": 0.5}),
        (9.0, {"judge/pairs": 0, "judge/pair_accuracy": None}),
    ],
)
def test_agreement_of_a_judge_with_other_scores(min_score_gap, expected):
    reference = [[3.0, 2.0, 1.0], [4.0, 5.0, 4.0], [1.0]]
    scores = [[0.5, 0.0, 0.5], [-1.0, 7.0, 2.0], [0.0]]
    assert judge_agreement(scores, reference, min_score_gap) == pytest.approx(expected)


def test_without_a_pair_there_is_no_agreement():
    assert judge_agreement([[1.0], [2.0, 3.0]], [[1.0], [5.0, 5.0]]) == {"judge/pairs": 0, "judge/pair_accuracy": None}


def test_prompts_match_by_text_and_repeated_prompts_in_turn():
    records = [{"prompt": text} for text in ["a", "b", "a", "c"]]
    others = [{"prompt": text} for text in ["d", "a", "a", "a", "b"]]
    assert match_prompts(records, others) == [(0, 1), (1, 4), (2, 2)]


def test_mean_difference_and_win_rate_weigh_each_prompt_alike():
    # First prompt: means 2 and 1; pairs 1-1 tie, 3-1 win -> 0.75. Second: means 0 and 4 (4 pairs, all lost).
    compared = compare_scores([[1.0, 3.0], [0.0, 0.0]], [[1.0], [3.0, 5.0]])
    assert compared["against/mean_difference"] == pytest.approx((1 - 4) / 2)
    assert compared["against/win_rate"] == pytest.approx((0.75 + 0) / 2)
    assert compared["against/prompts"] == 2


def test_bootstrap_interval_resamples_prompts():
    # Half of 400 prompts differ by 0, half by 1: the mean's standard error is 0.5 / sqrt(400) = 0.025.
    compared = compare_scores([[float(row % 2)] for row in range(400)], [[0.0]] * 400)
    assert compared["against/interval_low"] == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert compared["against/interval_high"] == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_bootstrap_interval_of_two_prompts_spans_both_and_of_equal_differences_is_a_point():
    # Both draws fall on one prompt with probability 1/4, far above 2.5 %.
    compared = compare_scores([[0.0], [1.0]], [[0.0], [0.0]])
    assert (compared["against/interval_low"], compared["against/interval_high"]) == (0.0, 1.0)
    compared = compare_scores([[2.0], [3.0]], [[0.0], [1.0]])
    assert (compared["against/interval_low"], compared["against/interval_high"]) == (2.0, 2.0)


def test_a_judge_of_texts_reads_messages_that_only_call_a_tool_as_empty_lines():
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    prompt = [{"role": "user", "content": "2 + 2"}, call, {"role": "tool", "content": "4"}]
    seen = []
    judge = Judge(
        "j", lambda prompts, completions, **columns: seen.append((prompts, completions)) or [1.0], form="text"
    )
    assert judge([prompt], [[{"role": "assistant", "content": "four"}]]) == [1.0]
    assert seen == [(["2 + 2\n\n4"], ["four"])]


def test_what_a_judge_does_to_its_arguments_reaches_nobody_else():
    def spoils(prompts, completions, notes, **columns):
        scores = [float(len(text)) for text in completions]
        prompts[0][0]["content"] = "other"
        completions.clear()
        notes[0].append("mine")
        return scores

    prompts, completions, notes = [[{"role": "user", "content": "q"}]], ["ab"], [["theirs"]]
    assert Judge("spoils", spoils)(prompts, completions, notes=notes) == [2.0]
    assert (prompts, completions, notes) == ([[{"role": "user", "content": "q"}]], ["ab"], [["theirs"]])
