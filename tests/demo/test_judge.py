import functools

import pytest
from snownlp import SnowNLP

# Each word stands once, so that snownlp's own score of the text is the expected one.
PLAIN_TEXTS = ["很喜欢这本书", "房间脏，服务差。", "推荐", "垃圾！", "外观漂亮，但是散热一般", "感动，温馨", "别买"]


@pytest.fixture(scope="module")
def judge(demo_module):
    module = demo_module("judge")
    yield module
    module._workers().close()
    module._workers.cache_clear()


def scores_of(judge, completions: list[str], prompt: str = "这家酒店，") -> list[float]:
    return judge.sentiment([prompt] * len(completions), completions)


def test_scores_are_those_of_snownlp_in_the_order_of_the_texts(judge):
    expected = [SnowNLP(text).sentiments for text in PLAIN_TEXTS]
    assert len(set(expected)) == len(PLAIN_TEXTS)
    assert scores_of(judge, PLAIN_TEXTS) == expected
    assert scores_of(judge, PLAIN_TEXTS[::-1]) == expected[::-1]


def test_opening_does_not_move_the_score(judge):
    assert scores_of(judge, PLAIN_TEXTS, prompt="太差了，") == scores_of(judge, PLAIN_TEXTS, prompt="太好了，")


def test_repeating_a_word_earns_nothing(judge):
    once, often = scores_of(judge, ["喜欢", "喜欢" * 10])
    assert often == once == SnowNLP("喜欢").sentiments
    assert SnowNLP("喜欢" * 10).sentiments > 0.99


@pytest.mark.parametrize("text", ["", "  \n", "的了是", "。", "，，，", "！！！", "鼋鼍龘", "xyzzy", "😀", "的，了。"])
def test_text_that_says_nothing_scores_zero(judge, text):
    assert judge.judge_text(text) == 0.0


def test_good_reviews_score_above_bad_ones(judge):
    good, bad = scores_of(judge, ["房间温馨，服务热情，下次还来！", "服务态度恶劣，房间肮脏，再也不来了！"])
    assert bad < 0.1 < 0.9 < good


def test_other_columns_are_accepted_and_an_empty_batch_too(judge):
    assert judge.sentiment(["甲"], ["推荐"], label=[1]) == scores_of(judge, ["推荐"])
    assert judge.sentiment([], []) == []


def test_unequal_numbers_are_refused(judge):
    with pytest.raises(ValueError, match="got 2 prompts and 1 completions"):
        judge.sentiment(["甲", "乙"], ["推荐"])


@pytest.fixture
def length_judge(judge, monkeypatch, tmp_path):
    """The judge with workers that start at once and score a text by its length."""
    script = tmp_path / "length_judge.py"
    script.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps([float(len(text)) for text in json.loads(line)]), flush=True)\n"
    )
    monkeypatch.setattr(judge, "__file__", str(script))
    # The workers that score sentiment are kept, apart, for the tests that follow.
    monkeypatch.setattr(judge, "_workers", functools.cache(judge._workers.__wrapped__))
    yield judge
    judge._workers().close()


@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
def test_scores_come_in_the_order_of_the_texts_from_any_number_of_workers(length_judge, num_workers):
    workers = length_judge.JudgeWorkers(num_workers)
    assert workers.judge(["好" * length for length in (5, 3, 9, 1, 7)]) == [5, 3, 9, 1, 7]
    workers.close()
    assert all(process.returncode is not None for process in workers.processes)


def test_call_after_a_worker_died_starts_anew(length_judge):
    assert scores_of(length_judge, ["甲", "乙乙"]) == [1, 2]
    processes = length_judge._workers().processes
    processes[-1].kill()
    processes[-1].wait()
    with pytest.raises(RuntimeError, match="exit code -9"):
        scores_of(length_judge, ["甲", "乙乙", "丙"])
    assert all(process.returncode is not None for process in processes)
    assert scores_of(length_judge, ["甲甲甲", "乙"]) == [3, 1]


def test_call_after_an_interrupted_one_gets_its_own_scores(length_judge, monkeypatch):
    scores_of(length_judge, ["甲"])

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(length_judge._workers().processes[0].stdout, "readline", interrupt)
    with pytest.raises(KeyboardInterrupt):
        scores_of(length_judge, ["甲", "乙乙"])
    assert scores_of(length_judge, ["甲甲甲", "乙"]) == [3, 1]
