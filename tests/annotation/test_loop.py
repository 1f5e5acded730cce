"""Two rounds of the loop by its commands: sample, rank in a browser, agreement, reward, evaluate, PPO, sample again."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_trl.annotation.store import read_decisions, store_path
from pangu_trl.data.jsonl import read_jsonl, write_jsonl

pytest.importorskip("starlette", reason="the page is an extra: pip install 'pangu_trl[annotate]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: install the distribution's package to run these"),
]

COMMAND = [sys.executable, "-c", "import sys; from pangu_trl.cli import main; sys.exit(main())"]
NUM_ANSWERS = 3


def command(folder, *words):
    """Runs `pangu-trl` in a folder to a good end, and returns what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*COMMAND, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert found.returncode == 0, f"{words}: {found.stdout[-2000:]}{found.stderr[-4000:]}"
    return found.stdout


def wanted_ranks(texts):
    """What the scripted annotator thinks: the longer the better, equally long ones tied, empty ones invalid.

    Counts Chinese characters, which the page shows as they are: of others it may make a list or name them.
    """
    lengths = [len(re.findall(r"[\u4e00-\u9fff]", text)) for text in texts]
    places = sorted({length for text, length in zip(texts, lengths, strict=True) if text.strip()}, reverse=True)
    return tuple(
        places.index(length) + 1 if text.strip() else None for text, length in zip(texts, lengths, strict=True)
    )


def rank_by_keys(page):
    """Ranks what the page shows by what can be read there, and goes on."""
    page.evaluate("document.activeElement.blur()")
    texts = page.locator(".card .card-text").all_text_contents()
    ranks = wanted_ranks(texts)
    for number, rank in enumerate(ranks, 1):
        if rank is None:
            page.keyboard.press("0")
            page.keyboard.press(str(number))
    for rank in sorted({rank for rank in ranks if rank is not None}):
        for index, number in enumerate([number for number, other in enumerate(ranks, 1) if other == rank]):
            if index:
                page.keyboard.press("=")
            page.keyboard.press(str(number))
    done = page.locator("#done")
    before = page.locator("#prompt-text").text_content()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => !document.body.classList.contains('is-busy') && "
        "(document.getElementById('prompt-text').textContent !== before || !document.getElementById('done').hidden)",
        arg=before,
    )
    return not done.is_visible()


def annotate(folder, answers, annotators, num_prompts):
    """Serves the page until everybody has ranked what they get; the second annotator gets what is shared."""
    words = [word for name in annotators for word in ("--annotator", name)]
    server = subprocess.Popen(
        [*COMMAND, "annotate", answers, "--port", "0", "--overlap", "0.5", "--seed", "1", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        links = [next(word for word in server.stdout.readline().split() if "://" in word) for _ in annotators]
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for link in links:
                page = browser.new_context(locale="en-US").new_page()
                page.goto(link)
                page.wait_for_selector(".card")
                for _ in range(2 * num_prompts):
                    if not rank_by_keys(page):
                        break
                else:
                    raise AssertionError("the page deals more prompts than there are")
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


@pytest.fixture
def folder(tmp_path, policy, tokenizer, reviews):
    """A model to begin with, and prompts for each stage."""
    policy.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": review["prompt"]} for review in reviews])
    return tmp_path


def test_two_rounds(folder, reviews):
    recipes = Path(__file__).parents[2] / "recipes" / "tiny"
    model, num_prompts = "model", len(reviews)
    for number in (1, 2):
        answers, rankings, reward, ppo = (f"{name}-{number}" for name in ("answers", "rankings", "reward", "ppo"))
        command(
            folder,
            "sample",
            "--model",
            model,
            "--prompts",
            "prompts.jsonl",
            "--num-answers",
            NUM_ANSWERS,
            "--max-new-tokens",
            12,
            "--seed",
            number,
            "--output",
            f"{answers}.jsonl",
        )
        annotate(folder, f"{answers}.jsonl", ["ann", "bob"], num_prompts)

        # What was decided is what the scripted annotator thinks of the texts, whatever order the page showed.
        records = read_jsonl(folder / f"{answers}.jsonl")
        decisions = read_decisions(store_path(folder / f"{answers}.jsonl"))
        assert len({decision.prompt for decision in decisions}) == num_prompts
        for decision in decisions:
            assert decision.ranks == wanted_ranks(records[decision.line - 1]["responses"])
        both = {one.line for one in decisions if one.annotator == "ann"} & {
            one.line for one in decisions if one.annotator == "bob"
        }
        assert len(both) == num_prompts // 2

        # Two who think the same agree.
        store = f"{answers}.annotations.sqlite"
        agreement = json.loads(command(folder, "agreement", store, "--json", "--page", f"agreement-{number}.html"))
        assert agreement["shared_prompts"] == num_prompts // 2
        assert agreement["together"]["alpha"] == agreement["together"]["pair_agreement"] == 1
        assert agreement["disputes"] == []

        command(folder, "export-annotations", f"{answers}.jsonl", "--output", f"{rankings}.jsonl", "--soft-labels")
        command(
            folder,
            "reward",
            "--accelerate",
            "cpu",
            "--config",
            recipes / "reward" / "full.yaml",
            "--model_name_or_path",
            model,
            "--train_data",
            f"{rankings}.md",
            "--output_dir",
            reward,
            "--max_steps",
            4,
        )
        figures = json.loads(
            command(
                folder, "evaluate-reward", reward, "--data", f"{rankings}.md", "--output", f"{reward}-report", "--json"
            )
        )
        assert 0 <= figures["pair_accuracy"] <= 1
        command(
            folder,
            "ppo",
            "--accelerate",
            "cpu",
            "--config",
            recipes / "ppo" / "full.yaml",
            "--model_name_or_path",
            model,
            "--train_data",
            "prompts.jsonl",
            "--reward_model",
            reward,
            "--output_dir",
            ppo,
            "--max_steps",
            2,
            "--per_device_train_batch_size",
            4,
            "--max_completion_length",
            8,
        )
        model = ppo
    assert read_jsonl(folder / "answers-1.jsonl") != read_jsonl(folder / "answers-2.jsonl")
