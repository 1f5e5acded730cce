"""The web server of the page: who may come in, what may be asked, and nothing else.

Starlette with uvicorn, not NiceGUI: three small packages instead of thirty-five (the third is anyio, which the hub's
client brings), and every byte that reaches the browser is a file of this folder. NiceGUI's pages need inline scripts
and a socket that stays open, which neither a strict Content-Security-Policy nor a restart of the server would survive.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import json
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any
from urllib.parse import quote, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .desk import Desk, Elsewhere, Refusal
from .store import Store

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
HEADERS = {
    # Trusted Types: no script of ours can turn a text into HTML, even by mistake.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
LARGEST_BODY = 1 << 20
SESSION_DAYS = 30
_ENTRANCE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=./">'
    '<title>pangu-trl annotate</title><link rel="icon" href="icon.svg" type="image/svg+xml">'
    '<a href="./">Go on to the page</a>'
)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where the server listens, and how browsers call it.

    Attributes:
        host: The address that it listens on.
        port: The port; 0 takes a free one.
        public_url: What browsers see where a proxy stands between; None for the server itself.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    public_url: str | None = None

    def __post_init__(self) -> None:
        if self.public_url is not None:
            parts = urlsplit(self.public_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(
                    f"the public URL must be an address as https://rank.example.org/; got {self.public_url!r}"
                )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host == "localhost" or (_is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback)

    @property
    def is_encrypted(self) -> bool:
        """Whether browsers come by HTTPS."""
        return self.public_url is not None and self.public_url.startswith("https:")

    def link(self, port: int) -> str:
        """The page's address, with a slash at its end."""
        if self.public_url is not None:
            return self.public_url.rstrip("/") + "/"
        host = _own_address() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def admits(self, host: str, reached: str | None) -> bool:
        """Whether a request may name this host: by another name a foreign page would read what is ours (rebinding).

        Args:
            host: The name, without the port, which a tunnel may change.
            reached: Address of this machine that the request came in at.
        """
        names = {self.host.lower(), *LOOPBACK_NAMES}
        if self.public_url is not None:
            names.add(urlsplit(self.public_url).hostname)
        if not self.is_loopback:
            names |= {socket.gethostname().lower(), socket.getfqdn().lower(), (reached or "").lower()}
        return host.lower() in names


class Doorkeeper:
    """Lets a request through if it names this server, comes from its own page, and brings a session.

    Args:
        app: What is behind the door.
        address: How the server is called.
        store: Where sessions are kept, as digests.
        annotators: Who may come in.
    """

    def __init__(self, app: ASGIApp, address: Address, store: Store, annotators: Sequence[str]) -> None:
        self.app, self.address, self.store = app, address, store
        self.tokens = {name: secrets.token_urlsafe(24) for name in annotators}
        since = datetime.now(UTC) - timedelta(days=SESSION_DAYS)
        self._sessions = store.sessions(since.strftime("%Y-%m-%dT%H:%M:%SZ"))
        # Cookies know no ports: two servers on one machine need two names.
        self.cookie = f"pangu_annotate_{_digest(str(store.path.resolve()))[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            # No page of ours opens a socket.
            return await send({"type": "websocket.close", "code": 1008})

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in HEADERS.items()),
                ]
            await send(message)

        request = Request(scope, receive)
        refusal = self._refusal(request)
        if refusal is not None:
            return await PlainTextResponse(refusal, 403)(scope, receive, send_with_headers)
        token = request.query_params.get("token")
        if token is not None and scope["path"] == "/" and scope["method"] == "GET":
            response = await run_in_threadpool(self._let_in, token)
            return await response(scope, receive, send_with_headers)
        annotator = self._annotator(request.cookies.get(self.cookie, ""))
        if annotator is None:
            refusal = "403: this page opens by the link that `pangu-trl annotate` printed when it was started.\n"
            return await PlainTextResponse(refusal, 403)(scope, receive, send_with_headers)
        scope["annotator"] = annotator
        await self.app(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> str | None:
        hosts = request.headers.getlist("host")
        host = _host_name(hosts[0]) if len(hosts) == 1 else None
        reached = (request.scope.get("server") or (None,))[0]
        if host is None or not self.address.admits(host, reached):
            return "403: this server has another name; a proxy's is told to it with --public-url.\n"
        for origin in request.headers.getlist("origin"):
            public = self.address.public_url
            if origin != f"{request.scope['scheme']}://{hosts[0]}" and (public is None or origin != _origin(public)):
                return "403: the request comes from another site.\n"
        if (
            request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
            and request.scope["path"] != "/"
        ):
            return "403: the request comes from another site.\n"
        return None

    def _let_in(self, token: str) -> Response:
        found = None
        for name, expected in self.tokens.items():
            # All of them, so that the time tells nothing.
            if hmac.compare_digest(token.encode(), expected.encode()):
                found = name
        if found is None:
            return PlainTextResponse(
                "403: this link is of an earlier start. Use the one that `pangu-trl annotate` printed last.\n", 403
            )
        cookie = secrets.token_urlsafe(32)
        self.store.add_session(_digest(cookie), found)
        self._sessions[_digest(cookie)] = found
        # To the address without the token, which history and screenshots would keep. Not by a redirect: the browser
        # counts that as coming from wherever the link was clicked, and keeps a strict cookie back.
        response = HTMLResponse(_ENTRANCE)
        response.set_cookie(
            self.cookie,
            cookie,
            max_age=SESSION_DAYS * 86400,
            httponly=True,
            samesite="strict",
            secure=self.address.is_encrypted,
        )
        return response

    def _annotator(self, cookie: str) -> str | None:
        """Whose session it is; found by its digest, so that time tells nothing of the cookie."""
        annotator = self._sessions.get(_digest(cookie))
        return annotator if annotator in self.tokens else None


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


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()


def _host_name(header: str) -> str | None:
    """The name in a Host header, without port and brackets; None if it is no such thing."""
    try:
        parts = urlsplit(f"//{header}")
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == header and "@" not in header else None


def _own_address() -> str:
    """The address of this machine that others on its network reach; its name if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Asks the system for a way to there, an address for documentation, and sends nothing.
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
