"""Reading and writing JSON lines."""

import os
import stat
from pathlib import Path

import pytest

from pangu_trl.data import RecordError, read_jsonl, write_jsonl


def test_written_records_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "records.jsonl"
    # U+2028 ends a line for str.splitlines, not for JSON lines.
    records = [{"prompt": "中文\n两行\u2028三", "score": 0.1, "none": None}, {"nested": [{"a": [1, 2]}]}]
    assert write_jsonl(file, iter(records)) == 2
    assert read_jsonl(file) == records
    assert "中文" in file.read_text(encoding="utf-8")


def test_blank_lines_byte_order_mark_and_carriage_returns_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}')
    assert read_jsonl(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": }', "must be one JSON object; Expecting value at column 7."),
        (b'{"a": 1} {"a": 2}', "must be one JSON object; Extra data at column 10."),
        (b'["a"]', 'must be one JSON object, as in {"prompt": ...}; got ["a"].'),
        (b'"a"', 'must be one JSON object, as in {"prompt": ...}; got "a".'),
        (b'{"a": {"b": 1, "b": 2}}', "'b' must occur once in an object; got it twice."),
        (
            '{"a": "中"}'.encode("gb18030"),
            "must be UTF-8; got the byte 0xd6 at position 8 of the line. Convert the file, e.g. "
            "`iconv -f GB18030 -t UTF-8`, or "
            "name its encoding in a data card, e.g. `encoding: gb18030`.",
        ),
    ],
)
def test_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(RecordError) as caught:
        read_jsonl(file)
    assert str(caught.value) == f"{file}:3: {message}"


def test_missing_file_folder_and_empty_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl: no such file"):
        read_jsonl(tmp_path / "nowhere.jsonl")
    with pytest.raises(IsADirectoryError, match="must be a JSON lines file; got a folder"):
        read_jsonl(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(RecordError, match="empty.jsonl: must hold one JSON object a line; the file is empty"):
        read_jsonl(empty)


def test_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    write_jsonl(file, [{"a": 1}])
    with pytest.raises(FileExistsError, match="exists already. Choose another name, or pass overwrite=True"):
        write_jsonl(file, [{"a": 2}])
    assert read_jsonl(file) == [{"a": 1}]
    write_jsonl(file, [{"a": 3}], overwrite=True)
    assert read_jsonl(file) == [{"a": 3}]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(float("nan"), "Out of range float"), (object(), "not JSON serializable"), ("\ud800", "surrogates not allowed")],
)
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, value: object, reason: str) -> None:
    file = tmp_path / "records.jsonl"
    write_jsonl(file, [{"a": 1}])
    with pytest.raises(RecordError, match=f"records.jsonl: record 1: must be JSON; .*{reason}"):
        write_jsonl(file, [{"a": 2}, {"a": value}], overwrite=True)
    assert read_jsonl(file) == [{"a": 1}]
    assert list(tmp_path.glob("*records*")) == [file]
    assert list(tmp_path.glob(".*")) == []


def test_written_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_jsonl(tmp_path / "records.jsonl", [{"a": 1}])
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "records.jsonl")]
    assert modes[0] == modes[1]
