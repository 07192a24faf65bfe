"""What reaches the page: an ASGI middleware between the network and Gradio.

It answers requests for the names that the page is served under, from its own origin, by those who
may use it, to the routes that the page needs, with bodies of bounded size, and only about files of
their own session. Everything else ends here, so that none of it depends on Gradio's own checks.
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
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from sundae.common.naming import printable
from sundae.interactive.session_files import NOBODY, SessionFiles

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

LARGEST_UPLOAD = 50 * 2**20  # bytes of a request that uploads
LARGEST_BODY = 2**16  # bytes of any other request
_MOST_ITEMS = 2000  # JSON values of a request; Gradio keeps them for each open page
_MOST_FILES = 4  # named in one request; the page names at most three
_MOST_TABS = 10_000  # open pages that are remembered
_SESSION_AGE = 30 * 86400  # seconds that a browser remembers its session
_WRONG_PASSWORD_DELAY = 0.5  # seconds, one after the other for all clients together
_MOST_WRONG_PASSWORDS = 20  # that wait for their answer

_FILE, _UPLOAD = "/gradio_api/file=", "/gradio_api/upload"
_QUEUE_DATA, _HEARTBEAT = "/gradio_api/queue/data", "/gradio_api/heartbeat/"
_CALLS = ("/gradio_api/queue/join", "/gradio_api/run/predict")
_GETS = (
    *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *(_QUEUE_DATA, "/gradio_api/upload_progress"),
)
_GET_PREFIXES = ("/assets/", "/static/", _FILE, _HEARTBEAT)
_ROUTES = {"GET": _GETS, "HEAD": _GETS, "POST": (*_CALLS, _UPLOAD)}

# Keeps the browser from requesting anything of another host, whatever the page says, and other
# sites from embedding what is served here.
_RESPONSE_HEADERS: Headers = [
    (
        b"content-security-policy",
        b"default-src 'self' blob: data:; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Refused(Exception):  # noqa: N818 - an answer, no error of ours
    """A request that ends here.

    Attributes:
        status: of the HTTP response.
        reason: one line for its body.
        headers: further ones of the response.
    """

    def __init__(self, status: int, reason: str, headers: Headers | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or []


@dataclass(frozen=True)
class Access:
    """Who may use the page: whoever knows a password, or whoever opened a link with a token.

    Attributes:
        password: "USER:PASSWORD".
        token: a secret of the link.
    """

    password: str | None = None
    token: str | None = None


class Guard:
    """The middleware."""

    def __init__(
        self, app: App, *, names: HostNames, access: Access, files: SessionFiles, port: int
    ) -> None:
        """Wraps an application.

        Args:
            app: Gradio's.
            names: hosts that requests may be addressed to.
            access: who may use the page; everybody unless it has a password or a token.
            files: what may be read of the disk.
            port: that is listened at. Browsers send cookies to all ports of a host.
        """
        self.app, self.names, self.access, self.files = app, names, access, files
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
        request = _Request(scope)
        try:
            self._check_address(request)
            await self._check_access(request)
            _check_route(request)
            receive = await self._check_contents(request, receive)
        except Refused as refusal:
            await _answer(send, refusal)
            return
        response = _Response(send, self._response_headers(request))
        if request.path == _UPLOAD:
            response.then = partial(self._note_uploads, self._owner(request))
        client = _Client(receive)
        try:
            await self.app(_forwarded(scope), client, response)
        except Exception as error:  # of the protocol, such as an unknown session; handlers catch
            if not client.left:
                said = printable(f"warning: {request.method} {request.path}: {error!r}")
                print(said[:300], file=sys.stderr)
            await response.end()

    # -- whom it is addressed to, and who sent it -------------------------------------------------

    def _check_address(self, request: _Request) -> None:
        """DNS rebinding has a foreign Host, another site's page a foreign Origin."""
        host = request.header("host")
        if not self.names.include(host):
            raise Refused(403, "this page is not served under that host name; see --allow-host")
        origin = request.header("origin")
        if origin and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise Refused(403, "requests of other sites are refused")
        foreign = request.header("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and (request.path != "/" or request.header("sec-fetch-mode") != "navigate"):
            raise Refused(403, "requests of other sites are refused")

    async def _check_access(self, request: _Request) -> None:
        if self.access.token is not None:
            self._check_token(request, self.access.token)
        if self.access.password is not None:
            await self._check_password(request, self.access.password)

    def _check_token(self, request: _Request, token: str) -> None:
        """The token comes once, by the link, and from then on as a cookie."""
        if request.path == "/" and _same(request.parameter("token"), token):
            cookie = _set_cookie(self._access_cookie, token)  # until the browser is closed
            raise Refused(303, "", [(b"location", b"./"), cookie])
        if not _same(request.cookie(self._access_cookie), token):
            raise Refused(401, "open the link with the token, which the server printed")

    async def _check_password(self, request: _Request, password: str) -> None:
        given = _basic_credentials(request.header("authorization"))
        if given is not None and _same(given, password):
            return
        if given is not None:
            await self._delay_wrong_password()
        challenge = (b"www-authenticate", b'Basic realm="SUNDAE", charset="UTF-8"')
        raise Refused(401, "a user name and a password are needed", [challenge])

    async def _delay_wrong_password(self) -> None:
        if self._wrong_passwords >= _MOST_WRONG_PASSWORDS:
            raise Refused(429, "too many wrong passwords; try again in a while")
        self._wrong_passwords += 1
        try:
            async with self._wrong_password:
                await asyncio.sleep(_WRONG_PASSWORD_DELAY)
        finally:
            self._wrong_passwords -= 1

    # -- what it is about -------------------------------------------------------------------------

    async def _check_contents(self, request: _Request, receive: Receive) -> Receive:
        """Returns what the application shall receive from."""
        owner = self._owner(request)
        if request.path.startswith(_FILE):
            if not self.files.may_read(owner, request.path[len(_FILE) :]):
                raise Refused(403, "no such file of this session")
        elif request.path.startswith(_HEARTBEAT):
            self._check_tab(request.path[len(_HEARTBEAT) :], owner)
        elif request.path == _QUEUE_DATA:
            self._check_tab(request.parameter("session_hash"), owner)
        elif request.path == _UPLOAD:
            _check_length(request, LARGEST_UPLOAD)
        elif request.path in _CALLS:
            _check_length(request, LARGEST_BODY)
            body = await _read(receive, LARGEST_BODY)
            self._check_call(body, owner)
            return _replay(body, receive)
        return receive

    def _check_call(self, body: bytes, owner: str) -> None:
        try:
            call = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise Refused(400, "expected JSON") from None
        if not isinstance(call, dict):
            raise Refused(400, "expected a JSON object")
        self._check_tab(call.get("session_hash"), owner)
        paths = _file_paths(call)
        if len(paths) > _MOST_FILES:
            raise Refused(400, f"more than {_MOST_FILES} files in one request")
        if not all(isinstance(path, str) and self.files.may_read(owner, path) for path in paths):
            raise Refused(403, "no such file of this session")

    def _check_tab(self, session_hash: Any, owner: str) -> None:
        """What Gradio keeps for an open page is for the browser that opened it."""
        if session_hash is None:
            return
        if not (isinstance(session_hash, str) and re.fullmatch(r"[\w-]{1,64}", session_hash)):
            raise Refused(400, "expected a session hash")
        if self._owners.setdefault(session_hash, owner) != owner:
            raise Refused(403, "another session has this hash")
        self._owners.move_to_end(session_hash)
        if len(self._owners) > _MOST_TABS:
            self._owners.popitem(last=False)

    def _owner(self, request: _Request) -> str:
        return session_of(request.cookie(self._session_cookie))

    # -- what goes back ---------------------------------------------------------------------------

    def _response_headers(self, request: _Request) -> Headers:
        if request.path != "/" or self._owner(request) != NOBODY:
            return _RESPONSE_HEADERS
        session = f"{secrets.token_hex(16)}; Max-Age={_SESSION_AGE}"
        return [*_RESPONSE_HEADERS, _set_cookie(self._session_cookie, session)]

    def _note_uploads(self, owner: str, body: bytes) -> None:
        try:
            paths = json.loads(body)
        except ValueError:  # refused by Gradio
            return
        for path in paths if isinstance(paths, list) else ():
            self.files.add_upload(owner, str(path))


def session_cookie(port: int) -> str:
    """Name of the cookie that tells browsers apart."""
    return f"sundae-{port}"


def session_of(cookie: str | None) -> str:
    """The session that a cookie's value stands for; `NOBODY` without a cookie of ours."""
    return cookie if cookie and re.fullmatch("[0-9a-f]{32}", cookie) else NOBODY


class HostNames:
    """Names that a server is reached by.

    A name in a request that is not among them is a site's that wants to pass for this one (DNS
    rebinding). That takes a name: where the server listens at all addresses, each address will do.
    """

    def __init__(self, names: set[str], *, any_address: bool = False) -> None:
        """Names without a port, which a tunnel or a container may change."""
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


class _Request:
    """What the guard reads of a request."""

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        query = scope.get("query_string", b"").decode("latin-1")
        self._query = parse_qs(query, keep_blank_values=True)
        self._headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._headers.setdefault(name.decode("latin-1").lower(), []).append(
                value.decode("latin-1")
            )

    def header(self, name: str) -> str:
        """The value of a header, "" where it is missing; refuses a request that has several."""
        values = self._headers.get(name, [""])
        if len(values) > 1:
            raise Refused(400, f"more than one {name}")
        return values[0]

    def parameter(self, name: str) -> str | None:
        """The value of a parameter of the query; refuses a request that has several."""
        values = self._query.get(name, [None])
        if len(values) > 1:  # of which Gradio would take another one
            raise Refused(400, f"more than one {name}")
        return values[0]

    def cookie(self, name: str) -> str | None:
        """The value of a cookie."""
        # Other programs on this host may set cookies that http.cookies cannot parse.
        pairs = self.header("cookie").split(";")
        cookies = dict(pair.strip().partition("=")[::2] for pair in pairs)
        return cookies.get(name)


class _Client:
    """Passes on what a client sends.

    Attributes:
        left: it has closed the connection.
    """

    def __init__(self, receive: Receive) -> None:
        self.left = False
        self._receive = receive

    async def __call__(self) -> Message:
        message = await self._receive()
        self.left = message["type"] == "http.disconnect"
        return message


class _Response:
    """Passes an answer on.

    Attributes:
        then: called with the whole body before its end is passed on; the body is collected for it.
    """

    def __init__(self, send: Send, headers: Headers) -> None:
        """headers: added to those of the answer."""
        self.then: Callable[[bytes], None] | None = None
        self._send, self._headers = send, headers
        self._body = bytearray()
        self._started = self._ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": [*_without_cors(message), *self._headers]}
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body")
            if self.then is not None:
                self._body += message.get("body", b"")
                if self._ended:
                    self.then(bytes(self._body))
        await self._send(message)

    async def end(self) -> None:
        """Completes an answer that broke off."""
        with suppress(Exception):  # it cannot be completed; the server closes the connection
            if not self._started:
                await _answer(self._send, Refused(500, "that did not work"))
            elif not self._ended:
                await self._send({"type": "http.response.body", "body": b""})


def _check_route(request: _Request) -> None:
    allowed = _ROUTES.get(request.method, ())
    is_get = request.method in ("GET", "HEAD")
    if request.path in allowed or (is_get and request.path.startswith(_GET_PREFIXES)):
        return
    raise Refused(404, "there is nothing here")


def _check_length(request: _Request, most: int) -> None:
    length = request.header("content-length")
    if not length.isdecimal() or request.header("transfer-encoding"):  # which would prevail
        raise Refused(411, "expected a Content-Length and no Transfer-Encoding")
    if int(length) > most:
        raise Refused(413, f"at most {most:,} bytes are accepted")


async def _read(receive: Receive, most: int) -> bytes:
    """The whole body, at most so many bytes."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request broke off")
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(413, f"at most {most:,} bytes are accepted")
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read once more, and then what follows it."""
    pending = [body]

    async def replayed() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replayed


def _file_paths(value: Any) -> list[Any]:
    """What stands under "path" anywhere in JSON values: Gradio takes each for a file."""
    items, paths = [value], []
    for item in items:  # which grow meanwhile
        if isinstance(item, dict):
            paths += [item["path"]] if item.get("path") is not None else []
            items += item.values()
        elif isinstance(item, list):
            items += item
        if len(items) > _MOST_ITEMS:
            raise Refused(413, f"at most {_MOST_ITEMS:,} values are accepted")
    return paths


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _basic_credentials(header: str) -> str | None:
    """ "Basic dXNlcjpwYXNz" -> "user:pass"; None for anything else."""
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8")
    except ValueError:
        return ""


def _same(given: str | None, secret: str) -> bool:
    """Compares in a time that does not tell how much of it is right."""
    return given is not None and hmac.compare_digest(given.encode(), secret.encode())


def _set_cookie(name: str, value: str) -> tuple[bytes, bytes]:
    # With Strict, a link in a message would open the page without them.
    return b"set-cookie", f"{name}={value}; Path=/; HttpOnly; SameSite=Lax".encode()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _forwarded(scope: Scope) -> Scope:
    """A request as Gradio gets it, without headers that would make it do what nobody needs."""
    dropped = {b"x-forwarded-host", b"x-gradio-server"}  # would lead the page's links elsewhere
    if scope["path"].startswith("/gradio_api/"):
        # Answers are read here on their way out, and those to Range echo the request's headers.
        dropped |= {b"accept-encoding", b"range"}
    return {**scope, "headers": [h for h in scope["headers"] if h[0] not in dropped]}


def _without_cors(message: Message) -> Headers:
    """Gradio would let other pages of this machine read its answers."""
    return [h for h in message.get("headers", ()) if not h[0].startswith(b"access-control-")]


async def _answer(send: Send, refusal: Refused) -> None:
    body = f"{refusal.reason}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *_RESPONSE_HEADERS,
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
