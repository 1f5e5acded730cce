"""Probes and report of a saved reward model, and the commands around one."""

import json
import statistics

import pytest
import torch

from pangu_trl.cli import main
from pangu_trl.data.jsonl import read_jsonl, write_jsonl
from pangu_trl.models.reward_model import score_responses
from pangu_trl.reward import probes, report
from pangu_trl.reward.report import Evaluation, accuracy_by_score_gap

RANKINGS = [
    {"prompt": "总体来说，", "responses": ["还不错。喜欢。", "差！", "一般。"], "scores": [3.0, 1.0, 2.0]},
    {"prompt": "房间", "responses": ["很脏。", "干净，安静。"], "scores": [0.0, 4.0]},
    {"prompt": "服务", "responses": ["热情。", "冷淡。"], "scores": [1.0, 0.0]},
]


def test_probes_are_the_answers_that_their_names_say():
    prompts = [ranking["prompt"] for ranking in RANKINGS]
    best = ["还不错。喜欢。", "干净，安静。", "热情。"]
    made = {name: [make(row, prompts, best) for row in range(3)] for name, make in probes.PROBES.items()}
    assert made["empty"] == ["", "", ""]
    assert made["prompt_repeated"] == prompts
    assert made["answer_to_another_prompt"] == ["干净，安静。", "热情。", "还不错。喜欢。"]
    assert made["repeated_sentence"] == ["还不错。还不错。", "干净，安静。干净，安静。", "热情。热情。"]
    chat = [[{"role": "user", "content": prompt}] for prompt in prompts]
    answers = [[{"role": "assistant", "content": text}] for text in best]
    assert probes.PROBES["prompt_repeated"](1, chat, answers) == [{"role": "assistant", "content": "房间"}]


def test_a_prompt_without_another_one_has_no_answer_to_another_prompt():
    assert probes.PROBES["answer_to_another_prompt"](0, ["好吗？", "好吗？"], ["好。", "差。"]) is None


def test_probe_metrics_compare_each_probe_with_the_best_answer(reward_model, tokenizer):
    metrics = probes.probe_metrics(reward_model, tokenizer, RANKINGS, batch_size=4, max_length=128)
    prompts = [ranking["prompt"] for ranking in RANKINGS]
    best = score_responses(reward_model, tokenizer, prompts, ["还不错。喜欢。", "干净，安静。", "热情。"], 1)
    repeated = score_responses(reward_model, tokenizer, prompts, prompts, 1)
    assert metrics["prompt_repeated"]["best_answer_wins"] == sum(b > r for b, r in zip(best, repeated, strict=True)) / 3
    assert metrics["prompt_repeated"]["mean_score"] == pytest.approx(sum(repeated) / 3, abs=1e-5)
    assert metrics["empty"]["prompts"] == 3


def test_probes_that_the_model_has_no_positions_for_are_left_out_and_counted(reward_model, tokenizer):
    longest = len(tokenizer("总体来说，")["input_ids"]) + 1
    metrics = probes.probe_metrics(reward_model, tokenizer, RANKINGS, batch_size=4, max_length=longest)
    assert metrics["empty"]["prompts"] == 3
    assert metrics["repeated_sentence"]["prompts"] < 3


def test_accuracy_by_gap_groups_pairs_of_similar_gaps():
    # Gaps 1 (right), 1 (wrong), 5 (right).
    rewards, labels = (
        torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [5.0, 0.0]]),
    )
    evaluation = Evaluation(rewards.double(), labels.double(), torch.ones(3, 2, dtype=torch.bool), 0.0, {}, {})
    small, large = accuracy_by_score_gap(evaluation)
    assert (small.gap, small.accuracy, small.num_pairs) == (1.0, 0.5, 2)
    assert (large.gap, large.accuracy, large.num_pairs) == (5.0, 1.0, 1)
    # With three prompts some draws hold none of these pairs.
    assert small.interval is None and large.interval is None


def test_accuracy_by_gap_has_intervals_over_prompts():
    """Forty prompts with one pair each, thirty of them right: the shares of the draws are binomial(40, 0.75) / 40."""
    rewards = torch.tensor([[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 10).double()
    labels = torch.tensor([[1.0, 0.0]] * 40).double()
    evaluation = Evaluation(rewards, labels, torch.ones(40, 2, dtype=torch.bool), 0.0, {}, {})
    (group,) = accuracy_by_score_gap(evaluation)
    # Standard deviation 0.0685; 0.75 -+ 1.96 of them, to a step of 1 / 40 and the noise of 2000 draws.
    assert group.interval == pytest.approx((0.616, 0.884), abs=0.03)


@pytest.fixture
def saved_model(reward_model, tokenizer, tmp_path) -> str:
    reward_model.save_pretrained(tmp_path / "reward_model")
    tokenizer.save_pretrained(tmp_path / "reward_model")
    return str(tmp_path / "reward_model")


def test_evaluate_reward_writes_figures_and_a_page_with_charts(saved_model, reward_model, tokenizer, tmp_path):
    write_jsonl(tmp_path / "rankings.jsonl", RANKINGS)
    arguments = ["evaluate-reward", saved_model, "--data", str(tmp_path / "rankings.jsonl")]
    assert main([*arguments, "--output", str(tmp_path / "report")]) == 0
    content = json.loads((tmp_path / "report" / "metrics.json").read_text("utf-8"))
    assert content["model"] == saved_model
    assert content["metrics"]["num_pairs"] == 5
    right, rewards, lengths = 0, [], []
    for ranking in RANKINGS:
        scores = score_responses(
            reward_model, tokenizer, [ranking["prompt"]] * len(ranking["scores"]), ranking["responses"], 1
        )
        rewards += scores
        # With the end of sequence, which changes no correlation.
        lengths += [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ranking["responses"]]
        labelled = list(zip(ranking["scores"], scores, strict=True))
        right += sum(a[0] > b[0] and a[1] > b[1] for a in labelled for b in labelled)
    assert content["metrics"]["pair_accuracy"] == pytest.approx(right / 5)
    assert content["metrics"]["length_correlation"] == pytest.approx(statistics.correlation(rewards, lengths), abs=1e-6)
    assert content["probes"].keys() == probes.PROBES.keys()
    page = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert page.count("<svg") == 3 and "src=" not in page and "href=" not in page
    low, high = content["intervals"]["pair_accuracy"]
    assert f'<td class="number">{right / 5:.4g}</td><td class="number">{low:.4g} – {high:.4g}</td>' in page
    for probe, figures in content["probes"].items():
        assert f'<td class="text">{probe}</td><td class="number">{figures["prompts"]}</td>' in page
    # The same in Chinese, over the old one when told to.
    assert main([*arguments, "--output", str(tmp_path / "report"), "--lang", "zh", "--overwrite"]) == 0
    assert "成对准确率" in (tmp_path / "report" / "report.html").read_text("utf-8")
    # A second run does not overwrite the first unless it is told to.
    assert main([*arguments, "--output", str(tmp_path / "report")]) == 2


def test_evaluate_reward_without_a_pair_that_counts_writes_nothing(saved_model, tmp_path, capsys):
    write_jsonl(tmp_path / "rankings.jsonl", RANKINGS)
    data, output = str(tmp_path / "rankings.jsonl"), tmp_path / "report"
    words = ["evaluate-reward", saved_model, "--data", data, "--output", str(output)]
    assert main([*words, "--min-score-gap", "1e9"]) == 2
    assert "no two answers to a prompt have scores that differ by --min-score-gap 1e+09" in capsys.readouterr().err
    # Before the model is even looked for.
    write_jsonl(tmp_path / "ties.jsonl", [ranking | {"scores": [1.0] * len(ranking["scores"])} for ranking in RANKINGS])
    ties = ["--data", str(tmp_path / "ties.jsonl"), "--output", str(output)]
    assert main(["evaluate-reward", str(tmp_path / "absent"), *ties]) == 2
    assert "ties.jsonl[train]: no two answers to a prompt have different scores" in capsys.readouterr().err
    assert not output.exists()
    assert main([*words, "--min-score-gap", "0.5"]) == 0
    assert "min_score_gap: 0.5" in (output / "report.html").read_text("utf-8")


def test_an_answer_that_cannot_be_scored_is_named_by_line(saved_model, tmp_path, capsys):
    long = "很脏。" * 100
    lines = [RANKINGS[0], RANKINGS[1] | {"responses": ["很脏。", long]}, {"prompt": "房间", "completion": long}]
    for name, records in (("rankings", lines[:2]), ("sft", [lines[2]])):
        text = "\n".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text("\n" + text, "utf-8")
    rankings, sft, output = (str(tmp_path / name) for name in ("rankings.jsonl", "sft.jsonl", "output"))
    assert main(["evaluate-reward", saved_model, "--data", rankings, "--output", output]) == 2
    assert f"{rankings}:4: 'responses[1]': prompt and answer together have" in capsys.readouterr().err
    assert main(["score-sft", sft, "--judge", saved_model, "--output", output]) == 2
    assert f"{sft}:2: prompt and answer together have" in capsys.readouterr().err


def test_figures_that_do_not_exist_are_null_in_json(tmp_path):
    rewards, labels = torch.tensor([[2.0, 1.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    evaluation = Evaluation(rewards, labels, torch.ones(1, 2, dtype=torch.bool), 0.0, {"tau": float("nan")}, {})
    report.write_report(tmp_path / "report", evaluation, {"model": "m"})
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["metrics"] == {"tau": None}


def test_score_sft_adds_the_models_score_to_every_demonstration(
    saved_model, reward_model, tokenizer, reviews, tmp_path
):
    write_jsonl(tmp_path / "sft.jsonl", [review | {"id": row} for row, review in enumerate(reviews)])
    arguments = ["score-sft", str(tmp_path / "sft.jsonl"), "--judge", saved_model]
    assert main([*arguments, "--output", str(tmp_path / "scored.jsonl")]) == 0
    scored = read_jsonl(tmp_path / "scored.jsonl")
    expected = score_responses(
        reward_model, tokenizer, [r["prompt"] for r in reviews], [r["completion"] for r in reviews], 1
    )
    assert [record["score"] for record in scored] == pytest.approx(expected, abs=1e-5)
    assert [(r["prompt"], r["completion"], r["id"]) for r in scored] == [
        (r["prompt"], r["completion"], row) for row, r in enumerate(reviews)
    ]
    assert main([*arguments, "--score-column", "id", "--output", str(tmp_path / "other.jsonl")]) == 2


def test_best_of_n_keeps_the_best_answer_that_is_not_empty_and_drops_columns_of_the_others(tmp_path, capsys):
    records = [
        {
            "prompt": "甲",
            "responses": ["一", "二", " "],
            "scores": [1.0, 2.0, 9.0],
            "finished": [True, True, True],
            "id": 7,
            "completion": "of the demonstration that the prompt came from",
        },
        {"prompt": "乙", "responses": ["三", "四"], "scores": [5.0, 5.0], "finished": [True, False], "id": 8},
        {"prompt": "丙", "responses": ["", ""], "scores": [0.0, 1.0], "finished": [True, True], "id": 9},
    ]
    write_jsonl(tmp_path / "answers.jsonl", records)
    assert main(["best-of-n", str(tmp_path / "answers.jsonl"), "--output", str(tmp_path / "best.jsonl")]) == 0
    assert read_jsonl(tmp_path / "best.jsonl") == [
        {"prompt": "甲", "id": 7, "completion": "二", "score": 2.0},
        {"prompt": "乙", "id": 8, "completion": "三", "score": 5.0},
    ]
    said = capsys.readouterr().err
    assert "left out 1 prompts all of whose answers are empty" in said
    assert "answers.jsonl give way to the best answer and its score: completion\n" in said


def test_best_of_n_takes_a_judge_and_needs_one_where_there_are_no_scores(
    saved_model, reward_model, tokenizer, tmp_path
):
    answers = ["还不错。", "非常差！", "一般。"]
    write_jsonl(tmp_path / "answers.jsonl", [{"prompt": "总体来说，", "responses": answers}])
    arguments = ["best-of-n", str(tmp_path / "answers.jsonl"), "--output", str(tmp_path / "best.jsonl")]
    assert main(arguments) == 2
    assert main([*arguments, "--judge", saved_model]) == 0
    scores = score_responses(reward_model, tokenizer, ["总体来说，"] * 3, answers, 1)
    (best,) = read_jsonl(tmp_path / "best.jsonl")
    assert best["completion"] == answers[scores.index(max(scores))]
    assert best["score"] == pytest.approx(max(scores), abs=1e-5)
