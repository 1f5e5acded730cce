"""Sources as people have them: each gives the records written here, or one line that names place, cause and cure."""

import gzip
import json
import logging
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from pangu_trl.cli import main
from pangu_trl.data import RecordError, load_records
from pangu_trl.data.loading import place_of
from pangu_trl.data.streams import PLACE_COLUMN, stream_records

ROW = '{"prompt": "你好，世界", "completion": "很好"}\n'
RECORD = {"prompt": "你好，世界", "completion": "很好"}
TWO_ROWS = ROW + '{"prompt": "再见", "completion": "好的"}\n'
TWO_RECORDS = [RECORD, {"prompt": "再见", "completion": "好的"}]


def card(folder: Path, block: dict, name: str = "card.md") -> Path:
    path = folder / name
    text = json.dumps({"kind": "demonstration"} | block, ensure_ascii=False)
    path.write_text(f"---\npangu_trl: {text}\n---\n", encoding="utf-8")
    return path


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def json_card(folder: Path, name: str, content: str | bytes, **keys: object) -> Path:
    put(folder, name, content)
    return card(folder, {"path": "json", "data_files": name} | keys)


def csv_card(folder: Path, content: str | bytes, name: str = "rows.csv", **keys: object) -> Path:
    put(folder, name, content)
    return card(folder, {"path": "csv", "data_files": name} | keys)


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "rows.zip", "w") as archive:
        archive.writestr("b/second.jsonl", '{"prompt": "再见", "completion": "好的"}\n')
        archive.writestr("a/first.jsonl", ROW)
        archive.writestr("README.md", "text")
    return folder / "rows.zip"


def compressed(folder: Path, codec: str, suffix: str) -> Path:
    with pa.output_stream(str(folder / f"rows.jsonl.{suffix}"), compression=codec) as stream:
        stream.write(ROW.encode())
    return folder / f"rows.jsonl.{suffix}"


READ: dict[str, tuple[Callable[[Path], Path], list[dict]]] = {
    "byte order mark": (lambda f: put(f, "a.jsonl", "\ufeff" + ROW), [RECORD]),
    "two files with marks put together": (lambda f: put(f, "a.jsonl", ("\ufeff" + ROW) * 2), [RECORD, RECORD]),
    "carriage returns": (lambda f: put(f, "a.jsonl", TWO_ROWS.replace("\n", "\r\n")), TWO_RECORDS),
    "line separator in a text": (
        lambda f: put(
            f, "a.jsonl", '{"prompt": "a\u2028b\x0cc".'.replace("\x0c", "").replace('".', '", "completion": "d"}')
        ),
        [{"prompt": "a\u2028bc", "completion": "d"}],
    ),
    "upper-case suffix": (lambda f: put(f, "A.JSONL", ROW), [RECORD]),
    "gzip": (lambda f: put(f, "a.jsonl.gz", gzip.compress(TWO_ROWS.encode())), TWO_RECORDS),
    "xz": (lambda f: put(f, "a.jsonl.xz", lzma.compress(ROW.encode())), [RECORD]),
    "zstandard": (lambda f: compressed(f, "zstd", "zst"), [RECORD]),
    "zip with folders": (zipped, TWO_RECORDS),
    "list of objects": (lambda f: put(f, "a.json", f"[{ROW},{ROW}]"), [RECORD, RECORD]),
    "JSON lines called .json": (lambda f: put(f, "a.json", TWO_ROWS), TWO_RECORDS),
    "list inside an object": (
        lambda f: json_card(f, "a.json", f'{{"version": 1, "data": [{ROW}]}}', list_field="data"),
        [RECORD],
    ),
    "GBK": (lambda f: json_card(f, "a.jsonl", TWO_ROWS.encode("gbk"), encoding="gb18030"), TWO_RECORDS),
    "UTF-16": (lambda f: json_card(f, "a.jsonl", TWO_ROWS.encode("utf-16"), encoding="utf-16"), TWO_RECORDS),
    "csv in GBK": (
        lambda f: csv_card(f, "prompt,completion\n你好，世界,很好\n".encode("gbk"), encoding="gbk"),
        [RECORD],
    ),
    "csv with a mark": (lambda f: put(f, "a.csv", "\ufeffprompt,completion\r\n你好，世界,很好\r\n"), [RECORD]),
    "csv with semicolons": (lambda f: csv_card(f, "prompt;completion\n你好，世界;很好\n", separator=";"), [RECORD]),
    "tsv": (lambda f: put(f, "a.tsv", "prompt\tcompletion\n你好，世界\t很好\n"), [RECORD]),
    "tsv by a csv card": (lambda f: csv_card(f, "prompt\tcompletion\n你好，世界\t很好\n", name="a.tsv"), [RECORD]),
    "csv whose texts look like other things": (
        lambda f: put(
            f,
            "a.csv",
            "prompt,completion,id,day\n1,002,1e5,2020-01-01\nNA,null,True,\nnan,N/A,010,None\n",
        ),
        [
            {"prompt": "1", "completion": "002", "id": "1e5", "day": "2020-01-01"},
            {"prompt": "NA", "completion": "null", "id": "True", "day": ""},
            {"prompt": "nan", "completion": "N/A", "id": "010", "day": "None"},
        ],
    ),
    "csv with typed columns": (
        lambda f: csv_card(
            f,
            'prompt,completion,score,count,good,meta\na,b,0.5,007,True,"{""k"": [1.7]}"\nc,d,,8,false,\n',
            types={"score": "number", "count": "integer", "good": "boolean", "meta": "json"},
        ),
        [
            {"prompt": "a", "completion": "b", "score": 0.5, "count": 7, "good": True, "meta": {"k": [1.7]}},
            {"prompt": "c", "completion": "d", "score": None, "count": 8, "good": False, "meta": None},
        ],
    ),
    "csv with line ends and quotes in values": (
        lambda f: put(f, "a.csv", 'prompt,completion\n"两\n行","说""好"""\n'),
        [{"prompt": "两\n行", "completion": '说"好"'}],
    ),
    "escaped pair of surrogates": (
        lambda f: put(f, "a.jsonl", '{"prompt": "\\ud83d\\ude00", "completion": "好"}\n'),
        [{"prompt": "😀", "completion": "好"}],
    ),
    "integers of 64 bits without sign": (
        lambda f: put(f, "a.jsonl", '{"prompt": "a", "completion": "b", "id": 18446744073709551615}\n'),
        [{"prompt": "a", "completion": "b", "id": 2**64 - 1}],
    ),
    "empty objects and lists": (
        lambda f: put(f, "a.jsonl", ROW.replace("}", ', "meta": {}, "tags": []}')),
        [RECORD | {"meta": {}, "tags": []}],
    ),
    "columns that only later shards have": (
        lambda f: put(put(f, "d/1.jsonl", ROW).parent, "2.jsonl", ROW.replace("}", ', "meta": {"x": 1}}')).parent,
        [RECORD | {"meta": None}, RECORD | {"meta": {"x": 1}}],
    ),
    "folder called .md": (lambda f: put(f, "c.md/rows.jsonl", ROW).parent, [RECORD]),
    "pattern": (
        lambda f: (put(f, "d/1.jsonl", ROW), json_card(f, "d/2.jsonl", ROW, data_files="d/*.jsonl"))[1],
        [RECORD, RECORD],
    ),
    "folder as data_files": (lambda f: json_card(f, "d/1.jsonl", ROW, data_files="d"), [RECORD]),
    "name with brackets": (lambda f: json_card(f, "a[1].jsonl", ROW), [RECORD]),
    "card of files of several formats": (
        lambda f: (
            put(f, "d/1.jsonl", ROW),
            put(f, "d/2.csv", "prompt,completion\n再见,好的\n"),
            card(f, {"path": "files", "data_files": ["d/1.jsonl", "d/2.csv"]}),
        )[2],
        TWO_RECORDS,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_source_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    make, records = READ[name]
    assert list(load_records(make(tmp_path), "demonstration")) == records


def deep(depth: int) -> str:
    return ROW.replace("}", f', "n": {"[" * depth}{"]" * depth}}}')


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "GBK without a word": (
        lambda f: put(f, "a.jsonl", ROW.encode("gbk")),
        "a.jsonl:1: must be UTF-8; got the byte 0xc4",
    ),
    "UTF-16 without a word": (lambda f: put(f, "a.jsonl", ROW.encode("utf-16")), "a.jsonl:1: must be UTF-8; got NUL"),
    "UTF-16 csv without a mark": (
        lambda f: put(f, "a.csv", "a,b\n".encode("utf-16-le")),
        "a.csv:1: must be UTF-8; got NUL",
    ),
    "one shard of another encoding": (
        lambda f: put(put(f, "d/1.jsonl", ROW).parent, "2.jsonl", ROW.encode("gbk")).parent,
        "2.jsonl:1: must be UTF-8",
    ),
    "UTF-8 shard of a GBK card": (
        lambda f: json_card(f, "a.jsonl", ROW, encoding="gb18030"),
        "a.jsonl:1: must be gb18030, as the card says; the line is UTF-8",
    ),
    "wrong byte in UTF-16": (
        lambda f: json_card(f, "a.jsonl", ROW.encode("utf-16") + b"x", encoding="utf-16"),
        "a.jsonl:2: must be utf-16; got the byte 0x78",
    ),
    "unknown encoding": (
        lambda f: json_card(f, "a.jsonl", ROW, encoding="gbk2312"),
        "card.md: 'pangu_trl.encoding' must be an encoding that Python knows",
    ),
    "broken line": (
        lambda f: put(f, "a.jsonl", ROW + '{"prompt": \n'),
        "a.jsonl:2: must be one JSON object; Expecting",
    ),
    "broken line of a .json file": (
        lambda f: put(f, "a.json", ROW + '{"prompt": }\n'),
        "a.json:2: must be one JSON object; Expecting value",
    ),
    "broken list": (
        lambda f: put(f, "a.json", f"[{ROW},\n{{'a': 1}}]"),
        "a.json:3: must be one JSON object; Expecting",
    ),
    "list that does not end": (lambda f: put(f, "a.json", f"[{ROW}"), "a.json:2: must be one JSON list; expected ','"),
    "list without commas": (
        lambda f: put(f, "a.json", f"[{ROW}{ROW}]"),
        "a.json:2: must be one JSON list; expected ','",
    ),
    "list with something behind": (
        lambda f: put(f, "a.json", f"[{ROW}] {ROW}"),
        "a.json: must be one JSON list; something",
    ),
    "list of texts": (lambda f: put(f, "a.json", '["a"]'), 'a.json:1 (record 0): must be one JSON object; got "a"'),
    "list called JSON lines": (
        lambda f: put(f, "a.jsonl", f"[{ROW.strip()}]"),
        "a.jsonl:1: must be one JSON object, as in",
    ),
    "one object in a .json file": (
        lambda f: put(f, "a.json", '{\n"rows": [],\n"version": 1}'),
        "a.json: must hold a list of JSON objects, or one object a line; got one object. Name the field",
    ),
    "list over several lines called JSON lines": (
        lambda f: put(f, "a.jsonl", f"[{ROW},\n{ROW}]"),
        "must be one JSON object; Expecting ',' delimiter at column 41. A file that is one list over several lines is",
    ),
    "key of a card that is a list": (
        lambda f: put(f, "c.md", "---\npangu_trl: {[a]: 1}\n---\n"),
        "c.md:2: the header must be YAML; a key must be text",
    ),
    "type that is a list": (
        lambda f: csv_card(f, "prompt,completion\na,b\n", types={"prompt": ["json"]}),
        "'pangu_trl.types.prompt' must be one of integer, number, boolean, json; got ['json']",
    ),
    "wrong field of the list": (
        lambda f: json_card(f, "a.json", '{"rows": []}', list_field="data"),
        "a.json: 'list_field: data' must hold a list; lists are in rows",
    ),
    "repeated field": (
        lambda f: put(f, "a.jsonl", '{"prompt": "a", "prompt": "b"}'),
        "a.jsonl:1: 'prompt' must occur once",
    ),
    "NaN": (lambda f: put(f, "a.jsonl", '{"prompt": "a", "w": NaN}'), "a.jsonl:1: numbers must be finite; got NaN"),
    "infinity": (lambda f: put(f, "a.json", '[{"w": [-Infinity]}]'), "a.json:1: numbers must be finite; got -Infinity"),
    "number beyond floats": (
        lambda f: put(f, "a.jsonl", '{"w": 1e999}'),
        "a.jsonl:1: numbers must be finite; 1e999 is",
    ),
    "number of 5000 digits": (
        lambda f: put(f, "a.jsonl", '{"n": ' + "9" * 5000 + "}"),
        "a.jsonl:1: must hold numbers that",
    ),
    "integer beyond 64 bits": (
        lambda f: put(f, "a.jsonl", ROW + ROW.replace("}", ', "id": 18446744073709551616}')),
        "a.jsonl:2: 'id' must be an integer of 64 bits; got 18446744073709551616",
    ),
    "large and negative integers": (
        lambda f: put(f, "a.jsonl", ROW.replace("}", ', "id": -1}') + ROW.replace("}", ', "id": 9223372036854775808}')),
        "a.jsonl:2: 'id' must be an integer of 64 bits; got 9223372036854775808",
    ),
    "integer beyond 64 bits in an object": (
        lambda f: put(f, "a.jsonl", ROW.replace("}", ', "m": {"id": [1180591620717411303424]}}')),
        "a.jsonl:1: 'm'.id: integers must fit into 64 bits",
    ),
    "integer that a float changes": (
        lambda f: put(f, "a.jsonl", ROW.replace("}", ', "n": 0.5}') + ROW.replace("}", ', "n": 9007199254740993}')),
        "a.jsonl:2: 'n' must be an integer that a float holds exactly",
    ),
    "nested 101 deep": (lambda f: put(f, "a.jsonl", deep(101)), "a.jsonl:1: must not be nested more than 100 deep"),
    "nested 20000 deep": (lambda f: put(f, "a.jsonl", deep(20000)), "a.jsonl:1: must not be nested more than 100 deep"),
    "lone surrogate in an extra value": (
        lambda f: put(f, "a.jsonl", '{"prompt": "a", "completion": "b", "m": ["\\udc00"]}'),
        "a.jsonl:1: must be valid Unicode; got a lone surrogate",
    ),
    "lone surrogate in a key": (
        lambda f: put(f, "a.jsonl", '{"prompt": "a", "completion": "b", "m": {"\\ud800": 1}}'),
        "a.jsonl:1: must be valid Unicode; got a lone surrogate",
    ),
    "column of two types": (
        lambda f: put(f, "a.jsonl", ROW.replace("}", ', "id": true}') + ROW.replace("}", ', "id": 1}')),
        "a.jsonl:2: 'id' must be a truth value, as in ",
    ),
    "list in one record, text in another": (
        lambda f: put(f, "a.jsonl", ROW.replace("}", ', "id": ["x"]}') + ROW.replace("}", ', "id": "x"}')),
        "a.jsonl:2: 'id' must be a list, as in ",
    ),
    "empty file": (lambda f: put(f, "a.jsonl", ""), "a.jsonl: must hold one JSON object a line; the file is empty"),
    "empty .json file": (
        lambda f: put(f, "a.json", " \n"),
        "a.json: must hold a list of JSON objects; the file is empty",
    ),
    "empty list": (lambda f: put(f, "a.json", "[]"), "a.json: must hold a list of JSON objects; the list is empty"),
    "empty csv": (
        lambda f: put(f, "a.csv", "prompt,completion\n"),
        "a.csv: must hold a header and a row for each record",
    ),
    "empty parquet": (lambda f: put(f, "a.parquet", b""), "a.parquet: must be a whole Parquet file"),
    "text called parquet": (lambda f: put(f, "a.parquet", ROW), "a.parquet: must be a whole Parquet file"),
    "text called arrow": (lambda f: put(f, "a.arrow", ROW), "a.arrow: must be a whole Arrow file"),
    "empty shard in a folder": (
        lambda f: put(put(f, "d/1.jsonl", ROW).parent, "2.jsonl", "").parent,
        "2.jsonl: must hold one JSON object a line; the file is empty",
    ),
    "truncated gzip": (
        lambda f: put(f, "a.jsonl.gz", gzip.compress(ROW.encode() * 99)[:-9]),
        "a.jsonl.gz: must be a whole .gz file",
    ),
    "text called gzip": (lambda f: put(f, "a.jsonl.gz", ROW), "a.jsonl.gz: must be a whole .gz file"),
    "text called zip": (lambda f: put(f, "a.zip", ROW), "a.zip: must be a whole .zip file"),
    "csv row with too many values": (
        lambda f: put(f, "a.csv", "prompt,completion\na,b\n\nc,d,e\n"),
        "a.csv:4: must have 2 values, as the header has; got 3",
    ),
    "csv row with too few values": (lambda f: put(f, "a.csv", "prompt,completion\na\n"), "a.csv:2: must have 2 values"),
    "csv quote that does not end": (
        lambda f: put(f, "a.csv", 'prompt,completion\na,b\n"c,d\ne,f\n'),
        "a.csv:3: must be a row of csv; unexpected end of data",
    ),
    "csv with two columns of one name": (
        lambda f: put(f, "a.csv", "prompt,prompt\na,b\n"),
        "a.csv:1: the names of columns must differ; got prompt more than once",
    ),
    "csv with another separator": (
        lambda f: put(f, "a.csv", "prompt;completion\na;b\n"),
        "a.csv:1: the header must hold the names of the columns, with ',' between them; got 'prompt;completion'",
    ),
    "text for a number": (
        lambda f: csv_card(f, "prompt,completion,score\na,b,high\n", types={"score": "number"}),
        "rows.csv:2: 'score' must be a number; got 'high'",
    ),
    "typed column that is not there": (
        lambda f: csv_card(f, "prompt,completion\na,b\n", types={"score": "number"}),
        "rows.csv:2: 'types' of ",
    ),
    "unknown type": (
        lambda f: csv_card(f, "prompt,completion\na,b\n", types={"score": "float"}),
        "card.md: 'pangu_trl.types.score' must be one of integer, number, boolean, json; got 'float'",
    ),
    "separator of two characters": (
        lambda f: csv_card(f, "prompt,completion\na,b\n", separator="||"),
        "card.md: 'pangu_trl.separator' must be one character",
    ),
    "separator of a JSON file": (
        lambda f: json_card(f, "a.jsonl", ROW, separator=";"),
        "card.md: 'pangu_trl.separator' has no effect when 'path' is json",
    ),
    "pattern without a match": (
        lambda f: json_card(f, "a.jsonl", ROW, data_files="*.json"),
        "card.md: 'pangu_trl.data_files' must name files, relative to the card; got '*.json', which matches no file",
    ),
    "path: jsonl": (
        lambda f: json_card(f, "a.jsonl", ROW, path="jsonl"),
        "card.md: 'pangu_trl.path' must be json, which reads such files too; got 'jsonl'",
    ),
    "file of another format than the card says": (
        lambda f: json_card(f, "a.csv", "prompt\na\n"),
        "card.md: 'pangu_trl.path' must be the format of the files; got 'json' and ",
    ),
    "card that is an empty folder": (
        lambda f: (f / "c.md").mkdir() or f / "c.md",
        "c.md: must be a data card; got a folder",
    ),
    "card in GBK": (
        lambda f: put(f, "c.md", "---\nname: 医疗\npangu_trl: {}\n---\n".encode("gbk")),
        "c.md:2: a card must be UTF-8; got the byte 0xc1",
    ),
    "folder without data": (
        lambda f: put(f, "d/rows.jsonl.bak", ROW).parent,
        "d: the folder must hold a data file, ending in .jsonl, ",
    ),
    "unknown suffix": (lambda f: put(f, "a.xlsx", b"PK"), "a.xlsx: a file of records must end in .jsonl, "),
    "broken link": (
        lambda f: (f / "a.jsonl").symlink_to(f / "gone.jsonl") or f / "a.jsonl",
        "a.jsonl: no such file",
    ),
    "broken link in a folder": (
        lambda f: (put(f, "d/1.jsonl", ROW).parent / "2.jsonl").symlink_to(f / "gone.jsonl") or f / "d",
        "2.jsonl'",
    ),
    "neither a path nor an id": (lambda f: f / "no" / "such" / "thing", "thing: no such file or folder"),
    "unknown key of a card": (
        lambda f: json_card(f, "a.jsonl", ROW, encodings="gbk"),
        "card.md: 'pangu_trl.encodings' is",
    ),
    "text and messages": (
        lambda f: put(f, "a.jsonl", ROW + '{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}'),
        "a.jsonl:2: ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_source_is_refused_by_one_line(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises((ValueError, OSError)) as caught:
        load_records(make(tmp_path), "demonstration")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    # What names a place in a file names the file in full.
    assert str(tmp_path) in str(caught.value)


# A stream has no columns, whose values would have to be of one type.
OF_WHOLE_COLUMNS = {
    "integer beyond 64 bits",
    "large and negative integers",
    "integer beyond 64 bits in an object",
    "integer that a float changes",
    "column of two types",
    "list in one record, text in another",
}


def test_the_tables_are_long_enough() -> None:
    assert len(READ) + len(REFUSED) >= 60 and len(REFUSED) >= 60


@pytest.mark.parametrize("name", READ)
def test_a_stream_and_check_data_read_what_is_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make, records = READ[name]
    source = make(tmp_path)
    rows = list(stream_records(source, "demonstration"))
    for row, record in zip(rows, records, strict=True):
        assert row.pop(PLACE_COLUMN).startswith(str(tmp_path))
        # In memory every record has the columns of all.
        assert {column: row.get(column) for column in record} == record and not row.keys() - record.keys()
    assert main(["check-data", str(source), "--kind", "demonstration", "--json", "--no-near-duplicates"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["faults"]) == (len(records), [])


@pytest.mark.parametrize("name", REFUSED)
def test_a_stream_and_check_data_refuse_what_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make, message = REFUSED[name]
    source = make(tmp_path)
    if name not in OF_WHOLE_COLUMNS:
        with pytest.raises((ValueError, OSError)) as caught:
            list(stream_records(source, "demonstration"))
        assert message in str(caught.value)
    assert main(["check-data", str(source), "--kind", "demonstration", "--json", "--no-near-duplicates"]) == 1
    said = json.loads(capsys.readouterr().out)["faults"]
    assert any(message in fault and str(tmp_path) in fault for fault in said), said
    assert not any("\n" in fault for fault in said)


def test_every_file_of_a_folder_is_read_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["医疗.jsonl", "train_法律.jsonl", "金融.jsonl", "sub/dev.jsonl", "test_drive.jsonl.gz"]
    for name in names:
        row = json.dumps({"text": name}, ensure_ascii=False) + "\n"
        put(tmp_path / "d", name, gzip.compress(row.encode()) if name.endswith(".gz") else row)
    put(tmp_path / "d", "b.csv", "text\nb.csv\n")
    put(tmp_path / "d", "a.jsonl.bak", ROW)
    put(tmp_path / "d", ".hidden.jsonl", ROW)
    put(tmp_path / "d", "__MACOSX/x.jsonl", ROW)
    put(tmp_path / "d", "README.md", "about")
    (tmp_path / "d" / "back").symlink_to(tmp_path / "d")
    with caplog.at_level(logging.INFO, logger="pangu_trl"):
        dataset = load_records(tmp_path / "d", "text")
    assert sorted(dataset["text"]) == sorted([*names, "b.csv"])
    (told,) = [message for message in caplog.messages if "left out" in message]
    assert told == (
        f"{tmp_path / 'd'}: left out .hidden.jsonl (hidden); README.md (a description); __MACOSX/ (hidden or a tool's "
        "own folder); a.jsonl.bak ('.bak' is not the suffix of a data file); back/ (a link back to a folder above it)"
    )


def test_place_of_a_row_is_in_the_file_that_holds_it(tmp_path: Path) -> None:
    for name, text in [("a.jsonl", "一"), ("b.jsonl", "二")]:
        put(tmp_path / "d", name, "\n" + json.dumps({"text": text}) + "\n")
    assert place_of(load_records(tmp_path / "d", "text"), 1) == f"{tmp_path / 'd' / 'b.jsonl'}:2"


def test_files_with_the_names_of_splits_are_all_training_data_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("train", "test"):
        put(tmp_path / "d", f"{name}.jsonl", ROW)
    assert len(load_records(tmp_path / "d", "demonstration")) == 2
    assert "test.jsonl, train.jsonl and the other files are all read as the split train" in caplog.text
    with pytest.raises(RecordError, match="the split must be one of train; got 'test'"):
        load_records(tmp_path / "d", "demonstration", "test")


def test_files_beside_the_folders_of_splits_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "d", "train/a.jsonl", ROW)
    put(tmp_path / "d", "dev/b.jsonl", ROW)
    assert len(load_records(tmp_path / "d", "demonstration")) == 1
    assert "left out dev/b.jsonl (outside of the folders of splits, train)" in caplog.text


@pytest.mark.parametrize("way", ["jsonl", "parquet", "arrow", "save_to_disk", "save_to_disk with splits"])
def test_calls_hold_the_arguments_that_they_were_given(tmp_path: Path, way: str) -> None:
    """A struct column gives every object the fields of all; none of these may come back."""
    calls = [{"city": "北京", "at": [39.904200123456, 1.7]}, {"zone": "UTC"}, {}]
    records = [
        {
            "prompt": [{"role": "user", "content": "问"}],
            "completion": [
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": call}}]},
                {"role": "tool", "content": ""},
                {"role": "assistant", "content": "好"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        }
        for call in calls
    ]
    source = tmp_path / f"rows.{way}"
    dataset = datasets.Dataset.from_list(records)
    if way == "jsonl":
        put(tmp_path, "rows.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    elif way == "parquet":
        dataset.to_parquet(source)
    elif way == "arrow":
        with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_file(sink, dataset.data.table.schema) as writer:
            writer.write_table(dataset.data.table)
    elif way == "save_to_disk":
        dataset.save_to_disk(source)
    else:
        datasets.DatasetDict({"train": dataset}).save_to_disk(source)
    loaded = load_records(source, "demonstration")
    assert list(loaded) == records
    # What reads, orders, extends and stores the rows leaves them as they are.
    kept = loaded.map(lambda row, index: {"index": index}, with_indices=True).remove_columns("index")
    kept.select([2, 0, 1]).save_to_disk(tmp_path / "saved")
    assert list(datasets.load_from_disk(tmp_path / "saved")) == [records[2], records[0], records[1]]
    assert list(load_records(tmp_path / "saved", "demonstration")) == [records[2], records[0], records[1]]


def test_cache_does_not_outlive_the_card_or_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_card(tmp_path, "prompt,completion,other\na,b,c\n")
    assert load_records(path, "demonstration")["completion"][0] == "b"
    card(tmp_path, {"path": "csv", "data_files": "rows.csv", "columns": {"completion": "other"}})
    assert load_records(path, "demonstration")["completion"][0] == "c"
    validate = load_records.__globals__["validate_record"]
    monkeypatch.setitem(
        load_records.__globals__, "validate_record", lambda *a: validate(*a) | {"completion": "changed code"}
    )
    assert load_records(path, "demonstration")["completion"][0] == "changed code"


def test_damaged_cache_is_written_again(tmp_path: Path) -> None:
    file = put(tmp_path, "a.jsonl", ROW)
    cached = Path(load_records(file, "demonstration").cache_files[0]["filename"])
    cached.write_bytes(cached.read_bytes()[:100])
    assert list(load_records(file, "demonstration")) == [RECORD]


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", put(tmp_path, "file", ""))
    with pytest.raises(OSError, match=r"must be written to the cache of datasets, .*HF_DATASETS_CACHE"):
        load_records(put(tmp_path, "a.jsonl", ROW), "demonstration")


def test_files_of_a_hub_dataset_are_read_as_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` says which files the split has; it would read their objects with the fields of all."""
    calls = [ROW.replace("}", f', "call": {{"{name}": 1.7}}}}') for name in ("city", "zone")]
    train, test = put(tmp_path, "train.jsonl", "".join(calls)), put(tmp_path, "test.jsonl", ROW)
    asked: list[dict] = []
    build = datasets.load_dataset_builder

    def build_local(**request: object) -> datasets.DatasetBuilder:
        asked.append(request)
        return build("json", data_files={"train": str(train), "test": str(test)})

    monkeypatch.setattr(datasets, "load_dataset_builder", build_local)
    records = [RECORD | {"call": {"city": 1.7}}, RECORD | {"call": {"zone": 1.7}}]
    assert list(load_records("who/what@v1", "demonstration")) == records
    path = card(tmp_path, {"path": "who/what", "name": "zh", "revision": "abc", "data_files": {"test": "t.jsonl"}})
    assert list(load_records(path, "demonstration", "test")) == [RECORD]
    assert asked == [
        {"path": "who/what", "name": None, "revision": "v1", "data_files": None},
        {"path": "who/what", "name": "zh", "revision": "abc", "data_files": {"test": ["t.jsonl"]}},
    ]
    with pytest.raises(RecordError, match="who/what: the split must be one of train, test; got 'dev'"):
        load_records("who/what", "demonstration", "dev")


def test_unreachable_hub_dataset_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=r"who/what: no such file or folder .* no dataset on the Hub to be had; "
    ) as caught:
        load_records("who/what", "demonstration")
    assert "\n" not in str(caught.value)
