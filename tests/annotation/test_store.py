"""What is kept of decisions, by whom it may be written, and what a kill leaves of it."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

from pangu_trl.annotation import store as store_module
from pangu_trl.annotation.decisions import Decision
from pangu_trl.annotation.store import AlreadyDecided, Store, read_decisions, store_path

RANKED = Decision(
    prompt="a1",
    line=7,
    annotator="安娜",
    ranks=(2, None, 1, 2),
    order=(3, 1, 0, 2),
    seconds=12.5,
    decided_at="2026-01-02T03:04:05Z",
    file_digest="f0",
    repeat=1,
    comment="好 \x1b[31m'); DROP TABLE decisions; --",
    attributes={"helpful": (1.0, None, 5.0, 2.5)},
)


@pytest.fixture
def path(tmp_path):
    return store_path(tmp_path / "answers.jsonl")


def test_the_file_stands_beside_the_answers(tmp_path):
    assert store_path(tmp_path / "a.b.jsonl") == tmp_path / "a.b.annotations.sqlite"
    assert store_path("answers").name == "answers.annotations.sqlite"


def test_a_decision_comes_back_as_it_was_from_another_opening(path):
    skipped = replace(RANKED, prompt="a2", ranks=(), order=(1, 0), comment="", attributes={}, repeat=0)
    with Store(path) as store:
        assert [store.add(RANKED, "one"), store.add(skipped, "two")] == [1, 2]
        # While the server has it, others read.
        assert read_decisions(path) == [RANKED, skipped]
    assert read_decisions(path) == [RANKED, skipped]
    with Store(path) as store:
        assert [kept.number for kept in store.decisions("安娜")] == [1, 2]
        assert store.decisions("bob") == []


def test_a_request_that_is_sent_again_is_kept_once(path):
    with Store(path) as store:
        first = store.add(RANKED, "word")
        assert store.add(replace(RANKED, seconds=99.0), "word") == first
        with pytest.raises(ValueError, match="another annotator"):
            store.add(replace(RANKED, annotator="bob"), "word")
        # Another request on the same prompt is no repetition, and replaces nothing.
        with pytest.raises(AlreadyDecided):
            store.add(RANKED, "other word")
        assert store.add(replace(RANKED, repeat=0), "third word") == first + 1
        assert store.add(replace(RANKED, annotator="bob"), "fourth word") == first + 2
    assert read_decisions(path)[0] == RANKED


def test_what_is_undone_counts_no_longer_and_stays_in_the_file(path, monkeypatch):
    times = iter(["2026-01-02T00:00:00Z", "2026-01-02T00:00:01Z"])
    monkeypatch.setattr(store_module, "now", lambda: next(times))
    with Store(path) as store:
        number = store.add(RANKED, "one")
        with pytest.raises(LookupError):
            store.undo(number, "bob")
        assert store.undo(number, "安娜") == store.undo(number, "安娜") == RANKED
        assert store.decisions() == []
        again = replace(RANKED, ranks=(1, 1, 1, 1))
        assert store.add(again, "two") == number + 1
    assert read_decisions(path) == [again]
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT ranks, undone_at FROM decisions ORDER BY number").fetchall()
    # The time of the first time that it was said.
    assert rows == [("[2, null, 1, 2]", "2026-01-02T00:00:00Z"), ("[1, 1, 1, 1]", None)]


def test_the_seed_is_kept_and_no_other_is_taken(path):
    with Store(path) as store:
        drawn = store.seed
    with Store(path) as store:
        assert store.seed == drawn
    with Store(path, seed=drawn) as store:
        assert store.seed == drawn
    with pytest.raises(ValueError, match=f"begun with seed {drawn}; got {drawn + 1}"):
        Store(path, seed=drawn + 1)
    # The refusal has given the store back.
    Store(path).close()


def test_another_version_of_the_answers_is_told(path):
    with Store(path) as store:
        assert store.note_file("f0", "answers.jsonl", 5) is None
        assert store.note_file("f0", "answers.jsonl", 5) is None
        assert store.note_file("f1", "answers.jsonl", 6) == "f0"
        assert store.note_file("f0", "answers.jsonl", 5) == "f1"


def test_settings_and_sessions_are_kept(path):
    with Store(path) as store:
        assert store.setting("order") is None
        store.set("order", {"overlap": 0.1})
        store.add_session("d1", "ann")
    with Store(path) as store:
        assert store.setting("order") == {"overlap": 0.1}
        assert store.sessions("2020-01-01T00:00:00Z") == {"d1": "ann"}
        assert store.sessions("2999-01-01T00:00:00Z") == {}


def test_every_commit_is_synced(path):
    with Store(path) as store:
        (mode,) = store._connection.execute("PRAGMA journal_mode").fetchone()
        (synchronous,) = store._connection.execute("PRAGMA synchronous").fetchone()
    # 2 is FULL: https://sqlite.org/pragma.html#pragma_synchronous
    assert (mode, synchronous) == ("wal", 2)


def test_files_that_are_no_store_are_refused_and_left_alone(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_decisions(path)
    path.write_text("this is a text, and long enough for the header of a database of SQLite, which has 100 bytes. " * 9)
    content = path.read_bytes()
    for open_it in (read_decisions, Store):
        with pytest.raises(ValueError, match="must be a SQLite file that `pangu-trl annotate` made"):
            open_it(path)
    assert path.read_bytes() == content
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
    with pytest.raises(ValueError, match="of another program"):
        Store(other)
    with Store(tmp_path / "newer.sqlite") as store:
        store._connection.execute("PRAGMA user_version = 2")
    with pytest.raises(ValueError, match="has version 2 of the format"):
        read_decisions(tmp_path / "newer.sqlite")


def test_names_with_signs_of_addresses_are_names(tmp_path):
    path = tmp_path / "a?b#c%20d 好.sqlite"
    with Store(path) as store:
        store.add(RANKED, "one")
    assert path.exists() and read_decisions(path) == [RANKED]


HOLDER = """
import sys
from dataclasses import replace
from pangu_trl.annotation import store as store_module
from pangu_trl.annotation.decisions import Decision
from pangu_trl.annotation.store import Store
store = Store(sys.argv[1])
decision = Decision("p", 1, "ann", (1, 2), (0, 1), 1.0, "2026-01-02T03:04:05Z", "f0")
for number in range(100_000):
    store.add(replace(decision, prompt=f"p{number}"), f"r{number}")
    print(number, flush=True)
"""


def test_a_killed_process_leaves_what_it_acknowledged_and_no_lock(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        acknowledged = [int(process.stdout.readline()) for _ in range(20)]
        with pytest.raises(
            BlockingIOError, match=rf"{path.name} is in use by another server: process {process.pid} on host \S+, since"
        ):
            Store(path)
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    finally:
        process.kill()
        process.wait()
    with Store(path) as store:
        prompts = [kept.decision.prompt for kept in store.decisions()]
    assert prompts[: len(acknowledged)] == [f"p{number}" for number in acknowledged]
    # At most the one that was on its way.
    assert len(prompts) <= len(acknowledged) + 1


def test_a_full_disk_keeps_nothing_and_the_next_call_works(path):
    with Store(path) as store:
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.add(replace(RANKED, comment="x" * 100_000), "one")
        store._connection.execute("PRAGMA max_page_count = 100000")
        assert store.decisions() == []
        store.add(RANKED, "one")
    assert read_decisions(path) == [RANKED]
