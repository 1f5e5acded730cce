"""Decisions to ranking records: scores by hand, what is left out and said of it, and that the reward stage reads it."""

from dataclasses import replace

import pytest

from pangu_trl import cli
from pangu_trl.annotation.decisions import Decision, prompt_digest
from pangu_trl.annotation.rankings import make_rankings
from pangu_trl.annotation.store import Store, store_path
from pangu_trl.answers.records import Answers
from pangu_trl.data.jsonl import write_jsonl
from pangu_trl.data.loading import load_records

RECORDS = [
    {"prompt": "One?", "responses": ["a", "b", "c"], "finished": [True, False, True], "ranked": False, "topic": "x"},
    {"prompt": "Two?", "responses": ["d", "e"], "scores": [0.5, 0.1], "topic": "y"},
    {"prompt": "Three?", "responses": ["f", "g"], "topic": "z"},
]
ANSWERS = Answers(RECORDS, [f"answers.jsonl:{line}" for line in range(1, 4)])


def decide(annotator, place, ranks, repeat=0, record=None, **more):
    digest = prompt_digest(record or RECORDS[place])
    order = tuple(range(len(ranks) or 2))
    return Decision(
        digest, place + 1, annotator, ranks, order, 7.0, f"2026-01-0{place + 1}T00:00:00Z", "f", repeat, **more
    )


def answers_of(*records):
    return Answers(list(records), [f"answers.jsonl:{line}" for line, _ in enumerate(records, 1)])


def test_one_annotator_gives_k_minus_place():
    (record,) = make_rankings(ANSWERS, [decide("ann", 0, (2, 1, 3), comment="fine")]).records
    assert record == {
        "prompt": "One?",
        "responses": ["a", "b", "c"],
        "scores": [1.0, 2.0, 0.0],
        "finished": [True, False, True],
        "topic": "x",
        "annotators": ["ann"],
        "num_annotators": 1,
        "decided_at": ["2026-01-01T00:00:00Z"],
        "annotation_seconds": [7.0],
        "invalid_votes": [0, 0, 0],
        "comments": ["fine"],
    }


def test_several_annotators_count_alike():
    decisions = [decide("ann", 0, (1, 2, 3)), decide("bob", 0, (1, 1, 2)), decide("cy", 0, (3, 2, 1))]
    (record,) = make_rankings(ANSWERS, decisions, soft_labels=True).records
    # Places 1, 1.5, 3; 2, 1.5, 2; 3, 3, 1: scores are 3 minus their means 11/6, 11/6 and 7/3.
    assert record["scores"] == pytest.approx([7 / 6, 7 / 6, 2 / 3])
    assert record["annotator_scores"] == [[2, 1, 0], [1.5, 1.5, 0], [0, 1, 2]]
    assert record["num_annotators"] == 3
    # By name, whichever came first.
    assert make_rankings(ANSWERS, decisions[::-1], soft_labels=True).records == [record]


def test_invalid_answers_come_last_or_go():
    decisions = [decide("ann", 0, (None, 1, None)), decide("bob", 0, (1, 2, None)), decide("cy", 0, (1, 2, None))]
    (record,) = make_rankings(ANSWERS, decisions).records
    # Places 2.5, 1, 2.5; 1, 2, 3; 1, 2, 3.
    assert record["scores"] == pytest.approx([1.5, 4 / 3, 1 / 6])
    assert record["invalid_votes"] == [1, 0, 3]
    found = make_rankings(ANSWERS, decisions, invalid="drop")
    (record,) = found.records
    assert (record["responses"], record["finished"], found.dropped_answers) == (["a", "b"], [True, False], 1)
    # Of two answers: places 2, 1; 1, 2; 1, 2.
    assert record["scores"] == pytest.approx([2 / 3, 1 / 3])
    assert record["invalid_votes"] == [1, 0]
    # Half of the two.
    found = make_rankings(ANSWERS, [decide("ann", 0, (1, 2, 3)), decide("bob", 0, (1, None, 2))], invalid="drop")
    assert [record["responses"] for record in found.records] == [["a", "c"]]


def test_what_is_left_with_one_answer_is_left_out():
    found = make_rankings(ANSWERS, [decide("ann", 1, (1, None))], invalid="drop")
    assert (found.records, found.too_few) == ([], [2])


def test_everything_left_out_is_counted():
    decisions = [
        decide("ann", 0, (1, 2, 3)),
        decide("ann", 0, (3, 2, 1), repeat=1),
        decide("ann", 1, ()),
        replace(decide("ann", 0, (2, 1, 3)), decided_at="2025-01-01T00:00:00Z"),
        decide("ann", 0, (1, 2), record={"prompt": "gone", "responses": ["a", "b"]}),
    ]
    found = make_rankings(ANSWERS, decisions)
    assert [record["scores"] for record in found.records] == [[2, 1, 0]]
    assert (found.repeats, found.skipped, found.replaced, found.unranked) == (1, 1, 1, 2)
    assert found.unknown == {"f": 1}


def test_scores_of_a_judge_are_kept_under_another_name():
    (record,) = make_rankings(ANSWERS, [decide("ann", 1, (2, 1))]).records
    assert (record["scores"], record["scores_before_annotation"]) == ([0, 1], [0.5, 0.1])


def test_equal_answers_share_their_score_and_empty_ones_go():
    record = {"prompt": "Same?", "responses": ["a", "b", "a", " "]}
    found = make_rankings(answers_of(record), [decide("ann", 0, (1, 2, 3, 4), record=record)])
    # Places 1, 2, 3 of the three that have text: scores 2, 1, 0, of which the equal ones share 1.
    assert (found.records[0]["responses"], found.records[0]["scores"]) == (["a", "b", "a"], [1, 1, 1])
    assert (found.evened, found.empty_answers, found.tied) == (1, 1, 1)


def test_attributes_are_averaged_over_those_who_gave_them():
    decisions = [
        decide("ann", 1, (1, 2), attributes={"true": (5, None)}),
        decide("bob", 1, (1, 2), attributes={"true": (2, None), "kind": (1, 2)}),
    ]
    (record,) = make_rankings(ANSWERS, decisions).records
    assert record["attribute_true"] == [3.5, None] and record["attribute_kind"] == [1, 2]


def test_columns_that_give_way_are_named():
    record = RECORDS[2] | {"comments": "from elsewhere"}
    found = make_rankings(answers_of(record), [decide("ann", 0, (1, 2), record=record)])
    assert found.overwritten == {"comments"}


def test_lines_that_say_the_same_are_one_record():
    found = make_rankings(answers_of(RECORDS[2], RECORDS[2]), [decide("ann", 2, (1, 2))])
    assert (len(found.records), found.unranked) == (1, 0)


def test_conversations_stay_conversations():
    record = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "responses": [[{"role": "assistant", "content": text}] for text in "ab"],
    }
    (ranking,) = make_rankings(answers_of(record), [decide("ann", 0, (2, 1), record=record)]).records
    assert ranking["prompt"] == record["prompt"] and ranking["responses"] == record["responses"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl("answers.jsonl", RECORDS)
    decisions = [
        decide("ann|x", 0, (1, 2, None)),
        decide("bob", 0, (2, 1, None)),
        decide("bob", 1, (1, 2)),
        decide("bob", 2, ()),
    ]
    with Store(store_path("answers.jsonl"), seed=0) as store:
        for number, decision in enumerate(decisions):
            store.add(decision, str(number))
    return tmp_path


def test_command_writes_rankings_and_a_card_that_loads_them(folder, capsys):
    words = ["export-annotations", "answers.jsonl", "--output", "rankings.jsonl", "--soft-labels"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "rankings.jsonl: 2 rankings by 2 annotators; rankings.md: their data card" in said.out
    assert "1 prompts that nobody ranked; 1 decisions that skipped a prompt" in said.err
    assert "1 records tie all their answers" not in said.err
    loaded = load_records("rankings.md", "ranking")
    assert loaded["scores"] == [[1.5, 1.5, 0.0], [1.0, 0.0]]
    assert loaded["annotator_scores"][0] == [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]]
    card = (folder / "rankings.md").read_text("utf-8")
    assert "| ann\\|x | 1 | 0 | 7 |  |" in card and "0.67 of 3 pairs" in card
    # A second run replaces nothing unasked, neither of the two files.
    assert cli.main(words) == 2
    assert "exists already" in capsys.readouterr().err
    (folder / "rankings.jsonl").unlink()
    assert cli.main(words) == 2
    assert "rankings.md: exists already" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "x.json"], "must end in .jsonl"),
        (["--output", "x.csv", "--form", "csv", "--soft-labels"], "leave them out with --form csv"),
        (["--output", "x.jsonl", "--store", "none.sqlite"], "none.sqlite: no such file"),
    ],
)
def test_wrong_words_are_refused_in_a_line(folder, capsys, words, message):
    assert cli.main(["export-annotations", "answers.jsonl", *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("x")) == []


def test_reward_trainer_learns_the_vote_shares(folder, tokenizer, reward_model, tmp_path):
    from pangu_trl import KWiseRewardConfig, KWiseRewardTrainer

    cli.main(["export-annotations", "answers.jsonl", "--output", "rankings.jsonl", "--soft-labels"])
    config = KWiseRewardConfig(
        output_dir=str(tmp_path / "model"),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        bf16=False,
        use_cpu=True,
    )
    dataset = load_records("rankings.md", "ranking")
    trainer = KWiseRewardTrainer(reward_model, config, train_dataset=dataset, processing_class=tokenizer)
    assert trainer.train().training_loss > 0
    assert trainer.train_dataset["annotator_scores"][0] == [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]]
