"""Time from a decision to the next prompt, with several annotators on one `pangu-trl annotate` at once.

    python benchmarks/annotate.py

Makes an answers file, starts the server on 127.0.0.1, and has each annotator rank prompts over HTTP: first with a pause
between prompts that is short for a person, then without any. It ends after `--decisions` of each annotator, or after
`--seconds` in each of the two.
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

WORDS = "the of and to in is that it was for on are as with his they at be this from have or by one had not but".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotators", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--answers", type=int, default=8, help="to each prompt (default: %(default)s)")
    parser.add_argument("--words", type=int, default=150, help="of each answer (default: %(default)s)")
    parser.add_argument("--decisions", type=int, default=50, help="of each annotator, with and without pauses")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between prompts (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=90, help="at most, with and without (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "answers.jsonl")
        _write(path, args)
        names = [f"annotator-{number}" for number in range(args.annotators)]
        options = [word for name in names for word in ("--annotator", name)]
        began = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-c", "import sys; from pangu_trl.cli import main; sys.exit(main())"]
            + ["annotate", str(path), "--port", "0", "--overlap", "0.1", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            links = {name: server.stdout.readline().split()[-1] for name in names}
            size = path.stat().st_size / 1e6
            print(f"{args.prompts} prompts of {args.answers} answers, {size:.0f} MB, {args.annotators} annotators")
            print(f"until the links were printed: {time.perf_counter() - began:.1f} s")
            for label, pause in ((f"a pause of {args.pause} s", args.pause), ("no pause", 0.0)):
                _report(label, _measure(links, args.decisions, pause, args.answers, args.seconds))
        finally:
            server.kill()
            server.wait()


def _write(path: Path, args: argparse.Namespace) -> None:
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(args.prompts):
            answers = [" ".join(draw.choices(WORDS, k=args.words)) for _ in range(args.answers)]
            file.write(json.dumps({"prompt": f"question {number}", "responses": answers}) + "\n")


def _measure(links: dict[str, str], num_decisions: int, pause: float, num_answers: int, limit: float) -> list[float]:
    """Seconds of every request that sent a decision and got the next prompt."""
    seconds: list[float] = []
    threads = [
        threading.Thread(target=_annotate, args=(name, link, num_decisions, pause, num_answers, limit, seconds))
        for name, link in links.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def _annotate(
    name: str, link: str, num_decisions: int, pause: float, num_answers: int, limit: float, seconds: list[float]
) -> None:
    end = time.perf_counter() + limit
    draw = random.Random(f"{name} {pause}")
    connection = http.client.HTTPConnection(urlsplit(link).netloc, timeout=60)
    connection.request("GET", f"/?{urlsplit(link).query}")
    answer = connection.getresponse()
    answer.read()
    cookie = answer.headers["set-cookie"].partition(";")[0]
    state = _ask(connection, cookie, "state")
    for _ in range(num_decisions):
        if time.perf_counter() > end or state["page"] is None:
            break
        # Not all at the same moment.
        time.sleep(pause * draw.uniform(0.5, 1.5))
        ranks = draw.sample(range(1, num_answers + 1), num_answers)
        said = {"annotator": name, "page": state["page"]["id"], "ranks": ranks, "seconds": pause}
        began = time.perf_counter()
        state = _ask(connection, cookie, "decision", said | {"request": f"{draw.getrandbits(64):016x}"})
        seconds.append(time.perf_counter() - began)


def _ask(connection: http.client.HTTPConnection, cookie: str, path: str, said: object = None) -> dict:
    headers = {"cookie": cookie, "content-type": "application/json"}
    body = None if said is None else json.dumps(said)
    connection.request("GET" if said is None else "POST", f"/api/{path}", body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {content[:200]!r}")
    return json.loads(content)


def _report(label: str, seconds: list[float]) -> None:
    ordered = sorted(1000 * each for each in seconds)
    print(
        f"{label}: {len(ordered)} decisions; to the next prompt median {statistics.median(ordered):.0f} ms, "
        f"95% {ordered[int(0.95 * len(ordered))]:.0f} ms, longest {ordered[-1]:.0f} ms"
    )


if __name__ == "__main__":
    main()
