"""The process of a recipe: the line of an error, the end of its launcher, the way out of several ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pangu_trl.runs import hang_guard, process
from pangu_trl.runs.hang_guard import phase
from pangu_trl.runs.process import launch_command, name_stale_locks, run_recipe

RUN = """
import os, sys, time
from pangu_trl.runs.process import run_recipe
{body}
run_recipe(main)
"""
LAUNCHER = """
import os, subprocess, sys
environment = os.environ | {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
subprocess.run([sys.executable, "-c", sys.argv[1]], env=environment)
"""
# Says where it is, then waits as a long step does.
WAITS = """
def main():
    with open(sys.argv[-1] if len(sys.argv) > 1 else os.environ["TOLD"], "w") as told:
        told.write(str(os.getpid()))
    time.sleep(300)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_a_process_ends_when_its_launcher_is_killed(tmp_path):
    told = tmp_path / "pid"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RUN.format(body=WAITS)],
        env=os.environ | {"TOLD": str(told), process.SECONDS_TO_STOP: "5"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    pid = int(told.read_text())
    assert alive(pid)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)
    assert "the launcher has ended; saving and stopping within 5 s." in launcher.stderr.read()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """As where no launcher is."""
    for name in ("WORLD_SIZE", "RANK", process.DEBUG, *process.LAUNCHED[0], *process.LAUNCHED[1]):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", "--output_dir", "my run", "--resume_from_checkpoint", "true"])


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("a\n  b"), 2, "sft.py: error: a b\n"),
        (OSError(28, "the disk is full"), 2, "sft.py: error: the disk is full\n"),
        (FileNotFoundError(2, "No such file", "a.txt"), 2, "sft.py: error: [Errno 2] No such file: 'a.txt'\n"),
        (KeyboardInterrupt(), 130, "sft.py: interrupted\n"),
        (SystemExit("told"), 1, "told\n"),
        (SystemExit(143), 143, ""),
        (SystemExit(), 0, ""),
        (None, 0, ""),
    ],
)
def test_an_error_is_one_line_and_a_status(error, code, said, capsys):
    def main():
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as end:
        run_recipe(main)
    assert (end.value.code, capsys.readouterr().err) == (code, said)


def test_what_no_user_can_mend_and_what_is_debugged_shows_its_traceback(monkeypatch):
    def fail(error):
        raise error

    with pytest.raises(ZeroDivisionError):
        run_recipe(lambda: fail(ZeroDivisionError()))
    monkeypatch.setenv(process.DEBUG, "1")
    with pytest.raises(ValueError, match="why"):
        run_recipe(lambda: fail(ValueError("why")))


def test_of_several_ranks_each_ends_with_its_own_code_after_the_exit_functions(monkeypatch, capsys):
    ends = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(process.atexit, "_run_exitfuncs", lambda: ends.append("functions"))
    monkeypatch.setattr(process.os, "_exit", ends.append)
    with pytest.raises(SystemExit):
        run_recipe(lambda: None)
    assert ends == ["functions", 0]

    def main():
        raise ValueError("wrong here")

    with pytest.raises(SystemExit):
        run_recipe(main)
    assert ends == ["functions", 0, "functions", 2]
    assert capsys.readouterr().err == "sft.py, rank 1: error: wrong here\n"

    monkeypatch.setattr(hang_guard, "_step", 7)

    @phase("scoring")
    def fail():
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(SystemExit):
        run_recipe(fail)
    assert ends[4:] == ["functions", 1]
    assert capsys.readouterr().err.endswith(
        "RuntimeError: Connection closed by peer\nrank 1 of 2 was in phase scoring of step 7\n"
    )


def test_the_command_to_go_on_with_says_resume_once():
    assert launch_command() == f"{Path(sys.executable).name} recipes/sft.py --output_dir 'my run'"


def test_a_lock_on_which_deepspeed_would_wait_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    name_stale_locks()
    assert not caplog.records
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    name_stale_locks()
    assert str(lock) in caplog.text and "delete it" in caplog.text
