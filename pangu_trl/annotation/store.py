"""Where decisions are kept: a SQLite file beside the answers, on disk before anybody is told that they are."""

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pangu_trl.runs.lock import hold, release

from .decisions import Decision

FORMAT = 1
# Marks the file as ours, in the header that SQLite has for this ("PGTA").
APPLICATION_ID = 0x50475441

_SCHEMA = f"""
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE files (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, num_prompts INTEGER NOT NULL, opened_at TEXT NOT NULL
) STRICT;
CREATE TABLE sessions (digest TEXT PRIMARY KEY, annotator TEXT NOT NULL, last_seen TEXT NOT NULL) STRICT;
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request TEXT NOT NULL UNIQUE,
    prompt TEXT NOT NULL,
    line INTEGER NOT NULL,
    annotator TEXT NOT NULL,
    repeat INTEGER NOT NULL,
    ranks TEXT NOT NULL,
    shown TEXT NOT NULL,
    seconds REAL NOT NULL,
    decided_at TEXT NOT NULL,
    file_digest TEXT NOT NULL,
    comment TEXT NOT NULL,
    attributes TEXT NOT NULL,
    undone_at TEXT
) STRICT;
CREATE UNIQUE INDEX one_holds ON decisions (prompt, annotator, repeat) WHERE undone_at IS NULL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
"""
_COLUMNS = "prompt, line, annotator, ranks, shown, seconds, decided_at, file_digest, repeat, comment, attributes"


class AlreadyDecided(ValueError):
    """The annotator has a decision on this prompt that holds; undo it before another one."""


@dataclass(frozen=True)
class Kept:
    """A decision as the store has it.

    Attributes:
        number: Counts all decisions of the store, undone ones too, from 1.
        decision: The decision.
    """

    number: int
    decision: Decision


def store_path(answers: str | Path) -> Path:
    """The file with the decisions on an answers file: `answers.annotations.sqlite` for `answers.jsonl`."""
    answers = Path(answers)
    return answers.with_name(f"{answers.name.removesuffix('.jsonl')}.annotations.sqlite")


def read_decisions(path: str | Path) -> list[Decision]:
    """The decisions of a store that hold, oldest first; undone ones are left out. A server may be writing meanwhile.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no decisions of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `pangu-trl annotate` makes one beside its answers")
    with closing(_connect(path)) as connection:
        _check_ours(connection, path)
        return [kept.decision for kept in _holding(connection, None)]


class Store:
    """The decisions of all annotators on one answers file.

    One process has it at a time, and may use it from several threads. What a method has written is on disk when it
    returns (WAL, synchronous=FULL): neither a kill nor a loss of power takes it back.

    Attributes:
        path: The SQLite file.
        seed: Of all that is shuffled and drawn; drawn itself when the store is made, unless it is given then.
    """

    def __init__(self, path: str | Path, seed: int | None = None) -> None:
        """Opens the store, or makes it.

        Raises:
            BlockingIOError: Another process has it; the message names its host and process id.
            ValueError: The file is no store, or of a newer version, or has another seed.
            OSError: It cannot be written.
        """
        self.path = Path(path)
        self._lock_file = self.path.with_name(f"{self.path.name}.lock")
        self._mutex = threading.Lock()
        hold(self._lock_file, str(self.path), "server", "take a copy of the answers")
        try:
            self._connection = _connect(self.path, writes=True)
            self.seed = self._prepare(seed)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the store back."""
        if hasattr(self, "_connection"):
            self._connection.close()
        release(self._lock_file)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, decision: Decision, request: str) -> int:
        """Keeps a decision, and returns its number once it is on disk.

        Args:
            decision: The decision.
            request: A word of the caller's for this call. A second call with it keeps nothing and returns the number of
                the first, so that whoever had no answer may ask again.

        Raises:
            AlreadyDecided: The annotator has a decision on this prompt and repeat that holds.
        """
        values = (
            request,
            decision.prompt,
            decision.line,
            decision.annotator,
            json.dumps(decision.ranks),
            json.dumps(decision.order),
            decision.seconds,
            decision.decided_at,
            decision.file_digest,
            decision.repeat,
            decision.comment,
            json.dumps(decision.attributes, ensure_ascii=False),
        )
        with self._writing() as connection:
            known = connection.execute(
                "SELECT number, annotator FROM decisions WHERE request = ?", (request,)
            ).fetchone()
            if known is not None:
                if known[1] != decision.annotator:
                    raise ValueError(f"the word {request!r} belongs to a request of another annotator")
                return known[0]
            try:
                return connection.execute(
                    f"INSERT INTO decisions (request, {_COLUMNS}) VALUES ({', '.join('?' * len(values))})", values
                ).lastrowid
            except sqlite3.IntegrityError as error:
                raise AlreadyDecided(f"{decision.annotator} has decided on this prompt already") from error

    def undo(self, number: int, annotator: str) -> Decision:
        """Has a decision of the annotator's count no longer; it stays in the file with the time. Twice is once.

        Raises:
            LookupError: The annotator has no decision of this number.
        """
        with self._writing() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM decisions WHERE number = ? AND annotator = ?", (number, annotator)
            ).fetchone()
            if row is None:
                raise LookupError(f"{annotator} has no decision number {number}")
            connection.execute(
                "UPDATE decisions SET undone_at = ? WHERE number = ? AND undone_at IS NULL", (now(), number)
            )
        return _decision(row)

    def is_undone(self, number: int) -> bool:
        """Whether a decision was taken back."""
        with self._mutex:
            row = self._connection.execute("SELECT undone_at FROM decisions WHERE number = ?", (number,)).fetchone()
        return row is not None and row[0] is not None

    def decisions(self, annotator: str | None = None) -> list[Kept]:
        """The decisions that hold, of one annotator or of all, oldest first."""
        with self._mutex:
            return _holding(self._connection, annotator)

    def note_file(self, digest: str, name: str, num_prompts: int) -> str | None:
        """Notes which answers file was opened, and returns the digest of the one opened before it, if another."""
        with self._writing() as connection:
            before = connection.execute("SELECT digest FROM files ORDER BY opened_at DESC, rowid DESC").fetchone()
            connection.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET opened_at = excluded.opened_at",
                (digest, name, num_prompts, now(precise=True)),
            )
        return before[0] if before is not None and before[0] != digest else None

    def setting(self, name: str) -> Any:
        """A setting that was kept; None if there is none of this name."""
        with self._mutex:
            row = self._connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set(self, name: str, value: Any) -> None:
        """Keeps a setting, which JSON must be able to hold."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def add_session(self, digest: str, annotator: str) -> None:
        """Keeps the digest of a browser's cookie, so that a restart asks nobody to come in again."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (digest, annotator, now()))

    def sessions(self, since: str) -> dict[str, str]:
        """Annotators by the digests of cookies that came in since a time; older ones are forgotten."""
        with self._writing() as connection:
            connection.execute("DELETE FROM sessions WHERE last_seen < ?", (since,))
            return dict(connection.execute("SELECT digest, annotator FROM sessions").fetchall())

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on disk when it ends, and undone by an error."""
        with self._mutex:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # A commit that failed, as on a full disk, may have ended the transaction by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _prepare(self, seed: int | None) -> int:
        is_new = not self._connection.execute("PRAGMA schema_version").fetchone()[0]
        if is_new:
            drawn = secrets.randbits(32) if seed is None else seed
            # One transaction: who is killed in it leaves an empty file, which is none.
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} INSERT INTO settings VALUES ('seed', '{drawn:d}'); COMMIT;"
            )
            _sync_folder(self.path.parent)
            return drawn
        _check_ours(self._connection, self.path)
        stored = self.setting("seed")
        if seed is not None and seed != stored:
            raise ValueError(
                f"{self.path}: was begun with seed {stored}; got {seed}. Leave the seed out, or give that one"
            )
        return stored


def now(precise: bool = False) -> str:
    """The time as it is stored: UTC, ISO 8601."""
    time = datetime.now(UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if precise else "%Y-%m-%dT%H:%M:%SZ")


def _connect(path: Path, writes: bool = False) -> sqlite3.Connection:
    # As an address, with all that means something in one escaped.
    address = f"{path.absolute().as_uri()}?mode={'rwc' if writes else 'rw'}"
    connection = None
    try:
        try:
            connection = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None, timeout=30)
            if writes:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.OperationalError:
            if writes:
                raise
            # On a medium that takes no writing, where nobody writes meanwhile either.
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None)
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.OperationalError):
            raise OSError(f"{path}: cannot be opened as a SQLite file ({error})") from error
        raise ValueError(f"{path}: must be a SQLite file that `pangu-trl annotate` made ({error})") from error
    return connection


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise ValueError(f"{path}: must be a SQLite file that `pangu-trl annotate` made; it is one of another program")
    if version != FORMAT:
        raise ValueError(
            f"{path}: has version {version} of the format, and this pangu_trl knows version {FORMAT}. Use the "
            "pangu_trl that wrote it"
        )


def _holding(connection: sqlite3.Connection, annotator: str | None) -> list[Kept]:
    where = "" if annotator is None else " AND annotator = ?"
    rows = connection.execute(
        f"SELECT number, {_COLUMNS} FROM decisions WHERE undone_at IS NULL{where} ORDER BY number",
        () if annotator is None else (annotator,),
    )
    return [Kept(number, _decision(row)) for number, *row in rows]


def _decision(row: Any) -> Decision:
    prompt, line, annotator, ranks, shown, seconds, decided_at, file_digest, repeat, comment, attributes = row
    return Decision(
        prompt=prompt,
        line=line,
        annotator=annotator,
        ranks=tuple(json.loads(ranks)),
        order=tuple(json.loads(shown)),
        seconds=seconds,
        decided_at=decided_at,
        file_digest=file_digest,
        repeat=repeat,
        comment=comment,
        attributes={name: tuple(scores) for name, scores in json.loads(attributes).items()},
    )


def _sync_folder(folder: Path) -> None:
    """Has the name of a new file on disk too, not only what is in it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        # Windows opens no folders.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
