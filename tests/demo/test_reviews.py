import json
from pathlib import Path

import pytest

FILES = [
    "demonstrations.train.jsonl",
    "demonstrations.test.jsonl",
    "prompts.reward_train.jsonl",
    "prompts.reward_test.jsonl",
    "prompts.ppo.jsonl",
    "prompts.judge.jsonl",
]


@pytest.fixture(scope="module")
def reviews(demo_module):
    return demo_module("reviews")


@pytest.fixture(scope="module")
def counts(reviews):
    return reviews.SplitCounts(demonstrations_test=200, reward_train=300, reward_test=100, ppo=400, judge=50)


@pytest.fixture(scope="module")
def prepared(reviews, counts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    return reviews.prepare_reviews(folder, counts, seed=7), folder


def read_records(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").split("\n") if line]


@pytest.mark.parametrize(
    ("opening", "completion"),
    [
        ("外观很漂亮，", "配置也不错。"),
        ("性价比高，外观漂亮，", "值得购买的本本"),  # the first clause has 5 characters, too few
        ("这个酒店太差了！！！", "再也不会来住了"),  # the run of punctuation stays whole
        ("他对我说“很好。”", "我觉得并不怎么好"),  # the closing quotation mark too
        ("刚写完我的点评, ", "就看到了下面那位客人"),  # and the space
        ("机器的重量是1.8公斤，", "不算是很轻的本本"),  # the point of a number ends no clause
        ("卫生间很干净 ", "毛巾洗漱用品都很齐全"),  # a space between Chinese characters does
        ("第一：京东的客服", "电话总也打不通"),  # no clause of 6 characters: 8
        ("我的THINKPAD", "键盘手感好得不得了"),  # 8 would cut the word
        ("我在2008年", "12月入住了这家酒店"),  # 8 would cut the 12
        ("系统和配置都还", "不错的。。。"),  # 8 would leave 5 characters
        ("这次他们给我们订", "的标间，还不错"),  # the clause would leave 4 characters
        ("房间里都有电冰", "箱、电视和大浴缸"),  # 8 would leave a comma in front
    ],
)
def test_opening_ends_where_a_continuation_is_natural(reviews, opening, completion):
    assert reviews.opening_length(opening + completion) == len(opening)


def test_review_without_a_natural_cut_has_no_opening(reviews):
    assert reviews.opening_length("系统自带office2007") is None


def test_cleaning_counts_what_it_leaves_out(reviews):
    kept, left_out = reviews.clean_reviews(
        [
            "  房间很\t干净，　服务 也很好。 ",
            "房间很 干净， 服务 也很好。",
            "十一个字的评论太短了吧",
            "",
            "十二个字的评论就刚刚好吧",
            "长" * 160,
            "长" * 161,
            "补充点评 2008年7月2日 ： 房间里的空调坏了没人修理",
            "宾馆反馈 2008年7月31日 ： 感谢您",
        ]
    )
    assert kept == [
        "房间很 干净， 服务 也很好。",
        "十二个字的评论就刚刚好吧",
        "长" * 160,
        "房间里的空调坏了没人修理",
    ]
    assert left_out == {"duplicate": 1, "too_short": 3, "too_long": 1, "no_opening": 0}


def test_every_line_of_the_package_is_accounted_for(prepared):
    report, _ = prepared
    assert report["lines"] == 16548 + 18576  # wc -l pos.txt neg.txt
    assert sum(report["left_out"].values()) + sum(report["records"].values()) == report["lines"]


def test_files_hold_what_was_asked_for(prepared):
    report, folder = prepared
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert {name: len(read_records(folder, name)) for name in FILES} == report["records"]
    assert [report["records"][name] for name in FILES[1:]] == [200, 300, 100, 400, 50]
    for name in FILES:
        fields = {"prompt", "completion"} if name.startswith("demonstrations") else {"prompt"}
        assert all(set(record) == fields for record in read_records(folder, name))


def test_no_opening_is_in_two_files(prepared):
    _, folder = prepared
    prompts = {name: [record["prompt"] for record in read_records(folder, name)] for name in FILES}
    assert sum(len(set(texts)) for texts in prompts.values()) == len(set().union(*prompts.values()))
    for name in FILES[1:]:
        assert len(set(prompts[name])) == len(prompts[name])


def test_no_review_of_a_held_out_opening_is_trained_on(prepared):
    _, folder = prepared
    held_out = tuple(record["prompt"] for name in FILES[1:] for record in read_records(folder, name))
    trained_on = [record["prompt"] + record["completion"] for record in read_records(folder, FILES[0])]
    assert len(set(trained_on)) == len(trained_on)
    # A held-out opening may begin a longer clause of another review, but not be cut at the same place.
    assert not {record["prompt"] for record in read_records(folder, FILES[0])} & set(held_out)


def test_openings_and_completions_have_the_promised_lengths(prepared):
    _, folder = prepared
    for record in read_records(folder, FILES[0]) + read_records(folder, FILES[1]):
        assert 6 <= len(record["prompt"]) <= 24
        assert 6 <= len(record["completion"])
        assert 12 <= len(record["prompt"] + record["completion"]) <= 160


def test_reviews_with_a_common_opening_are_kept_together(reviews, monkeypatch, tmp_path):
    same = [f"性价比非常高，理由是第{i}个理由" for i in "一二三"]
    others = [f"这是第{i}间房间，住起来很舒服" for i in "甲乙丙丁戊己"]
    monkeypatch.setattr(reviews, "read_lines", lambda: same + others)
    counts = reviews.SplitCounts(demonstrations_test=1, reward_train=1, reward_test=1, ppo=1, judge=1)
    for seed in range(20):
        report = reviews.prepare_reviews(tmp_path / str(seed), counts, seed)
        trained_on = [record["prompt"] for record in read_records(tmp_path / str(seed), FILES[0])]
        held_out = "性价比非常高，" not in trained_on
        assert trained_on.count("性价比非常高，") == (0 if held_out else 3)
        assert report["left_out"]["same_opening_held_out"] == (2 if held_out else 0)


def test_seed_decides_the_split(reviews, counts, prepared, tmp_path):
    _, folder = prepared
    reviews.prepare_reviews(tmp_path / "same", counts, seed=7)
    reviews.prepare_reviews(tmp_path / "other", counts, seed=8)
    for name in FILES:
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes()


def test_number_of_demonstrations_can_be_limited(reviews, tmp_path):
    counts = reviews.SplitCounts(1, 1, 1, 1, 1, demonstrations_train=30)
    report = reviews.prepare_reviews(tmp_path, counts, seed=0)
    assert len(read_records(tmp_path, FILES[0])) == report["records"][FILES[0]] == 30
    assert sum(report["left_out"].values()) + 35 == report["lines"]


def test_asking_for_more_than_there_is_writes_nothing(reviews, tmp_path):
    with pytest.raises(ValueError, match="asks for 99004 held-out openings"):
        reviews.prepare_reviews(tmp_path, reviews.SplitCounts(1, 99_000, 1, 1, 1), seed=0)
    with pytest.raises(ValueError, match="and 99000 demonstrations"):
        reviews.prepare_reviews(tmp_path, reviews.SplitCounts(1, 1, 1, 1, 1, demonstrations_train=99_000), seed=0)
    assert not list(tmp_path.iterdir())


def test_count_below_one_is_refused_by_name(reviews):
    with pytest.raises(ValueError, match=r"SplitCounts\.ppo must be a whole number of at least 1; got 0"):
        reviews.SplitCounts(1, 1, 1, ppo=0, judge=1)


def test_existing_file_is_not_overwritten(reviews, counts, prepared):
    _, folder = prepared
    with pytest.raises(FileExistsError):
        reviews.prepare_reviews(folder, counts, seed=9)
