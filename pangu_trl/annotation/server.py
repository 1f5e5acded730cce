"""The web server of the page: what may be asked, by whom the door lets in, and nothing else.

Starlette with uvicorn, not NiceGUI: three small packages instead of thirty-five (the third is anyio, which the hub's
client brings), and every byte that reaches the browser is a file of this folder. NiceGUI's pages need inline scripts
and a socket that stays open, which neither a strict Content-Security-Policy nor a restart of the server would survive.
"""

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .address import Address
from .desk import Desk, Elsewhere, Refusal
from .door import Doorkeeper

# All that is served besides /api/, each by its own name: no path leads anywhere else.
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/words.json": ("words.json", "application/json"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in (
            "main",
            "board",
            "cards",
            "clock",
            "differences",
            "dragging",
            "keys",
            "markdown",
            "ranking",
            "server",
            "words",
        )
    },
}
LARGEST_BODY = 1 << 20


def make_app(desk: Desk, address: Address, annotators: Sequence[str]) -> Doorkeeper:
    """The whole server; its `tokens` are for the links."""

    async def state(request: Request) -> Response:
        return _json(await run_in_threadpool(desk.state, request.scope["annotator"]))

    async def config(request: Request) -> Response:
        scored = [
            {"name": one.name, "words": one.words, "from": one.lowest, "to": one.highest} for one in desk.attributes
        ]
        return _json({"attributes": scored})

    async def piece(request: Request) -> Response:
        asked = request.query_params
        try:
            which, part, start = (int(asked.get(name, "")) for name in ("which", "part", "start"))
        except ValueError:
            return _json({"error": "which, part and start must be whole numbers"}, 422)
        return await _answered(desk.piece, request, asked.get("page", ""), which, part, start)

    def action(does: Callable[[str, Mapping[str, Any]], None]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            return await _act(desk, does, request)

        return answer

    routes = [
        *(Route(path, _page_file(*served), methods=["GET"]) for path, served in PAGE_FILES.items()),
        Route("/api/state", state, methods=["GET"]),
        Route("/api/config", config, methods=["GET"]),
        Route("/api/piece", piece, methods=["GET"]),
        Route("/api/decision", action(desk.decide), methods=["POST"]),
        Route("/api/undo", action(lambda name, said: desk.undo(name, said.get("number"))), methods=["POST"]),
        Route("/api/skipped", action(lambda name, said: desk.ask_skipped_again(name)), methods=["POST"]),
    ]
    return Doorkeeper(Starlette(routes=routes), address, desk.store, annotators)


class Server:
    """A server that has its port before it is asked for its links.

    Args:
        app: What `make_app` gave.
        address: Where to listen.

    Raises:
        OSError: The port is taken or the address is none of this machine.
    """

    def __init__(self, app: Doorkeeper, address: Address) -> None:
        self.app = app
        try:
            family, _, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(place)
            # From here on whoever has the link waits, and is not turned away.
            self._socket.listen(128)
        except OSError as error:
            raise OSError(
                f"cannot listen on {address.host} port {address.port} ({error.strerror or error}); choose another "
                "--port, or 0 for one that is free"
            ) from error
        link = address.link(self._socket.getsockname()[1])
        self.links = {name: f"{link}?token={quote(token)}" for name, token in app.tokens.items()}

    def run(self) -> None:
        """Serves until Ctrl-C or SIGTERM."""
        config = uvicorn.Config(
            self.app,
            log_level="warning",
            # It would write tokens into logs.
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=3,
        )
        try:
            _Quiet(config).run(sockets=[self._socket])
        finally:
            self._socket.close()


class _Quiet(uvicorn.Server):
    """uvicorn that ends after a signal instead of sending it to itself once more: there is work to do afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _act(desk: Desk, does: Callable[[str, Mapping[str, Any]], None], request: Request) -> Response:
    """Does what a page asks for, and answers with what it has to show now."""
    annotator = request.scope["annotator"]
    said = await _body(request)
    if not isinstance(said, dict):
        return _json({"error": f"must be one JSON object of {LARGEST_BODY} bytes at most"}, 422)
    if said.get("annotator") != annotator:
        # Another link was opened in this browser since.
        return _json({"error": f"this browser is {annotator}'s by now", "signed_in_as": annotator}, 409)

    def act() -> tuple[dict[str, Any], int]:
        try:
            does(annotator, said)
        except Elsewhere as error:
            return {"error": str(error), "state": desk.state(annotator)}, 409
        return desk.state(annotator), 200

    return await _answered(act)


async def _answered(function: Callable[..., Any], request: Request | None = None, *arguments: Any) -> Response:
    if request is not None:
        arguments = (request.scope["annotator"], *arguments)
    try:
        answer = await run_in_threadpool(function, *arguments)
    except Elsewhere as error:
        return _json({"error": str(error)}, 409)
    except Refusal as error:
        return _json({"error": str(error)}, 422)
    return _json(*answer) if isinstance(answer, tuple) else _json(answer)


async def _body(request: Request) -> Any:
    """The JSON of a request; None if it is none, too long, or sent by a form of another site."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return None
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > LARGEST_BODY:
            return None
    try:
        return json.loads(read)
    except (ValueError, RecursionError):
        return None


def _page_file(name: str, kind: str) -> Callable[[Request], Response]:
    content = resources.files(__package__).joinpath("page", name).read_bytes()
    return lambda request: Response(content, media_type=kind)


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")
