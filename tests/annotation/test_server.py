"""Who comes in, what is answered, and that nothing else is: over HTTP, without a browser."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from annotation_place import records, write

pytest.importorskip("starlette", reason="the page is an extra: pip install 'pangu_trl[annotate]'")
from starlette.testclient import TestClient

from pangu_trl.annotation import server
from pangu_trl.annotation.address import Address
from pangu_trl.annotation.server import LARGEST_BODY, PAGE_FILES, Server, make_app
from pangu_trl.annotation.store import Store, read_decisions, store_path
from pangu_trl.cli import main

HERE = "http://127.0.0.1:8765"


def _client(app, base_url=HERE, name=None, **options):
    client = TestClient(app, base_url, follow_redirects=False, **options)
    if name is not None:
        assert client.get("/", params={"token": app.tokens[name]}).status_code == 200
    return client


@pytest.fixture
def app(place):
    names = ("ann", "bob")
    return make_app(place.open(names, overlap=1.0), Address(), names)


@pytest.fixture
def ann(app):
    return _client(app, name="ann")


def _decision(state, **more):
    said = {"annotator": state["annotator"], "request": "request-1", "page": state["page"]["id"], "seconds": 2}
    return said | {"ranks": [1, 2, 3, 4]} | more


def test_without_the_token_nothing_is_told(app):
    client = _client(app)
    for path in (*PAGE_FILES, "/api/state", "/api/config", "/api/piece", "/nothing", "/%2e%2e/etc/passwd"):
        answer = client.get(path)
        assert (answer.status_code, "question" in answer.text) == (403, False), path
    for path in ("/api/decision", "/api/undo", "/api/skipped"):
        assert client.post(path, json={}).status_code == 403
    for token in ("", "wrong", app.tokens["ann"][:-1], app.tokens["ann"] + "x", "é"):
        answer = client.get("/", params={"token": token})
        assert answer.status_code == 403 and "set-cookie" not in answer.headers
    client.cookies.set(app.cookie, "guessed")
    assert client.get("/api/state").status_code == 403


def test_a_link_gives_a_session_of_its_own_name(app):
    client = _client(app)
    answer = client.get("/", params={"token": app.tokens["bob"]})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
    assert app.tokens["bob"] not in cookie + answer.text
    assert client.get("/api/state").json()["annotator"] == "bob"
    assert _client(app, name="ann").get("/api/state").json()["annotator"] == "ann"


def test_behind_https_the_cookie_stays_there(place):
    address = Address(public_url="https://rank.example.org/annotate/")
    app = make_app(place.open(), address, ["ann"])
    client = TestClient(app, "https://rank.example.org", headers={"origin": "https://rank.example.org"})
    answer = client.get("/", params={"token": app.tokens["ann"]})
    assert "Secure" in answer.headers["set-cookie"]
    assert client.get("/api/state").status_code == 200
    assert address.link(8765) == "https://rank.example.org/annotate/"
    for url in ("rank.example.org", "ftp://rank.example.org", "https://", "https://x/?a=b"):
        with pytest.raises(ValueError, match="public URL must be an address"):
            Address(public_url=url)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8765"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "evil.example#127.0.0.1"},
        {"host": "127.0.0.1@evil.example"},
        {"host": ""},
        {"host": "127.0.0.1:port"},
        [("host", "127.0.0.1"), ("host", "evil.example")],
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "https://127.0.0.1:8765"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_foreign_hosts_and_origins_are_refused_even_with_a_session(ann, place, headers):
    state = ann.get("/api/state").json()
    assert ann.get("/api/state", headers=headers).status_code == 403
    assert ann.post("/api/decision", json=_decision(state), headers=headers).status_code == 403
    assert read_decisions(place.store) == []


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:9000", "[::1]:8765", "LOCALHOST"])
def test_this_machine_has_several_names_and_a_tunnel_another_port(app, host):
    client = _client(app, f"http://{host.lower()}", name="ann")
    headers = {"host": host, "origin": f"http://{host}"}
    assert client.get("/api/state", headers=headers).status_code == 200


def test_a_machine_that_listens_to_others_is_called_by_its_names_only():
    address = Address("0.0.0.0")
    assert address.admits("10.1.2.3", reached="10.1.2.3")
    assert address.admits(socket.gethostname(), reached="10.1.2.3")
    assert not address.admits("10.9.9.9", reached="10.1.2.3")
    assert not address.admits("evil.example", reached="10.1.2.3")
    assert not Address().admits("10.1.2.3", reached="10.1.2.3")
    assert [Address(host).is_loopback for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.1.2.3")] == [
        *(True, True, True, False, False)
    ]


def test_what_is_served_is_the_page_and_nothing_beside_it(ann):
    for path, (_, kind) in PAGE_FILES.items():
        answer = ann.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind), path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        # No outside request, and no script in the page itself.
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), path
    assert "<script>" not in ann.get("/").text and "onclick" not in ann.get("/").text
    for path in (
        "/server.py",
        "/page/index.html",
        "/../store.py",
        "/%2e%2e/store.py",
        "//etc/passwd",
        "/api",
        "/api/x",
    ):
        assert ann.get(path).status_code == 404, path
    assert ann.post("/").status_code == 405
    assert ann.get("/api/decision").status_code == 405
    folder = Path(server.__file__).parent / "page"
    assert {name for name, _ in PAGE_FILES.values()} == {path.name for path in folder.iterdir()}


def test_scripts_of_the_page_import_only_what_is_served():
    folder = Path(server.__file__).parent / "page"
    for path in folder.glob("*.js"):
        text = path.read_text("utf-8")
        for name in re.findall(r'from "\./([^"]+)"', text):
            assert (folder / name).exists(), f"{path.name}: {name}"
        # What a text of a stranger could become HTML by.
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\.href\s*=", text), path


def test_both_languages_say_the_same_things():
    folder = Path(server.__file__).parent / "page"
    words = json.loads((folder / "words.json").read_text("utf-8"))
    assert words["en"].keys() == words["zh"].keys()
    for name, text in words["en"].items():
        assert set(re.findall(r"\{\w+\}", words["zh"][name])) == set(re.findall(r"\{\w+\}", text)), name
    sources = "".join(path.read_text("utf-8") for path in (*folder.glob("*.js"), folder / "index.html"))
    used = set(re.findall(r'(?:say\("|data-word=")(\w+)"', sources)) | set(re.findall(r'"(key_\w+)"', sources))
    assert used <= words["en"].keys()


def test_a_decision_is_on_disk_when_it_is_acknowledged(ann, place):
    state = ann.get("/api/state").json()
    after = ann.post("/api/decision", json=_decision(state, comment="好")).json()
    with_ranks = read_decisions(place.store)
    assert [decision.comment for decision in with_ranks] == ["好"]
    assert (after["ranked"], after["page"]["id"] == state["page"]["id"]) == (1, False)
    # The same request again changes nothing, another one on the same page is told what comes next.
    assert ann.post("/api/decision", json=_decision(state)).json() == after
    answer = ann.post("/api/decision", json=_decision(state, request="request-2", ranks=[4, 3, 2, 1]))
    assert (answer.status_code, answer.json()["state"]) == (409, after)
    undone = ann.post("/api/undo", json={"annotator": "ann", "number": after["last"]}).json()
    assert undone["page"]["id"] == state["page"]["id"] and undone["page"]["draft"]["comment"] == "好"
    assert read_decisions(place.store) == []


def test_sessions_see_only_their_own(app, ann):
    bob = _client(app, name="bob")
    page = ann.get("/api/state").json()
    ann.post("/api/decision", json=_decision(page))
    state = bob.get("/api/state").json()
    assert (state["ranked"], state["last"]) == (0, None)
    undo = bob.post("/api/undo", json={"annotator": "bob", "number": 1})
    assert undo.status_code == 409 and ann.get("/api/state").json()["ranked"] == 1
    # Ann's window in a browser that opened Bob's link since.
    answer = bob.post("/api/decision", json=_decision(page, request="request-2"))
    assert (answer.status_code, answer.json()["signed_in_as"]) == (409, "bob")
    assert bob.get("/api/state").json()["ranked"] == 0


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{", {}),
        (b"[]", {}),
        (b"[" * 100_000, {}),
        (b"\xff", {}),
        (b"annotator=ann", {"content-type": "application/x-www-form-urlencoded"}),
    ],
    ids=["half", "list", "deep", "bytes", "form"],
)
def test_bodies_that_no_page_of_ours_sends_are_refused(ann, place, content, headers):
    answer = ann.post("/api/decision", content=content, headers={"content-type": "application/json"} | headers)
    assert answer.status_code == 422 and answer.json()["error"]
    assert read_decisions(place.store) == []


def test_a_decision_counts_only_as_json_and_below_the_limit(ann, place):
    content = json.dumps(_decision(ann.get("/api/state").json())).encode()
    padded = content + b" " * (LARGEST_BODY - len(content))
    # What a form of another site can send without being asked, and one byte too many.
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")
    for body, kind in [*((content, kind) for kind in kinds), (padded + b" ", "application/json")]:
        answer = ann.post("/api/decision", content=body, headers={"content-type": kind})
        assert (answer.status_code, read_decisions(place.store)) == (422, []), kind
    answer = ann.post("/api/decision", content=padded, headers={"content-type": "application/json; charset=utf-8"})
    assert (answer.status_code, len(read_decisions(place.store))) == (200, 1)


def test_refused_decisions_and_pieces_say_why(ann):
    state = ann.get("/api/state").json()
    answer = ann.post("/api/decision", json=_decision(state, ranks=[1, 1, 3, 3]))
    assert (answer.status_code, "without gaps" in answer.json()["error"]) == (422, True)
    page = state["page"]["id"]
    assert ann.get("/api/piece", params={"page": page, "which": 0, "part": 0, "start": 2}).json() == {
        "text": state["page"]["answers"][0][0]["text"][2:]
    }
    for wrong in ({"which": "x"}, {"which": 9}, {"start": -1}, {"start": "9" * 5000}):
        asked = {"page": page, "which": 0, "part": 0, "start": 0} | wrong
        assert ann.get("/api/piece", params=asked).status_code == 422, wrong
    assert ann.get("/api/piece", params={"page": "gone", "which": 0, "part": 0, "start": 0}).status_code == 409


def test_hostile_texts_travel_as_they_are(place):
    rows = records(1)
    rows[0]["responses"] = [
        "<script>alert(1)</script>",
        "\u202eevil\x1b[31m\x00",
        "\ue000\uffff \U0010ffff",
        "x" * 1_000_000,
    ]
    write(place.path, rows)
    app = make_app(place.open(), Address(), ["ann"])
    answer = _client(app, name="ann").get("/api/state")
    assert answer.headers["content-type"] == "application/json" and answer.content.isascii()
    texts = {parts[0]["text"] for parts in answer.json()["page"]["answers"]}
    assert texts == {*rows[0]["responses"][:3], "x" * 20_000}


def test_sessions_outlive_the_server_and_tokens_do_not(place):
    app = make_app(place.open(), Address(), ["ann"])
    client = _client(app, name="ann")
    cookie, token = client.cookies[app.cookie], app.tokens["ann"]
    again = make_app(place.open(), Address(), ["ann"])
    later = _client(again)
    assert later.get("/", params={"token": token}).status_code == 403
    later.cookies.set(again.cookie, cookie)
    assert later.get("/api/state").status_code == 200
    # A name that is not there today does not come in.
    others = make_app(place.open(annotators=("bob",)), Address(), ["bob"])
    stranger = _client(others)
    stranger.cookies.set(others.cookie, cookie)
    assert stranger.get("/api/state").status_code == 403
    assert cookie.encode() not in place.store.read_bytes()


def test_a_port_that_is_taken_is_said(place):
    app = make_app(place.open(), Address(), ["ann"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}.*choose another --port"):
            Server(app, Address(port=port))


def test_options_that_cannot_be_meant_are_refused(place, capsys, tmp_path):
    answers = str(place.path)
    for words, reason in {
        ("--annotator", " "): "must be a name",
        ("--annotator", "a\x1bb"): "must be a name",
        ("--annotator", "ann", "--annotator", "ann"): "names somebody twice",
        ("--annotator", "ann", "--order", "active"): "name it with --judge",
        ("--annotator", "ann", "--judge", "x.py:f"): "--judge is for --order active",
        ("--annotator", "ann", "--attributes", str(tmp_path / "none.yaml")): "none.yaml",
    }.items():
        assert main(["annotate", answers, *words]) == 2
        assert reason in capsys.readouterr().err
    for words in (["--overlap", "1.5"], ["--repeats", "-1"], ["--port", "70000"], []):
        with pytest.raises(SystemExit):
            main(["annotate", answers, *(["--annotator", "ann"] if words else []), *words])
    assert not place.store.exists()


def _start(answers, *words):
    """The command in a process of its own, with the link that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pangu_trl.cli import main; sys.exit(main())"]
        + ["annotate", str(answers), "--annotator", "ann", "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # By Ctrl-C alone, however the tests themselves were started.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return process, process.stdout.readline().strip()


def test_the_command_serves_until_it_is_interrupted_and_refuses_a_second_one(place, capsys):
    place.close()
    output = place.path.parent / "out" / "rankings.jsonl"
    process, link = _start(place.path, "--seed", "5", "--output", str(output))
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", link)
        with urllib.request.urlopen(link) as answer:
            cookie = answer.headers["set-cookie"].partition(";")[0]
        asked = urllib.request.Request(link.partition("?")[0] + "api/state", headers={"cookie": cookie})
        with urllib.request.urlopen(asked) as answer:
            state = json.load(answer)
        assert (state["annotator"], state["left"]) == ("ann", 6)
        assert main(["annotate", str(place.path), "--annotator", "bob", "--port", "0"]) == 2
        assert f"in use by another server: process {process.pid} on host" in capsys.readouterr().err
        body = json.dumps(_decision(state)).encode()
        headers = {"cookie": cookie, "content-type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(link.partition("?")[0] + "api/decision", body, headers)
        ) as answer:
            assert json.load(answer)["ranked"] == 1
        process.send_signal(signal.SIGINT)
        printed, warned = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, warned
    first, second = printed.splitlines()
    assert first == f"{store_path(place.path)}: 1 ranking, 0 prompts skipped"
    assert second.startswith(f"{output}: 1 ranking by 1 annotator")
    (record,) = map(json.loads, output.read_text("utf-8").splitlines())
    # Ranked as shown, and exported in the order of the file: 3 points for the best of four.
    order = [record["responses"].index(parts[0]["text"]) for parts in state["page"]["answers"]]
    assert [record["scores"][index] for index in order] == [3.0, 2.0, 1.0, 0.0]
    assert "Traceback" not in warned and "a link is a key" in warned
    with Store(place.store) as store:
        assert store.seed == 5
    assert sorted(os.listdir(place.path.parent)) == ["answers.annotations.sqlite", "answers.jsonl", "out"]
    # What was written is not replaced in silence.
    assert main(["annotate", str(place.path), "--annotator", "ann", "--output", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_stop_before_anything_is_ranked_says_that_no_file_was_written(place, monkeypatch, capsys):
    place.close()
    monkeypatch.setattr("pangu_trl.annotation.server.Server.run", lambda _: None)
    output = place.path.parent / "rankings.jsonl"
    assert main(["annotate", str(place.path), "--annotator", "ann", "--port", "0", "--output", str(output)]) == 0
    assert f"{output}: not written, as nothing is ranked yet" in capsys.readouterr().err
    assert not output.exists()
