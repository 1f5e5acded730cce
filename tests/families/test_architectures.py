"""Thirty architectures and more, in PPO, in reward training, with LoRA, on disk. Run by `make test-families`."""

import re

import pytest

from .architectures import ARCHITECTURES, Architecture
from .probes import NOT_TRIED, make_config, make_policy, run_encoder_reward, run_kwise, run_lora, run_rollout
from .table import END, PAGE, START, table_line, write_table

# Of what once went wrong one each; these run with all other tests too.
ALWAYS = {"OpenAIGPT", "Mixtral", "Gemma3", "Bert"}


def with_mark(architecture: Architecture):
    marks = [] if architecture.name in ALWAYS else [pytest.mark.families]
    return pytest.param(architecture, id=architecture.name, marks=marks)


@pytest.fixture(scope="session")
def rows():
    """Cells of the table, by architecture."""
    return {}


@pytest.mark.parametrize("architecture", map(with_mark, ARCHITECTURES))
def test_an_architecture_is_right(architecture: Architecture, rows, tokenizer, prompts, rankings, tmp_path):
    row = {}
    if architecture.is_encoder:
        policy = make_policy(make_config(next(a for a in ARCHITECTURES if a.name == "Llama"), tokenizer))
        row["ppo"] = run_encoder_reward(architecture, policy, tokenizer, prompts, tmp_path)
    else:
        row["ppo"] = run_rollout(architecture, tokenizer, prompts, tmp_path)
    row["kwise"] = run_kwise(architecture, tokenizer, rankings, tmp_path)
    row["lora"] = run_lora(architecture, tokenizer)
    reached, _, missed = row["lora"].partition("; not ")
    assert (
        reached == NOT_TRIED
        or "attention" in reached
        and ("MLP" in reached or "experts" in missed or "state space" in architecture.trait)
    )
    rows[architecture.name] = row


def test_the_page_says_what_was_found(request, rows):
    """Behind all others: writes the page of a whole run, which no family leaves by failing; else it compares."""
    ran = {item.callspec.id for item in request.session.items if item.originalname == "test_an_architecture_is_right"}
    assert rows.keys() == ran, "without a row, since it failed"
    if len(rows) == len(ARCHITECTURES):
        write_table(PAGE, ARCHITECTURES, rows)
        return
    listed = PAGE.read_text("utf-8").splitlines()
    for architecture in ARCHITECTURES:
        if architecture.name in rows:
            assert table_line(architecture, rows[architecture.name]) in listed


def test_the_page_lists_the_architectures_that_are_tested():
    table = PAGE.read_text("utf-8").partition(START)[2].partition(END)[0]
    listed = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)[1:]
    assert listed == [architecture.name for architecture in ARCHITECTURES]
    assert len(set(listed)) >= 30
