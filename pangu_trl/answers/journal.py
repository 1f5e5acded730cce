"""Results of a long command, kept as they come: a second call goes on where the first was stopped."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has none, and there two calls at once are not told.
    fcntl = None


class Journal:
    """A file `OUTPUT.partial` with the options of a command and the results it has had.

    Args:
        output: What the command will write in the end.
        options: What the results depend on, as JSON; a call with others may not go on with them.
        starts_afresh: Whether results under other options are thrown away instead of refused.

    Attributes:
        known: The results of an earlier call, by key.

    Raises:
        ValueError: There are results under other options, or of a command that still runs.
        OSError: The file cannot be written.
    """

    def __init__(self, output: Path, options: Mapping[str, Any], starts_afresh: bool = False) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        self.known: dict[str, Any] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise FileExistsError(f"{self.path}: must be a file, for results as they come; remove what is there")
        header = json.loads(json.dumps(options))
        self._file = self._open()
        try:
            whole = self._read(header, starts_afresh)
            self._file.truncate(whole)
            self._file.seek(whole)
            if not whole:
                self._write(header)
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> BinaryIO:
        file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(f"{self.path}: another call is writing it; wait for its end, or stop it") from error
        return file

    def _read(self, header: dict[str, Any], starts_afresh: bool) -> int:
        """Takes what is there, and returns how many bytes of it are whole."""
        whole = 0
        for number, line in enumerate(self._file):
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                content = None
            if not isinstance(content, dict):
                # What was being written when the call was stopped.
                break
            if number:
                self.known |= content
            elif content != header:
                if starts_afresh or not any(self._file):
                    return 0
                names = sorted(name for name in {*content, *header} if content.get(name) != header.get(name))
                raise ValueError(
                    f"{self.path}: holds the results of a call that was stopped, with other options: "
                    + "; ".join(f"{name} {content.get(name)!r}, now {header.get(name)!r}" for name in names)
                    + ". Give the same options to go on with it, or remove the file, or say --overwrite, to start "
                    "afresh"
                )
            whole += len(line)
        return whole

    def add(self, results: Mapping[str, Any]) -> None:
        """Keeps some more results."""
        self.known |= results
        self._write(results)

    def _write(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content).encode("ascii") + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Leaves the results for the next call, if there are any."""
        if not self.known:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def remove(self) -> None:
        """Ends the journal, once the output is in place."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digest(records: Iterable[Any]) -> str:
    """A digest of records as JSON."""
    hashed = hashlib.sha256()
    for record in records:
        hashed.update(json.dumps(record, sort_keys=True, default=str).encode("ascii") + b"\n")
    return hashed.hexdigest()[:16]


def fingerprint(source: str | None) -> str | None:
    """Tells whether a model's folder, or the file of a judge, is the same as before; None for what is no file."""
    if source is None:
        return None
    path = Path(source if Path(source).exists() else source.rpartition(":")[0])
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if not path.is_dir() or not source:
        return None
    files = sorted(file for file in path.iterdir() if file.is_file())
    # The page on a run, which `pangu-trl report` writes anew, and a model card make no other model.
    files = [file for file in files if not file.name.startswith("_") and file.name != "README.md"]
    return digest([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)
