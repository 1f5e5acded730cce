"""The end of a rank whose communication still runs: ours is a good one, where the interpreter's own aborts."""

import subprocess
import sys
from pathlib import Path

import pytest

ENDINGS = Path(__file__).parent / "endings.py"


@pytest.mark.launches
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks after torch is imported")
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python hangs such threads instead of ending them")
def test_a_thread_that_is_late_aborts_the_interpreters_end_and_not_ours(tmp_path):
    statuses = {}
    for how in ("plain", "ours"):
        (tmp_path / how).mkdir()
        command = [sys.executable, ENDINGS, how, tmp_path / how]
        statuses[how] = subprocess.run(command, capture_output=True, text=True, timeout=300)
    # SIGABRT: the thread wanted the interpreter's lock, was ended for that, and C++ took this for an uncaught error.
    assert statuses["plain"].stdout.split() == ["-6"], statuses["plain"].stderr
    assert "terminate called without an active exception" in statuses["plain"].stderr
    assert statuses["ours"].stdout.split() == ["0"], statuses["ours"].stderr
