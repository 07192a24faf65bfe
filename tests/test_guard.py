"""What reaches the page, without Gradio: addresses, passwords, and what is told to a browser."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from sundae.interactive import guard as guard_module
from sundae.interactive.guard import Guard, HostNames
from sundae.interactive.session_files import SessionFiles

HOST = "127.0.0.1:7860"


class App:
    """Answers every request with what it received, as Gradio would."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.answer = b"{}"
        self.fails_after: int | None = None  # so many messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = list(scope["headers"])
        self.bodies.append((await receive()).get("body", b""))
        messages: list[Message] = [
            {"type": "http.response.start", "status": 200, "headers": [
                (b"access-control-allow-credentials", b"true")]},
            {"type": "http.response.body", "body": self.answer},
        ]  # fmt: skip
        for message in messages[: self.fails_after]:
            await send({**message, "more_body": self.fails_after is not None})
        if self.fails_after is not None:
            raise RuntimeError("unknown session")


class Caller:
    """Calls a guard as a server would."""

    def __init__(self, root: Path, names: HostNames | None = None, **access: str) -> None:
        self.app, self.files = App(), SessionFiles(root / "files")
        self.guard = Guard(
            self.app,
            names=names or HostNames({"127.0.0.1"}),
            files=self.files,
            port=7860,
            **access,
        )

    def __call__(
        self, method: str, path: str, body: bytes = b"", *more: tuple[str, str], **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of the answer."""
        given = {"host": HOST, **{n.replace("_", "-"): v for n, v in headers.items()}}
        if method == "POST":
            given.setdefault("content-length", str(len(body)))
        sent: list[Message] = []
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(n.encode(), v.encode()) for n, v in [*given.items(), *more]],
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))
        assert not sent[-1].get("more_body")
        headers = {n.decode(): v.decode() for n, v in sent[0]["headers"]}
        return sent[0]["status"], headers, b"".join(m.get("body", b"") for m in sent[1:])

    def call(self, values: Any, **headers: str) -> int:
        return self("POST", "/gradio_api/queue/join", json.dumps(values).encode(), **headers)[0]


@pytest.fixture
def caller(tmp_path: Path) -> Caller:
    return Caller(tmp_path)


def test_answers_carry_the_policy_and_let_no_other_origin_read_them(caller: Caller) -> None:
    status, headers, _ = caller("GET", "/")
    assert status == 200
    assert "frame-ancestors 'self'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_browser_gets_one_session_and_keeps_it(caller: Caller) -> None:
    first, second = (caller("GET", "/")[1]["set-cookie"] for _ in range(2))
    assert first != second
    name, _, value = first.partition(";")[0].partition("=")
    assert (name, len(value)) == ("sundae-7860", 32)
    assert "HttpOnly" in first and "SameSite=Lax" in first
    odd = f'json={{"a": 1; b="}}; {name}={value}'  # of other programs on this host
    assert "set-cookie" not in caller("GET", "/", cookie=odd)[1]
    assert "set-cookie" not in caller("GET", "/config")[1]


@pytest.mark.parametrize("name", ["host", "origin", "content-length", "cookie"])
def test_a_header_that_is_there_twice_is_refused(caller: Caller, name: str) -> None:
    given = {"origin": f"http://{HOST}", "cookie": "a=b"}
    twice = (name, "0")
    assert caller("POST", "/gradio_api/upload", b"", twice, **given)[0] == 400


def test_a_body_arrives_unchanged(caller: Caller) -> None:
    body = b'{"data": [1, {"path": null}], "session_hash": "x1"}'
    assert caller("POST", "/gradio_api/queue/join", body)[0] == 200
    assert caller.app.bodies == [body]


def test_a_parameter_that_is_there_twice_is_refused(caller: Caller) -> None:
    """Gradio takes the last one, which may be another user's."""
    for query in ("session_hash=a&session_hash=b", "session_hash=a&session_hash="):
        assert caller("GET", f"/gradio_api/queue/data?{query}")[0] == 400
    assert caller.app.bodies == []


def test_a_length_is_needed_that_nothing_overrides(caller: Caller) -> None:
    for path in ("/gradio_api/queue/join", "/gradio_api/upload"):
        chunked = {"transfer_encoding": "chunked"}
        assert caller("POST", path, b"{}", content_length="2", **chunked)[0] == 411
        for length in ("", "-1", "1.0", "2,2"):
            assert caller("POST", path, b"{}", content_length=length)[0] == 411
    assert caller("POST", "/gradio_api/run/predict", b" " * 70_000, content_length="2")[0] == 413
    assert caller.app.bodies == []


def test_values_are_counted_since_gradio_keeps_them(caller: Caller) -> None:
    assert caller.call({"data": [[]] * 1900}) == 200
    assert caller.call({"data": [[]] * 2100}) == 413
    assert caller.call({"data": [{"a": [1] * 1000}] * 2}) == 413


def test_gradio_does_not_get_headers_that_lead_it_astray(caller: Caller) -> None:
    path = caller.files.new_folder("") / "x"
    headers = {"range": "bytes=0-9", "x_forwarded_host": "evil", "x_gradio_server": "evil"}
    assert caller("GET", f"/gradio_api/file={path}", **headers)[0] == 200
    assert [name for name, _ in caller.app.headers] == [b"host"]


def test_paths_are_found_wherever_they_stand(caller: Caller) -> None:
    folder = caller.files.new_folder("")
    for path in ("/etc/passwd", str(caller.files.root), 7, [str(folder)]):
        for value in ({"path": path}, [[{"x": {"path": path}}]], {"a": {"path": {"path": path}}}):
            assert caller.call({"data": [value]}) == 403, value
    assert caller.call({"data": [{"path": str(folder / "x")}]}) == 200


def test_an_upload_belongs_to_who_sent_it(caller: Caller) -> None:
    ann, bob = ({"cookie": f"sundae-7860={letter * 32}"} for letter in "ab")
    path = caller.files.root / "hash" / "a.png"
    caller.app.answer = json.dumps([str(path)]).encode()
    status, _, body = caller("POST", "/gradio_api/upload", b"...", accept_encoding="br", **ann)
    assert (status, body) == (200, caller.app.answer)
    assert b"accept-encoding" not in dict(caller.app.headers)
    assert caller("GET", f"/gradio_api/file={path}", **ann)[0] == 200
    for other in (bob, {}, {"cookie": "sundae-7860=forged"}):
        assert caller("GET", f"/gradio_api/file={path}", **other)[0] == 403
        assert caller.call({"data": [{"path": str(path)}]}, **other) == 403


def test_an_upload_that_was_refused_is_not_noted(caller: Caller) -> None:
    for answer in (b"too large", b'{"detail": "no"}', b"[7]"):
        caller.app.answer = answer
        assert caller("POST", "/gradio_api/upload", b"...")[0] in (200, 500)
    assert list(caller.files.root.iterdir()) == []


def test_an_open_page_is_for_the_browser_that_opened_it(caller: Caller) -> None:
    ann, bob = ({"cookie": f"sundae-7860={letter * 32}"} for letter in "ab")
    assert caller("GET", "/gradio_api/heartbeat/tab1", **ann)[0] == 200
    for other in (bob, {}):
        assert caller.call({"data": [], "session_hash": "tab1"}, **other) == 403
        assert caller("GET", "/gradio_api/queue/data?session_hash=tab1", **other)[0] == 403
    assert caller.call({"data": [], "session_hash": "tab1"}, **ann) == 200


def test_open_pages_that_are_remembered_are_bounded(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "_MAX_TABS", 3)
    for number in range(10):
        assert caller("GET", f"/gradio_api/heartbeat/tab{number}")[0] == 200
    assert list(caller.guard._owners) == ["tab7", "tab8", "tab9"]


def test_what_fails_in_gradio_is_one_line_and_an_answer(
    caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    for sent, status in ((0, 500), (1, 200), (2, 200)):
        caller.app.fails_after = sent
        assert caller("GET", "/gradio_api/queue/data?session_hash=x")[0] == status
        said = capsys.readouterr().err
        assert said.startswith("warning: GET /gradio_api/queue/data: RuntimeError")
        assert said.count("\n") == 1


def test_a_client_that_leaves_is_no_failure(
    caller: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    async def leaves(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"
        raise RuntimeError("nobody is there")

    async def closed(message: Message) -> None:
        raise OSError("closed")

    async def left() -> Message:
        return {"type": "http.disconnect"}

    caller.guard.app = leaves
    headers = [(b"host", HOST.encode())]
    scope = {
        "type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers
    }  # fmt: skip
    asyncio.run(caller.guard(scope, left, closed))
    assert capsys.readouterr() == ("", "")


def test_a_web_socket_is_closed(caller: Caller) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(caller.guard({"type": "websocket", "headers": []}, None, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_a_token_is_given_once_and_kept_as_a_cookie(tmp_path: Path) -> None:
    caller = Caller(tmp_path, token="secret")
    for query in ("", "?token=", "?token=wrong", "?token=secret2", "?token=é"):
        assert caller("GET", f"/{query}")[0] == 401
    assert caller("GET", "/config?token=secret")[0] == 401  # the link, and nothing else
    status, headers, _ = caller("GET", "/?token=secret")
    assert (status, headers["location"]) == (303, "./")
    assert "HttpOnly" in headers["set-cookie"]
    cookie = headers["set-cookie"].partition(";")[0]
    assert caller("GET", "/", cookie=cookie)[0] == 200
    assert caller("GET", "/", cookie=f"{cookie}x")[0] == 401


def test_a_password_may_hold_anything_and_wrong_ones_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", wait)
    caller = Caller(tmp_path, password="änn:p:ä ss")

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    assert caller("GET", "/", authorization=basic("änn:p:ä ss"))[0] == 200
    assert waits == []
    status, headers, _ = caller("GET", "/")
    assert (status, headers["www-authenticate"][:5], waits) == (401, "Basic", [])
    for wrong in (basic("änn:p"), basic(""), "Basic ???", "Basic /w=="):
        assert caller("GET", "/", authorization=wrong)[0] == 401
    assert len(waits) == 4


def test_wrong_passwords_that_wait_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "_MAX_WRONG_PASSWORDS", 0)
    caller = Caller(tmp_path, password="a:b")
    assert caller("GET", "/", authorization="Basic wrong")[0] == 429
    right = base64.b64encode(b"a:b").decode()
    assert caller("GET", "/", authorization=f"Basic {right}")[0] == 200


def test_host_names() -> None:
    here = HostNames({"localhost", "127.0.0.1", "::1", "My.Lab"})
    accepted = ("localhost", "LOCALHOST:80", "localhost.", "127.0.0.1:1", "[::1]:7860", "my.lab")
    assert all(here.include(host) for host in accepted)
    refused = ("", "evil.example", "127.0.0.2", "localhost.evil", "[", "[::2]", "a@my.lab.x", ":80")
    assert not any(here.include(host) for host in refused)
    odd = ("evil@127.0.0.1", "127.0.0.1/x", "127.0.0.1#x", "127.0.0.1?x", "localhost:x", " my.lab")
    assert not any(here.include(host) for host in odd)
    everywhere = HostNames({"localhost"}, any_address=True)
    assert everywhere.include("10.0.0.7:7860") and everywhere.include("[fe80::1]")
    assert not everywhere.include("10.0.0.7.evil.example")
