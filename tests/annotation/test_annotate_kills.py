"""The server killed at random moments while somebody ranks: nothing acknowledged is lost, nothing doubled."""

import http.client
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import pytest
from annotate_client import Client
from annotation_place import records, write

from pangu_trl.annotation.store import read_decisions

pytest.importorskip("starlette", reason="the page is an extra: pip install 'pangu_trl[annotate]'")
pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS") or 100)
SEED = int(os.environ.get("SEED") or 0) or random.randrange(1, 1 << 30)


def _start(answers, port):
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pangu_trl.cli import main; sys.exit(main())", "annotate"]
        + [str(answers), "--annotator", "ann", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    link = process.stdout.readline().strip()
    assert link, "the server did not come up again"
    return process, link


class _Writer(threading.Thread):
    """Ranks until it is stopped; now and then takes the last decision back."""

    def __init__(self, link, draw):
        super().__init__()
        self.client, self.draw, self.stopped = Client(link), draw, False
        # By the server's number of each decision: the ranks as shown that were acknowledged.
        self.acknowledged, self.undone, self.sent_again, self.failed = {}, set(), 0, None

    def run(self):
        try:
            state = self._until_answered("state")
            while not self.stopped and state["page"] is not None:
                ranks = self.draw.sample(range(1, 4), 3)
                request = f"{self.draw.getrandbits(60):015x}"
                said = {"annotator": "ann", "request": request, "page": state["page"]["id"], "seconds": 0.1}
                state = self._until_answered("decision", said | {"ranks": ranks})
                self.acknowledged[state["last"]] = ranks
                if self.draw.random() < 0.1:
                    number = state["last"]
                    state = self._until_answered("undo", {"annotator": "ann", "number": number})
                    self.undone.add(number)
        except Exception as error:
            self.failed = error

    def _until_answered(self, path, said=None):
        while True:
            try:
                status, content = self.client.ask(path, said)
            except (OSError, http.client.HTTPException):
                self.sent_again += 1
                time.sleep(0.01)
                continue
            if path == "undo" and status == 409:
                # The answer to the first call was lost.
                return content["state"]
            assert status == 200, content
            return content


@pytest.mark.timeout(3600)
def test_a_hundred_kills_lose_and_double_nothing(place):
    print(f"SEED={SEED}")
    write(place.path, records(4_000, 3))
    process, link = _start(place.path, 0)
    draw = random.Random(SEED)
    writer = _Writer(link, random.Random(SEED + 1))
    writer.start()
    try:
        for _ in range(KILLS):
            # After some more decisions, however slow the machine is, and somewhere in the next one.
            enough = len(writer.acknowledged) + draw.randrange(8)
            while len(writer.acknowledged) < enough and writer.is_alive():
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process, _ = _start(place.path, urlsplit(link).port)
    finally:
        writer.stopped = True
        writer.join(120)
        process.kill()
        process.wait()
    assert writer.failed is None, repr(writer.failed)
    # It was in the middle of something when the server went.
    assert writer.sent_again >= KILLS / 2 and len(writer.acknowledged) > KILLS
    kept = dict(_kept(place.store))
    assert kept.keys() >= writer.acknowledged.keys() - writer.undone
    for number, ranks in writer.acknowledged.items():
        if number not in writer.undone:
            assert kept[number] == ranks
    # What was taken back counts no longer, and nothing else is there.
    assert kept.keys() == writer.acknowledged.keys() - writer.undone
    prompts = [decision.prompt for decision in read_decisions(place.store)]
    assert len(prompts) == len(set(prompts)) == len(kept)
    print(f"{len(kept)} decisions, {len(writer.undone)} undone, {writer.sent_again} requests sent again")


def _kept(path):
    """Numbers of the decisions that hold, and their ranks in the order shown."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT number, ranks, shown FROM decisions WHERE undone_at IS NULL")
        for number, ranks, shown in rows.fetchall():
            yield number, [json.loads(ranks)[index] for index in json.loads(shown)]
