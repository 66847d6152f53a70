"""What every request passes first: its host, its origin, its token, its size."""

import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 33 << 20  # of a request: a picture of 32 MiB and its fields
DRAINED_BYTES = 8 * BODY_BYTES  # that are still read of a larger one, so that its sender listens
LOOPBACK = ("localhost", "127.0.0.1", "::1")
COOKIE_SECONDS = 30 * 24 * 3600

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:;"
    " style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

TOKEN_PAGE = Path(__file__).parent / "templates" / "token.html"  # asks for it


class _TooLarge(Exception):
    """The body of a request has too many bytes."""


def allowed_hosts(host: str, others: Iterable[str] = ()) -> frozenset[str]:
    """Return the names by which a server on a host may be asked.

    Args:
        host: that it is bound to.
        others: names that the caller knows of.

    >>> sorted(allowed_hosts("127.0.0.1", ["Lab.Example"]))
    ['127.0.0.1', '::1', 'lab.example', 'localhost']
    """
    names = {*LOOPBACK, host, *others}
    if is_everywhere(host):
        names.add(socket.gethostname())
    return frozenset(name.lower().strip("[]") for name in names)


def is_everywhere(host: str) -> bool:
    """Return whether a host stands for all addresses of the machine."""
    return host in ("", "0.0.0.0", "::")


class Guard:
    """Lets a request through to an application, or answers it with an error.

    Another site's page must not ask for the user who looks at it: a browser says in Host which name
    it was led by (DNS rebinding), and in Origin and Sec-Fetch-Site whose page asks.

    Args:
        host: that the server is bound to. hosts: further names that it is reached by.
        token: that a request must have: as `Authorization: Bearer`, or as `?token=`, which sets a
            cookie; None: none.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str = "127.0.0.1",
        hosts: Iterable[str] = (),
        token: str | None = None,
    ) -> None:
        self._app = app
        self._hosts, self._any_address = allowed_hosts(host, hosts), is_everywhere(host)
        self._token = None if token is None else _digest(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = self._given_tokens(scope, headers)
        if not self._is_host_allowed(headers.get("host", "")):
            await _refuse(
                send,
                403,
                "host: this name is not one of the server's; ask by the address"
                " that it printed, or start it with --allow-host NAME",
            )
        elif not _is_own_page(headers):
            await _refuse(send, 403, "origin: the page of another site asks; open the server's own")
        elif self._token is not None and not any(map(self._is_token, given.values())):
            await self._ask_for_token(scope, send)
        elif self._token and self._is_token(given["query"]) and _is_page(scope):
            await _redirect(scope, send, f"{_cookie_name(scope)}={self._token}")
        else:
            await self._pass_on(scope, headers, receive, send)

    def _is_host_allowed(self, host: str) -> bool:
        """Whether a Host header names this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self._hosts or (self._any_address and _is_address(name))

    def _is_token(self, digest: str) -> bool:
        """Whether a digest is that of the token; it takes as long for any."""
        return self._token is not None and hmac.compare_digest(digest, self._token)

    @staticmethod
    def _given_tokens(scope: Scope, headers: Headers) -> dict[str, str]:
        """The digests of the tokens that a request has: {where: digest}."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        # Python's own drops all where one, of another program on this host, is odd.
        value = cookie_parser(headers.get("cookie", "")).get(_cookie_name(scope), "")
        return {
            "header": _digest(bearer.strip() if scheme.lower() == "bearer" else ""),
            "query": _digest(query.get("token", "")),
            "cookie": value if value.isascii() else "",
        }

    @staticmethod
    async def _ask_for_token(scope: Scope, send: Send) -> None:
        """Answer that a token is needed: with a form for it, where a page was asked for."""
        if _is_page(scope):
            await _answer(send, 401, TOKEN_PAGE.read_bytes(), "text/html; charset=utf-8")
            return
        await _refuse(
            send,
            401,
            "token: give the server's, after Authorization: Bearer, or after ?token in the address",
        )

    async def _pass_on(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Have the application answer, unless the body is too large."""
        received, has_more = 0, True
        length = headers.get("content-length", "")
        too_large = length.isdecimal() and int(length) > BODY_BYTES

        async def counted() -> Message:
            nonlocal received, has_more, too_large
            message = await receive()
            received += len(message.get("body", b""))
            has_more = message.get("more_body", False)
            if received > BODY_BYTES:
                too_large = True
                raise _TooLarge
            return message

        async def guarded(message: Message) -> None:
            if too_large:
                return
            if message["type"] == "http.response.start":
                own = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in HEADERS.items():
                    own.setdefault(name, value)
            await send(message)

        if not too_large:
            with suppress(_TooLarge):
                await self._app(scope, counted, guarded)
        if too_large:
            if has_more:
                await _drain(receive, received)
            await _refuse(
                send,
                413,
                f"the request: more than {BODY_BYTES >> 20} MiB; give a smaller picture",
            )


async def _drain(receive: Receive, received: int) -> None:
    """Read what is left of a body, up to a limit: a client that still sends hears no answer."""
    while received <= DRAINED_BYTES:
        message = await receive()
        received += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _is_own_page(headers: Headers) -> bool:
    """Whether a request comes from no page, from one of this server, or opens one."""
    origin = headers.get("origin")
    if origin is not None:
        try:
            address = urlsplit(origin)
        except ValueError:
            return False
        return bool(address.netloc) and address.netloc.lower() == headers.get("host", "").lower()
    site = headers.get("sec-fetch-site", "none")
    return site in ("none", "same-origin") or headers.get("sec-fetch-mode") == "navigate"


def _is_address(name: str) -> bool:
    """Whether a name is an IP address, which no other site can have led to this machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_page(scope: Scope) -> bool:
    """Whether what is asked for is a page, not JSON."""
    return scope["method"] == "GET" and not scope["path"].startswith("/api/")


def _digest(token: str) -> str:
    """The SHA-256 hex of a token, which is as long for any."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _cookie_name(scope: Scope) -> str:
    """The name of the cookie, with the port: browsers share cookies among the ports of a host."""
    server = scope.get("server") or ("", 0)
    return f"gradindex-{server[1]}"


async def _redirect(scope: Scope, send: Send, cookie: str) -> None:
    """Lead on to the same page without its token, which becomes a cookie."""
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    query = urlencode([(name, value) for name, value in pairs if name != "token"])
    # One slash: with two the rest would be the name of another host.
    path = "/" + scope["path"].lstrip("/")
    location = path.encode("ascii", "ignore").decode() + (f"?{query}" if query else "")
    attributes = f"Path=/; HttpOnly; SameSite=Lax; Max-Age={COOKIE_SECONDS}"
    more = {"location": location, "set-cookie": f"{cookie}; {attributes}"}
    await _answer(send, 303, b"", "text/plain", more)


async def _refuse(send: Send, status: int, detail: str) -> None:
    """Answer with one line of JSON."""
    more = {"www-authenticate": "Bearer"} if status == 401 else {}
    await _answer(send, status, json.dumps({"detail": detail}).encode(), "application/json", more)


async def _answer(
    send: Send, status: int, body: bytes, kind: str, more: dict[str, str] | None = None
) -> None:
    """Send a whole answer."""
    fields = {**HEADERS, "content-type": kind, "content-length": str(len(body)), **(more or {})}
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
