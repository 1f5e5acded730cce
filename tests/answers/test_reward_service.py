"""The HTTP reward: what goes over the wire, what is tried again, and what is refused."""

import json
import runpy
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pangu_trl.answers import reward_service
from pangu_trl.answers.judge import Judge, load_judge
from pangu_trl.answers.reward_service import RewardService

ROOT = Path(__file__).parents[2]


@pytest.fixture
def serve(monkeypatch):
    """Starts servers that end with the test; waits between tries are noted and not waited."""
    servers = []

    def start(server: HTTPServer) -> str:
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/score"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr(reward_service.time, "sleep", waited.append)
    return waited


def scripted(answers: list[tuple[int, str]]) -> HTTPServer:
    """Gives these statuses and bodies, one a request."""
    script = iter(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = next(script)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    return HTTPServer(("127.0.0.1", 0), Handler)


def test_the_example_server_gives_the_scores_of_a_function(serve):
    make_server = runpy.run_path(str(ROOT / "recipes" / "reward_server.py"))["make_server"]
    seen = []

    def lengths(prompts, completions, **columns):
        seen.append((prompts, columns))
        return [float(len(completion)) for completion in completions]

    service = RewardService(serve(make_server(Judge("lengths", lengths), "127.0.0.1", 0)))
    assert service(["问", "b"], ["答案", "x"], topic=["数", None]) == [2.0, 1.0]
    assert seen == [(["问", "b"], {"topic": ["数", None]})]
    chat = [[{"role": "user", "content": "hi"}]]
    assert service(chat, [[{"role": "assistant", "content": "yes"}]]) == [1.0], "messages arrive as messages"


def test_the_example_server_says_what_is_wrong_with_a_score(serve, waits):
    make_server = runpy.run_path(str(ROOT / "recipes" / "reward_server.py"))["make_server"]
    url = serve(make_server(Judge("broken", lambda prompts, completions, **_: [float("nan")]), "127.0.0.1", 0))
    with pytest.raises(ValueError, match="refused the request with 400 .*finite"):
        RewardService(url)(["a"], ["b"])
    assert waits == []


def test_what_may_pass_is_tried_again_with_longer_waits(serve, waits):
    url = serve(scripted([(503, "busy"), (429, "busy"), (200, '{"scores": [0.5]}')]))
    assert RewardService(url, retries=2)(["a"], ["b"]) == [0.5]
    assert waits == [1.0, 2.0]


def test_a_service_that_never_answers_is_named_with_its_last_failure(serve, waits):
    url = serve(scripted([(500, "broken")] * 2))
    with pytest.raises(ValueError, match=f"{url}: no scores after 2 tries of 60 seconds.*500 .*broken"):
        RewardService(url, retries=1)(["a"], ["b"])
    closed = scripted([])
    closed.server_close()
    with pytest.raises(ValueError, match="no scores after 3 tries.*refused.*Is it running"):
        RewardService(f"http://127.0.0.1:{closed.server_port}/", retries=2)(["a"], ["b"])


def test_a_slow_service_is_left_after_the_timeout(serve, waits):
    silent = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    # Takes the connection and says nothing.
    with pytest.raises(ValueError, match="no scores after 1 tries of 0.1 seconds.*timed out"):
        RewardService(f"http://127.0.0.1:{silent.server_port}/", timeout=0.1, retries=0)(["a"], ["b"])
    silent.server_close()


@pytest.mark.parametrize("body", ["no json", "[1]", '{"score": [1]}', "3"])
def test_an_answer_of_another_form_is_quoted(serve, waits, body):
    with pytest.raises(ValueError, match='must answer with JSON like {"scores"'):
        RewardService(serve(scripted([(200, body)])))(["a"], ["b"])


def test_records_that_json_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="the records cannot be sent as JSON"):
        RewardService("http://127.0.0.1:1/")(["a"], ["b"], when=[object()])


@pytest.mark.parametrize("url", ["http://", "ftp://host/x", "host:8100", "http:///"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="expected an address as http://HOST:PORT/PATH"):
        RewardService(url)


def test_every_command_takes_a_service_as_its_judge(serve):
    url = serve(scripted([(200, json.dumps({"scores": [1, 2]}))]))
    assert load_judge(url, batch_size=8)(["a", "b"], ["c", "d"]) == [1.0, 2.0]
    short = serve(scripted([(200, json.dumps({"scores": [1]}))]))
    with pytest.raises(ValueError, match="must return a list of 2 numbers for 2 answers; got 1 numbers"):
        load_judge(short, batch_size=8)(["a", "b"], ["c", "d"])
