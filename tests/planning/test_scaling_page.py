"""The tables of docs/scaling.md are those that the plan computes today."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("table", ["memory_table", "traffic_table", "scaling_table"])
def test_the_page_has_the_computed_table(table):
    computed = runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))[table]()
    assert "\n".join(computed) in (ROOT / "docs" / "scaling.md").read_text("utf-8"), "run benchmarks/scaling.py"
