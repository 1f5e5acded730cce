"""Who may come in to the page: requests that name this server, come from its own page, and bring a session."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .address import Address
from .store import Store

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
SESSION_DAYS = 30
_ENTRANCE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=./">'
    '<title>pangu-trl annotate</title><link rel="icon" href="icon.svg" type="image/svg+xml">'
    '<a href="./">Go on to the page</a>'
)


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


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
