"""What a demo does with its stages when it is interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
# A stage that takes a while to save after Ctrl-C; the other one never ends by itself.
SAVES = "time.sleep(0.5); note('saved'); sys.exit(130)"
HANGS = "note('deaf')"
STAGE = """#!{python}
import signal, sys, time
from pathlib import Path
def note(word):
    Path({folder!r}, word).touch()
def stop(*_):
    {reaction}
signal.signal(signal.SIGINT, stop)
note('started')
while True:
    time.sleep(0.01)
"""
DRIVER = """
import signal, sys
from pathlib import Path
# A shell has what it starts in the background ignore Ctrl-C, the tests too.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {demo!r})
import stage_launching
stage_launching.sys.executable = {stage!r}
try:
    stage_launching.launch_recipe("sft", Path("sft.yaml"), {{}})
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def driver(tmp_path, request):
    """A program that trains a stage which does on Ctrl-C what the parameter says, in a process group of its own."""
    stage = tmp_path / "stage"
    stage.write_text(STAGE.format(python=sys.executable, folder=str(tmp_path), reaction=request.param))
    stage.chmod(0o755)
    code = DRIVER.format(demo=str(DEMO), stage=str(stage))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < deadline, path.name
        time.sleep(0.01)


@pytest.mark.parametrize("driver", [SAVES], indirect=True)
def test_an_interrupted_stage_is_waited_for_until_it_has_saved(driver, tmp_path):
    _wait_for(tmp_path / "started")
    os.killpg(driver.pid, signal.SIGINT)
    printed, _ = driver.communicate(timeout=100)
    assert (tmp_path / "saved").exists()
    assert printed.splitlines() == ["$ pangu-trl sft --config sft.yaml --accelerate cpu", "interrupted"]


@pytest.mark.parametrize("driver", [HANGS], indirect=True)
def test_a_second_interrupt_ends_a_stage_at_once(driver, tmp_path):
    _wait_for(tmp_path / "started")
    os.killpg(driver.pid, signal.SIGINT)
    _wait_for(tmp_path / "deaf")
    # The waiting itself takes what comes within a quarter of a second for the same Ctrl-C.
    deadline = time.monotonic() + 100
    while driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
        os.killpg(driver.pid, signal.SIGINT)
    printed, _ = driver.communicate(timeout=100)
    assert printed.endswith("interrupted\n")
