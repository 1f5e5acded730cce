"""benchmarks/results.py: its arithmetic, and a few steps of every method on a tiny model."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pangu_trl.data import read_jsonl, write_jsonl

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "results.py"
TEMPLATE = (
    "{% for message in messages %}{{ '<s> ' + message['role'] + ' ' + message['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)


@pytest.fixture(scope="module", autouse=True)
def scripts_beside_each_other():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield


@pytest.fixture(scope="module")
def results(scripts_beside_each_other):
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def tables(scripts_beside_each_other):
    return runpy.run_path(str(SCRIPT.with_name("results_tables.py")))


def test_interval_is_students_over_the_seeds(tables):
    # Mean 2, deviation 1, t(2) = 4.303: half an interval of 4.303 / sqrt(3).
    assert tables["interval"]([1.0, 2.0, 3.0]) == pytest.approx({"mean": 2.0, "half_interval": 4.303 / math.sqrt(3)})
    assert tables["interval"]([2.0]) == {"mean": 2.0, "half_interval": None}
    assert tables["interval"]([1.0, None]) is None


def test_a_row_has_means_with_half_intervals_and_leaves_out_what_there_is_not(tables):
    # Half an interval of 0.01 * 4.303 / sqrt(3) = 0.0248; one seed has none.
    figures = {name: [None] for name in tables["FIGURES"]} | {"judge": [0.60, 0.61, 0.62], "kl": [9.96]}
    header, _, row = tables["write_table"]({"methods": {"ppo": figures}}).splitlines()
    assert row == "| ppo | 0.610 ± 0.025 |  | 10.0 |" + "  |" * 7
    assert header.count("|") == row.count("|")


def test_samples_have_the_answers_of_all_methods_below_each_prompt(tables):
    answers = {
        "start": [["Why?", "No\nidea.", 0.5], ["Who?", "Me.", 1.0]],
        "ppo": [["Why?", "Yes!", 0.75], ["Who?", "", 0]],
    }
    assert tables["write_samples"]({"first_answers": answers}).splitlines() == [
        "Why?",
        "  start 0.50  No idea.",
        "    ppo 0.75  Yes!",
        "",
        "Who?",
        "  start 1.00  Me.",
        "    ppo 0.00  ",
    ]


def test_page_has_the_table_and_the_samples_of_its_json(tables):
    docs = ROOT / "docs"
    table = json.loads((docs / "results.json").read_text("utf-8"))
    page = (docs / "results.md").read_text("utf-8")
    assert len(table["seeds"]) == 3 and list(table["methods"]) == ["start", "sft", "best_of_4", "dpo", "grpo", "ppo"]
    assert tables["write_table"](table) in page and tables["write_table"](table["tried"]) in page
    assert tables["write_samples"](table) in page


def test_distinct_counts_ngrams_over_all_answers(results):
    # a b, b a / a b: 2 of 3 pairs differ; 2 of 5 words.
    texts = [["a", "b", "a"], ["a", "b"]]
    assert results["distinct"](texts, 1) == pytest.approx(2 / 5)
    assert results["distinct"](texts, 2) == pytest.approx(2 / 3)
    assert results["distinct"]([["a"]], 2) == 0.0


def test_best_of_keeps_the_answer_with_the_highest_reward(results):
    record = {"prompt": "p", "responses": ["a", "b", "c"], "finished": [True, False, True], "r": [0.0, 2.0, 2.0]}
    assert results["best_answer"](record) == {"prompt": "p", "responses": ["b"], "finished": [False]}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What a real demo leaves, on a tiny model of random weights."""
    folder = tmp_path_factory.mktemp("demo")
    prompts = [
        record["prompt"]
        for split in ("train", "held-out")
        for record in read_jsonl(ROOT / "data_cards" / "samples" / f"everyday-prompts.{split}.jsonl")
    ]
    split = pre_tokenizers.Whitespace().pre_tokenize_str
    words = {word for prompt in prompts for word, _ in split(prompt[0]["content"])}
    names = ["<s>", "</s>", "<pad>", "<unk>", *sorted(words | {"user", "assistant"})]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    settings = {"answer_tokens": 6, "temperature": 0.8, "dtype": "float32"}
    (folder / "settings.json").write_text(json.dumps(settings))
    texts = [[{"role": "assistant", "content": text}] for text in ("It is fine .", "No", "Yes , it is", "Why ?")]
    ranked = [{"prompt": prompt, "responses": texts, "scores": [0.9, 0.1, 0.7, 0.2]} for prompt in prompts[:8]]
    write_jsonl(folder / "samples" / "ranked.train.jsonl", ranked)
    # The answers that every method is compared with: those to the four held-out prompts that `--quick` takes.
    compared = [{"prompt": prompt, "responses": texts, "finished": [True] * 4} for prompt in prompts[400:404]]
    write_jsonl(folder / "samples" / "start.held-out.jsonl", compared)
    words = ["--model_name_or_path", folder / "base", "--train_data", folder / "samples" / "ranked.train.jsonl"]
    words += ["--output_dir", folder / "reward", "--max_steps", "1", "--use_peft", "true", "--lora_r", "4"]
    words += ["--save_strategy", "no", "--report_to", "none", "--activation_checkpointing", "false"]
    call(ROOT / "recipes" / "reward.py", *words)
    return folder


def call(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_every_method_gets_a_row_and_a_second_call_measures_nothing_anew(demo, tmp_path):
    words = [SCRIPT, "--demo", demo, "--folder", tmp_path / "out", "--seeds", "0", "--quick"]
    printed = call(*words)
    table = json.loads((tmp_path / "out" / "results.json").read_text())
    methods = ["start", "sft", "best_of_4", "dpo", "grpo", "ppo"]
    assert list(table["methods"]) == methods
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert rows[-6:] == methods and len(re.findall(r"^ +(start|best_of_4|ppo) \d\.\d\d", printed, re.M)) == 3 * 4
    for method, figures in table["methods"].items():
        assert 0 <= figures["judge"][0] <= 1 and figures["perplexity"][0] > 1
        assert (figures["kl"] == [None]) == (figures["peak_gib"] == [None]) == (method in ("start", "best_of_4"))
    again = call(*words)
    assert again.count("is there already.") == 6 and "$" not in again
