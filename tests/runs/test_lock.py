"""One run a folder: who has it, and what is left when that process is gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_trl.runs import lock
from pangu_trl.runs.lock import LOCK_FILE, lock_folder, unlock_folder
from pangu_trl.runs.start import claim_output_dir

# Without the imports of the package: the module stands alone.
HOLDER = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
lock.lock_folder(sys.argv[2])
if os.fork() == 0:
    time.sleep(60)
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has `tmp_path / "run"`, and a forked worker that outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, lock.__file__, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_run_is_refused_with_host_and_process_until_the_first_is_gone(tmp_path, holder):
    folder = tmp_path / "run"
    for resume in (None, "true"):
        with pytest.raises(
            BlockingIOError, match=rf"run is in use by another run: process {holder.pid} on host \S+, since"
        ):
            claim_output_dir(str(folder), resume)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    # What the dead run left is no run, and its forked worker has no lock.
    assert [path.name for path in folder.iterdir()] == [LOCK_FILE]
    assert claim_output_dir(str(folder), None) is None
    unlock_folder(folder)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/no/such")):
        with pytest.raises(OSError, match=rf"output_dir {path} cannot be written"):
            lock_folder(path)


def test_a_file_that_was_taken_away_while_it_was_waited_for_is_no_lock(tmp_path, monkeypatch):
    taken = []
    flock = lock.fcntl.flock

    def slow(descriptor, operation):
        if not taken:
            # The run before gives the folder back between our `open` and our `flock`.
            (tmp_path / LOCK_FILE).unlink()
            taken.append(True)
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", slow)
    lock_folder(tmp_path)
    assert os.path.samestat(os.fstat(lock._held[tmp_path / LOCK_FILE]), os.stat(tmp_path / LOCK_FILE))
    unlock_folder(tmp_path)


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    lock_folder(tmp_path)
    assert "file system without locks (Function not implemented)" in caplog.text
    unlock_folder(tmp_path)
