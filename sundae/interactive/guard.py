"""What reaches the page: an ASGI middleware between the network and Gradio.

It passes on requests that name a host of the page, come from its own origin and from a permitted
user, go to a route that the page needs, have a body of bounded size, and name files of their own
session only. All others end here, so that none of this depends on Gradio's own checks.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import json
import re
import secrets
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sundae.common.naming import printable
from sundae.interactive.session_files import NOBODY, SessionFiles

MAX_UPLOAD = 50 * 2**20  # bytes of a request that uploads
_MAX_BODY = 2**16  # bytes of any other request
_MAX_VALUES = 2000  # JSON values of a request; Gradio stores them for each open page
_MAX_FILES = 4  # named in one request; the page names at most three
_MAX_TABS = 10_000  # open pages that are remembered
_SESSION_AGE = 30 * 86400  # seconds that a browser remembers its session
_WRONG_PASSWORD_DELAY = 0.5  # seconds, one after the other for all clients together
_MAX_WRONG_PASSWORDS = 20  # delayed at the same time

_FILE, _UPLOAD = "/gradio_api/file=", "/gradio_api/upload"
_QUEUE_DATA, _HEARTBEAT = "/gradio_api/queue/data", "/gradio_api/heartbeat/"
_CALLS = ("/gradio_api/queue/join", "/gradio_api/run/predict")
_GETS = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *(_QUEUE_DATA, "/gradio_api/upload_progress"),
)
_GET_PREFIXES = ("/assets/", "/static/", _FILE, _HEARTBEAT)
_ROUTES = {"GET": _GETS, "HEAD": _GETS, "POST": (*_CALLS, _UPLOAD)}

# The browser requests nothing of another host, whatever the page says, and other sites cannot embed
# what is served here.
_RESPONSE_HEADERS = {
    "content-security-policy": (
        "default-src 'self' blob: data:; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class HostNames:
    """Names that a server is reached by, without a port, which a tunnel or a container may change.

    Any other name in a request belongs to a site that poses as this one (DNS rebinding). An address
    cannot be rebound: a server that listens at all addresses accepts each (`any_address`).
    """

    def __init__(self, names: set[str], *, any_address: bool = False) -> None:
        self._names = {name.lower().rstrip(".") for name in names}
        self._any_address = any_address

    def include(self, host: str) -> bool:
        """Whether a Host header is one of them."""
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = (match["address"] or match["name"]).rstrip(".")
        return name in self._names or (self._any_address and _is_address(name))


# "name", "name:80", "[::1]" or "[::1]:80", and nothing that some parser takes for more.
_HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[\w.-]+))(:[0-9]+)?", re.ASCII)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def session_cookie(port: int) -> str:
    """Name of the cookie that tells browsers apart; a host's ports share its cookies."""
    return f"sundae-{port}"


def session_of(cookie: str | None) -> str:
    """The session that the value of the session cookie stands for; `NOBODY` without a valid one."""
    return cookie if cookie and re.fullmatch("[0-9a-f]{32}", cookie) else NOBODY


class Guard:
    """The middleware.

    Args:
        app: Gradio's application.
        names: hosts that requests may be addressed to.
        files: what may be read of the disk.
        port: port of the server.
        password: "USER:PASSWORD". Without it and a token, everybody may use the page.
        token: secret of the link that opens the page.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        names: HostNames,
        files: SessionFiles,
        port: int,
        password: str | None = None,
        token: str | None = None,
    ) -> None:
        self.app, self.names, self.files = app, names, files
        self._password, self._token = password, token
        self._session_cookie, self._access_cookie = session_cookie(port), f"sundae-access-{port}"
        self._owners: OrderedDict[str, str] = OrderedDict()  # of Gradio's session hashes
        self._wrong_password = asyncio.Lock()
        self._wrong_passwords = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no web socket
            await send({"type": "websocket.close", "code": 1008})
            return
        request = _Request(scope, receive)
        try:
            self._check_address(request)
            if self._token is not None:
                self._check_token(request, self._token)
            if self._password is not None:
                await self._check_password(request, self._password)
            _check_route(request)
            body = await self._check_contents(request)
        except ClientDisconnect:
            return
        except HTTPException as refusal:
            await _response(refusal)(scope, receive, send)
            return
        exchange = _Exchange(self, request, send, body)
        try:
            await self.app(_forwarded(scope), exchange.receive, exchange.send)
        except Exception as error:  # of the protocol, such as an unknown session; handlers catch
            if not exchange.left:
                line = printable(f"warning: {request.method} {request.path}: {error!r}")
                print(line[:300], file=sys.stderr)
            await exchange.end()

    # -- address and access -----------------------------------------------------------------------

    def _check_address(self, request: _Request) -> None:
        """DNS rebinding has a foreign Host, another site's page a foreign Origin."""
        host = request.header("host")
        if not self.names.include(host):
            raise HTTPException(
                403, "this page is not served under that host name; see --allow-host"
            )
        origin = request.header("origin").lower()
        foreign = origin not in ("", f"http://{host.lower()}", f"https://{host.lower()}")
        if request.header("sec-fetch-site") in ("cross-site", "same-site"):
            is_link = request.path == "/" and request.header("sec-fetch-mode") == "navigate"
            foreign |= not is_link
        if foreign:
            raise HTTPException(403, "requests of other sites are refused")

    def _check_token(self, request: _Request, token: str) -> None:
        """The token comes once, by the link, and from then on as a cookie."""
        if request.path == "/" and _equal(request.parameter("token"), token):
            cookie = _cookie(self._access_cookie, token)  # until the browser is closed
            raise HTTPException(303, "", {"location": "./", "set-cookie": cookie})
        if not _equal(request.cookie(self._access_cookie), token):
            raise HTTPException(401, "open the link with the token, which the server printed")

    async def _check_password(self, request: _Request, password: str) -> None:
        given = _basic_credentials(request.header("authorization"))
        if _equal(given, password):
            return
        if given is not None:
            await self._delay_wrong_password()
        challenge = {"www-authenticate": 'Basic realm="SUNDAE", charset="UTF-8"'}
        raise HTTPException(401, "a user name and a password are needed", challenge)

    async def _delay_wrong_password(self) -> None:
        if self._wrong_passwords >= _MAX_WRONG_PASSWORDS:
            raise HTTPException(429, "too many wrong passwords; try again in a while")
        self._wrong_passwords += 1
        try:
            async with self._wrong_password:
                await asyncio.sleep(_WRONG_PASSWORD_DELAY)
        finally:
            self._wrong_passwords -= 1

    # -- contents ---------------------------------------------------------------------------------

    async def _check_contents(self, request: _Request) -> bytes | None:
        """Returns the request's body where it has been read."""
        owner, path = self.owner(request), request.path
        if path.startswith(_FILE):
            self._check_files([path.removeprefix(_FILE)], owner)
        elif path.startswith(_HEARTBEAT):
            self._check_tab(path.removeprefix(_HEARTBEAT), owner)
        elif path == _QUEUE_DATA:
            self._check_tab(request.parameter("session_hash"), owner)
        elif path == _UPLOAD:
            _check_length(request, MAX_UPLOAD)
        elif path in _CALLS:
            _check_length(request, _MAX_BODY)
            body = await _read_body(request)
            self._check_call(body, owner)
            return body
        return None

    def _check_call(self, body: bytes, owner: str) -> None:
        try:
            call = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise HTTPException(400, "expected JSON") from None
        if not isinstance(call, dict):
            raise HTTPException(400, "expected a JSON object")
        self._check_tab(call.get("session_hash"), owner)
        paths = _file_paths(call)
        if len(paths) > _MAX_FILES:
            raise HTTPException(400, f"more than {_MAX_FILES} files in one request")
        self._check_files(paths, owner)

    def _check_files(self, paths: list[Any], owner: str) -> None:
        if not all(isinstance(path, str) and self.files.may_read(owner, path) for path in paths):
            raise HTTPException(403, "no such file of this session")

    def _check_tab(self, session_hash: Any, owner: str) -> None:
        """What Gradio stores for an open page belongs to the browser that opened it."""
        if session_hash is None:
            return
        if not (isinstance(session_hash, str) and re.fullmatch(r"[\w-]{1,64}", session_hash)):
            raise HTTPException(400, "expected a session hash")
        if self._owners.setdefault(session_hash, owner) != owner:
            raise HTTPException(403, "another session has this hash")
        self._owners.move_to_end(session_hash)
        if len(self._owners) > _MAX_TABS:
            self._owners.popitem(last=False)

    # -- responses --------------------------------------------------------------------------------

    def owner(self, request: _Request) -> str:
        """The session of the browser that sent a request."""
        return session_of(request.cookie(self._session_cookie))

    def response_headers(self, request: _Request) -> dict[str, str]:
        """Headers that the response gets, with a session for a browser that has none."""
        if request.path != "/" or self.owner(request) != NOBODY:
            return _RESPONSE_HEADERS
        session = f"{secrets.token_hex(16)}; Max-Age={_SESSION_AGE}"
        return _RESPONSE_HEADERS | {"set-cookie": _cookie(self._session_cookie, session)}

    def note_uploads(self, request: _Request, response: bytes) -> None:
        """Makes the session that uploaded files their owner."""
        try:
            paths = json.loads(response)
        except ValueError:  # refused by Gradio
            return
        for path in paths if isinstance(paths, list) else ():
            self.files.add_upload(self.owner(request), str(path))


class _Request(Request):
    """A request; one that gives a value more than once, which Gradio may read otherwise, ends."""

    @property
    def path(self) -> str:
        """The decoded path, by which Gradio finds the route; `url.path` is quoted again."""
        path: str = self.scope["path"]
        return path

    def header(self, name: str) -> str:
        """The value of a header, "" where it is missing."""
        return _single(self.headers.getlist(name), name) or ""

    def parameter(self, name: str) -> str | None:
        """The value of a parameter of the query."""
        return _single(self.query_params.getlist(name), name)

    def cookie(self, name: str) -> str | None:
        """The value of a cookie."""
        self.header("cookie")
        return self.cookies.get(name)


def _single(values: list[str], name: str) -> str | None:
    if len(values) > 1:
        raise HTTPException(400, f"more than one {name}")
    return values[0] if values else None


class _Exchange:
    """A request on its way to the application and the response on its way back.

    Attributes:
        left: whether the client has closed the connection.
    """

    def __init__(self, guard: Guard, request: _Request, send: Send, body: bytes | None) -> None:
        self.left = False
        self._guard, self._request, self._send = guard, request, send
        self._pending = body  # of the request, where it has been read
        self._body = bytearray()  # of the response to an upload
        self._started = self._ended = False

    async def receive(self) -> Message:
        if self._pending is not None:
            body, self._pending = self._pending, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._request.receive()
        self.left = message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            # Gradio would let other pages of this machine read its responses.
            raw = [h for h in message.get("headers", ()) if not h[0].startswith(b"access-control-")]
            headers = MutableHeaders(raw=raw)
            for name, value in self._guard.response_headers(self._request).items():
                headers.append(name, value)
            message = {**message, "headers": headers.raw}
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body")
            if self._request.path == _UPLOAD:
                self._body += message.get("body", b"")
                if self._ended:  # before the client knows the paths
                    self._guard.note_uploads(self._request, bytes(self._body))
        await self._send(message)

    async def end(self) -> None:
        """Completes a response that broke off."""
        with suppress(Exception):  # it cannot be completed; the server closes the connection
            if not self._started:
                refusal = _response(HTTPException(500, "that did not work"))
                await refusal(self._request.scope, self._request.receive, self._send)
            elif not self._ended:
                await self._send({"type": "http.response.body", "body": b""})


def _check_route(request: _Request) -> None:
    if request.path in _ROUTES.get(request.method, ()):
        return
    if request.method not in ("GET", "HEAD") or not request.path.startswith(_GET_PREFIXES):
        raise HTTPException(404, "there is nothing here")


def _check_length(request: _Request, limit: int) -> None:
    length = request.header("content-length")
    if not length.isdecimal() or request.header("transfer-encoding"):  # which would prevail
        raise HTTPException(411, "expected a Content-Length and no Transfer-Encoding")
    if int(length) > limit:
        raise HTTPException(413, f"at most {limit:,} bytes are accepted")


async def _read_body(request: _Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise HTTPException(413, f"at most {_MAX_BODY:,} bytes are accepted")
    return bytes(body)


def _file_paths(value: Any) -> list[Any]:
    """What stands under "path" anywhere in JSON values: Gradio takes each for a file."""
    items, paths = [value], []
    for item in items:  # which grow meanwhile
        if isinstance(item, dict):
            paths += [item["path"]] if item.get("path") is not None else []
            items += item.values()
        elif isinstance(item, list):
            items += item
        if len(items) > _MAX_VALUES:
            raise HTTPException(413, f"at most {_MAX_VALUES:,} values are accepted")
    return paths


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _basic_credentials(header: str) -> str | None:
    """ "Basic dXNlcjpwYXNz" -> "user:pass"; None for another scheme, "" for what is malformed."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8")
    except ValueError:
        return ""


def _equal(given: str | None, secret: str) -> bool:
    """Compares in a time that does not tell how much of it is right."""
    return given is not None and hmac.compare_digest(given.encode(), secret.encode())


def _cookie(name: str, value: str) -> str:
    # With Strict, a link in a message would open the page without it.
    return f"{name}={value}; Path=/; HttpOnly; SameSite=Lax"


def _forwarded(scope: Scope) -> Scope:
    """A request as Gradio gets it, without headers whose effects the page does not need."""
    dropped = {b"x-forwarded-host", b"x-gradio-server"}  # would lead the page's links elsewhere
    if scope["path"].startswith("/gradio_api/"):
        # Responses are read here, and those to Range repeat the request's headers.
        dropped |= {b"accept-encoding", b"range"}
    return {**scope, "headers": [h for h in scope["headers"] if h[0] not in dropped]}


def _response(refusal: HTTPException) -> PlainTextResponse:
    headers = {"cache-control": "no-store", **_RESPONSE_HEADERS, **(refusal.headers or {})}
    return PlainTextResponse(f"{refusal.detail}\n", refusal.status_code, headers)
