"""The field's measures of a reward model: RewardBench 2, exact match, intervals over prompts, verdicts on probes."""

import json
import math
from pathlib import Path

import pytest
import torch

from pangu_trl.cli import main
from pangu_trl.data.jsonl import write_jsonl
from pangu_trl.models.reward_model import score_responses
from pangu_trl.reward import cheems
from pangu_trl.reward.evaluation import ranking_metrics
from pangu_trl.reward.intervals import accuracy_differences, accuracy_intervals
from pangu_trl.reward.probes import probe_verdicts
from pangu_trl.reward.rewardbench import best_of_share, ties_figures
from pangu_trl.reward.rewardbench import metrics as rewardbench2_metrics

SAMPLE = Path(__file__).parents[2] / "data_cards" / "samples" / "public" / "cheems-bench.jsonl"


def record(subset: str = "Math", identity: str = "1", num_chosen: int = 1, num_rejected: int = 3) -> dict:
    return {
        "id": identity,
        "prompt": "2 + 2?",
        "chosen": ["4"] * num_chosen,
        "rejected": ["5"] * num_rejected,
        "subset": subset,
    }


def test_best_of_four_counts_a_share_of_the_highest_score():
    assert best_of_share([3.0, 1.0, 2.0, 0.0]) == 1.0
    assert best_of_share([3.0, 3.0, 2.0, 3.0]) == pytest.approx(1 / 3)
    assert best_of_share([2.0, 3.0, 2.0, 3.0]) == 0.0


def test_ties_by_hand():
    records = [
        record("Ties", "ref:1"),
        record("Ties", "tied:1", 2, 2),
        record("Ties", "ref:2"),
        record("Ties", "tied:2", 2, 1),
        record("Ties", "tied:3", 2, 1),
    ]
    scores = [
        [5.0, 1.0, 2.0, 0.0],  # right above wrong by 3
        [7.0, 6.0, 4.0, 1.0],  # right above wrong by 2, right apart by 1
        [1.0, 2.0, 0.0, 0.0],  # wrong above right by 1
        [9.0, 5.0, 4.0],  # by 1, apart by 4
        [3.0, 3.0, 3.0],  # equal, which is not above
    ]
    figures = ties_figures(records, scores)
    assert figures["ref_accuracy"] == 1 / 2
    assert figures["tied_accuracy"] == 2 / 3
    # Of prompts 1 and 2: gaps 2 > 1 and 1 < 4; with the other form min(3, 2) > 1 and min(-1, 1) < 4.
    assert figures["correctness_preferred"] == figures["correctness_preferred_hard"] == 1 / 2
    expected = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 4 - 1)) / 2
    assert figures["correctness_margin"] == pytest.approx(expected)
    metrics = rewardbench2_metrics([record("Math"), *records], [[1.0, 0.0, 0.0, 0.0], *scores])
    assert metrics["Ties"] == pytest.approx(0.3 / 2 + 0.3 * 2 / 3 + 0.2 / 2 + 0.2 / 2 + 0.01 * expected)
    assert metrics["overall"] == pytest.approx((1.0 + metrics["Ties"]) / 2)


def test_right_answers_of_one_score_have_the_largest_margin():
    records = [record("Ties", "ref:1"), record("Ties", "tied:1", 2, 1)]
    assert ties_figures(records, [[2.0, 1.0, 0.0, 0.0], [3.0, 3.0, 1.0]])["correctness_margin"] == 1.0
    assert ties_figures(records, [[1.0, 1.0, 0.0, 0.0], [3.0, 3.0, 1.0]])["correctness_margin"] == 0.0


def test_the_command_scores_the_published_form(reward_model, tokenizer, tmp_path, capsys):
    reward_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {"id": "a", "prompt": "总体", "chosen": ["好"], "rejected": ["差", "一般", "脏"], "subset": "Focus"},
        {"id": "ref:1", "prompt": "房间", "chosen": ["好"], "rejected": ["差"], "subset": "Ties"},
        {"id": "tied:1", "prompt": "服务", "chosen": ["好", "热情"], "rejected": ["差", "脏"], "subset": "Ties"},
    ]
    write_jsonl(tmp_path / "bench.jsonl", rows)
    words = ["--data", str(tmp_path / "bench.jsonl"), "--benchmark", "rewardbench2", "--output", str(tmp_path / "out")]
    assert main(["evaluate-reward", str(tmp_path / "model"), *words]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))["metrics"]
    chat = bool(tokenizer.chat_template)

    def turn(text, role):
        return [{"role": role, "content": text}] if chat else text

    scores = []
    for row in rows:
        answers = row["chosen"] + row["rejected"]
        prompts = [turn(row["prompt"], "user")] * len(answers)
        responses = [turn(answer, "assistant") for answer in answers]
        scores.append(score_responses(reward_model, tokenizer, prompts, responses, 1))
    assert found["Focus"] == float(scores[0][0] == max(scores[0]))
    assert found["Ties/ref_accuracy"] == float(scores[1][0] > scores[1][1])
    assert found["overall"] == pytest.approx((found["Focus"] + found["Ties"]) / 2)
    assert "overall" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "bench.jsonl:1: 'prompt' must be a text in RewardBench 2; got None"),
        ({"chosen": []}, "'chosen' must be a list of texts, one at least"),
        ({"rejected": "no"}, "'rejected' must be a list of texts"),
        ({"subset": "Ties"}, "'id' must be ref:NUMBER or tied:NUMBER"),
        ({"chosen": ["a", "b"]}, "'chosen' must be one answer outside of the subset Ties"),
    ],
)
def test_records_of_another_form_are_refused_with_their_line(tmp_path, capsys, change, message):
    write_jsonl(tmp_path / "bench.jsonl", [record() | change])
    words = ["--data", str(tmp_path / "bench.jsonl"), "--benchmark", "rewardbench2", "--output", str(tmp_path / "out")]
    assert main(["evaluate-reward", "nowhere", *words]) == 2
    assert message in capsys.readouterr().err


def ranked(category: object, ranks: object, num_answers: int = 3) -> dict:
    responses = [{"id": name, "content": f"答 {name}"} for name in "abc"[:num_answers]]
    return {"input": "问", "category": category, "responses": responses, "rank": ranks}


def test_cheemsbench_by_hand():
    records = [
        ranked(["A", "x"], [["a", 1], ["b", 2], ["c", 3]]),
        ranked(["A"], {"c": "2", "a": 1, "b": 1}),
        ranked("B", [["b", 1], ["a", 2]], 2),
        ranked("B", [["a", 1], ["b", 1], ["c", 1]]),
    ]
    # All three pairs right; of two pairs one right, one of equal scores; one pair right; no pair.
    scores = [[3.0, 2.0, 1.0], [5.0, 1.0, 1.0], [0.0, 1.0], [1.0, 2.0, 3.0]]
    for row, one in enumerate(records):
        cheems.check_record(one, f"row {row}")
    expected = {"accuracy/A": 4 / 5, "accuracy/B": 1.0, "accuracy": 0.9}
    expected |= {"exact_match/A": 1 / 2, "exact_match/B": 1.0, "exact_match": 0.75, "overall": 0.825}
    assert cheems.metrics(records, scores) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no record has two answers of different rank"):
        cheems.metrics(records[3:], scores[3:])


def test_the_command_scores_cheemsbench_as_it_is_published(reward_model, tokenizer, tmp_path, capsys):
    reward_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = ["--data", str(SAMPLE), "--benchmark", "cheemsbench", "--output", str(tmp_path / "out"), "--json"]
    assert main(["evaluate-reward", str(tmp_path / "model"), *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    # The sample by hand: rank 1 is the third answer, then the first, then the second; then two best ones and a third.
    better = [[(2, 0), (2, 1), (0, 1)], [(0, 2), (1, 2)]]
    shares = []
    for line, pairs in zip(SAMPLE.read_text("utf-8").splitlines(), better, strict=True):
        row = json.loads(line)
        prompt, answers = row["input"], [response["content"] for response in row["responses"]]
        if tokenizer.chat_template:
            prompt = [{"role": "user", "content": prompt}]
            answers = [[{"role": "assistant", "content": answer}] for answer in answers]
        scores = score_responses(reward_model, tokenizer, [prompt] * 3, answers, 1)
        shares.append([scores[one] > scores[other] for one, other in pairs])
    accuracy = sum(sum(right) / len(right) for right in shares) / 2
    exact_match = sum(all(right) for right in shares) / 2
    assert printed["accuracy"] == pytest.approx(accuracy) and printed["exact_match"] == pytest.approx(exact_match)
    assert printed["accuracy/写作"] == pytest.approx(sum(shares[1]) / 2)
    assert printed["overall"] == pytest.approx((accuracy + exact_match) / 2)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))["metrics"] == printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": 3}, "bench.jsonl:1: 'input' must be a text in CheemsBench; got 3"),
        ({"category": []}, "bench.jsonl:1: 'category' must be a name or a list of names in CheemsBench; got []"),
        ({"responses": [{"id": "a", "content": "x"}]}, "bench.jsonl:1: in CheemsBench 'responses' must be two answers"),
        (
            {"responses": [{"id": "a", "content": "x"}] * 2},
            "'responses' must be objects of text in 'content' and an 'id'",
        ),
        ({"rank": [["a", 1], ["b", 2]]}, "'rank' must give each of the answers a, b, c one rank"),
        ({"rank": [["a", 1], ["b", 2], ["c", 3], ["c", 1]]}, "'rank' must give each of the answers a, b, c one rank"),
        ({"rank": {"a": 1, "b": 2, "c": 3, "d": 4}}, "'rank' must give each of the answers a, b, c one rank"),
        ({"rank": {"a": 1, "b": 2, "c": 2.5}}, "'rank' must be an object of ids and whole numbers, or pairs of them"),
    ],
)
def test_records_that_are_none_of_cheemsbench_are_refused_with_their_line(tmp_path, capsys, change, message):
    write_jsonl(tmp_path / "bench.jsonl", [ranked("A", {"a": 1, "b": 2, "c": 3}) | change])
    words = ["--data", str(tmp_path / "bench.jsonl"), "--benchmark", "cheemsbench", "--output", str(tmp_path / "out")]
    assert main(["evaluate-reward", "nowhere", *words]) == 2
    assert message in capsys.readouterr().err


def test_exact_match_asks_for_every_pair_of_a_prompt():
    # Prompt 1: all right. Prompt 2: one of three pairs wrong. Prompt 3: a tie of rewards. Prompt 4: no pair.
    labels = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    rewards = torch.tensor([[9.0, 5.0, 1.0], [9.0, 1.0, 5.0], [2.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    metrics = ranking_metrics(rewards, labels, torch.ones(4, 3).bool())
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    # A pair that is too close to count is no mistake: with a gap of 2 only the outer pairs of prompts 1 and 2.
    assert ranking_metrics(rewards, labels, torch.ones(4, 3).bool(), min_score_gap=2.0)["exact_match"] == 1.0


def rankings_with_accuracy(share_right: float, num_prompts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompts with two answers of which so many are ordered right."""
    right = torch.arange(num_prompts) < share_right * num_prompts
    rewards = torch.stack([right.double(), 1 - right.double()], dim=1)
    labels = torch.tensor([[1.0, 0.0]]).double().expand(num_prompts, 2)
    return rewards, labels, torch.ones(num_prompts, 2).bool()


def test_intervals_have_the_width_of_the_binomial_distribution():
    # 400 prompts, 75 % right: the deviation of the mean is sqrt(0.75 * 0.25 / 400) = 0.0217.
    low, high = accuracy_intervals(*rankings_with_accuracy(0.75, 400))["pair_accuracy"]
    assert low == pytest.approx(0.75 - 1.96 * 0.0217, abs=0.008)
    assert high == pytest.approx(0.75 + 1.96 * 0.0217, abs=0.008)
    intervals = accuracy_intervals(*rankings_with_accuracy(0.75, 400))
    assert intervals.keys() == {"pair_accuracy", "macro_pair_accuracy", "best_of_k_accuracy", "exact_match"}
    # With two answers all four are the same share.
    assert len(set(intervals.values())) == 1
    assert accuracy_intervals(*rankings_with_accuracy(1.0, 50))["pair_accuracy"] == (1.0, 1.0)


def test_the_point_of_every_interval_is_the_figure_of_the_metrics():
    generator = torch.Generator().manual_seed(0)
    rewards, labels = (torch.randint(0, 4, (60, 4), generator=generator).double() for _ in range(2))
    mask = torch.arange(4) < torch.randint(2, 5, (60, 1), generator=generator)
    metrics = ranking_metrics(rewards, labels, mask)
    differences = accuracy_differences(rewards, -rewards, labels, mask)
    mirrored = ranking_metrics(-rewards, labels, mask)
    for name, (low, high) in accuracy_intervals(rewards, labels, mask).items():
        assert low <= metrics[name] <= high
        assert differences[name] == pytest.approx(metrics[name] - mirrored[name])


def test_paired_intervals_know_that_two_models_err_on_the_same_prompts():
    rewards, labels, mask = rankings_with_accuracy(0.6, 200)
    better = rewards.clone()
    better[130:150] = torch.tensor([1.0, 0.0]).double()
    low, high = accuracy_intervals(better, labels, mask, other_rewards=rewards)["pair_accuracy"]
    # 20 of 200 prompts differ, all in one direction: 0.1 with a deviation of sqrt(0.1 * 0.9 / 200) = 0.0212.
    assert accuracy_differences(better, rewards, labels, mask)["pair_accuracy"] == pytest.approx(0.1)
    assert (low, high) == (pytest.approx(0.0585, abs=0.01), pytest.approx(0.1415, abs=0.01))
    assert accuracy_intervals(rewards, labels, mask, other_rewards=rewards)["pair_accuracy"] == (0.0, 0.0)


def test_a_verdict_names_the_probe_that_beats_the_best_answer():
    probe = {"prompts": 50, "best_answer_wins": 0.3, "mean_score": 2.0, "mean_best_score": 1.25}
    (verdict,) = probe_verdicts({"empty": probe, "prompt_repeated": probe | {"best_answer_wins": 0.9}})
    assert "The probe empty beats the best answer on 70% of 50 prompts (mean score 2.00 against 1.25)" in verdict
    assert probe_verdicts({"empty": probe | {"prompts": 0, "best_answer_wins": math.nan}}) == []
