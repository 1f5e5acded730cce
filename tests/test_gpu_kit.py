"""benchmarks/gpu.py on a CPU with tiny shapes: every case runs, or is skipped for a reason that holds here."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """What one call printed, and the rows that it wrote."""
    output = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--sizes", "tiny", "--output", output]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-3000:]
    return finished.stdout, {(row["part"], row["case"]): row for row in json.loads(output.read_text())["rows"]}


# Twenty models one after the other.
@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="says what a CPU gives")
def test_every_part_gives_figures_or_says_why_not(table):
    printed, rows = table
    skipped = {case: row["skipped"] for case, row in rows.items() if "skipped" in row}
    for family in ("GPTPangu", "Llama"):
        assert rows["attention", f"{family} tiny sdpa"]["tokens/s"] > 0
        assert skipped.pop(("attention", f"{family} tiny flex_attention")) == (
            "flex attention has no gradients on a CPU"
        )
        skipped.pop(("attention", f"{family} tiny flash_attention_2"))
        assert skipped.pop(("qlora", f"{family} tiny 4 bits")) == "there is no accelerator"
        assert 0 < rows["equality", f"{family} tiny bfloat16"]["off float32"] < 2**-5
        losses = [rows["reward", f"{family} tiny {variant}"]["first loss"] for variant in ("shared", "plain", "trl")]
        assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-3)
        for layout in ("none", "value", "all"):
            row = rows["ppo", f"{family} tiny share_backbone {layout}"]
            assert row["generation s"] > 0 and row["scoring s"] > 0 and row["learning s"] > 0 and row["plan GiB"] > 0
    assert not skipped
    # The table, and nothing of what the trainers log.
    body = printed.splitlines()[4:]
    assert len(body) == len(rows) == 22 and all(line.startswith("| ") for line in body)


@pytest.fixture(scope="module")
def kit():
    sys.path.insert(0, str(BENCHMARKS))
    yield runpy.run_path(str(BENCHMARKS / "gpu_bench.py"))
    sys.path.remove(str(BENCHMARKS))


def test_a_case_that_fails_is_named_and_the_next_one_runs(kit, capsys):
    bench = kit["Bench"](deadline=time.monotonic() + 60)

    def fail():
        print("what a trainer logs")
        raise RuntimeError("no such kernel\nand more")

    bench.case("ppo", "first", fail)
    bench.case("ppo", "second", lambda: {"s": 0.125})
    assert [row.get("failed") for row in bench.rows] == ["RuntimeError: no such kernel", None]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[3].strip() for line in lines] == ["failed RuntimeError: no such kernel", "s 0.125"]


def test_no_case_starts_when_time_is_over(kit):
    bench = kit["Bench"](deadline=time.monotonic() - 1)
    bench.case("ppo", "late", lambda: pytest.fail("it started"))
    assert bench.rows == [{"part": "ppo", "case": "late", "skipped": "no time left"}]
