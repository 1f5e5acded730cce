"""A reward service for PPO on other machines or in another environment: an example, of the standard library alone.

    python recipes/reward_server.py my-reward-model --port 8100
    accelerate launch ... recipes/ppo.py ... --reward_model http://HOST:8100/score

The reward is a trained reward model, or a function as path/to/file.py:function. What goes over the wire is said in
pangu_trl/answers/reward_service.py. It serves one request after the other, to whoever can reach the port: bind it to an
address that only the training can.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from pangu_trl.answers.judge import Judge, load_judge


def make_server(judge: Judge, host: str, port: int) -> HTTPServer:
    """A server whose every POST is answered with the judge's scores; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                scores = judge(request["prompts"], request["completions"], **request.get("columns", {}))
                self._answer(200, {"scores": scores})
            except (ValueError, KeyError, TypeError) as error:
                # Asking again would not help.
                self._answer(400, {"error": f"{type(error).__name__}: {error}"})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content, ensure_ascii=False).encode("utf-8")
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return HTTPServer((host, port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reward", help="folder or Hub id of a reward model, or path/to/file.py:function")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8100, help="port to listen on")
    parser.add_argument("--batch-size", type=int, default=8, help="answers that a model reads at a time")
    args = parser.parse_args()
    server = make_server(load_judge(args.reward, args.batch_size), args.host, args.port)
    print(f"Serving {args.reward} at http://{args.host}:{server.server_port}/score", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
