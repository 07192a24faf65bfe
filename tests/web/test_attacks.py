"""The served page, attacked over HTTP: files, hosts, origins, passwords, sizes, floods, users."""

import base64
import http.client
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from serving import ROOT, Server, serving, train_tiny_run

pytestmark = pytest.mark.web

SECRET = "root:x:0:0 not yours"
JSON = {"Content-Type": "application/json"}
STEPS = 4


@dataclass
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """A user: keeps cookies, as a browser does, unless told not to."""

    port: int
    keeps_cookies: bool = True
    cookies: dict[str, str] = field(default_factory=dict)

    def __call__(
        self, method: str, path: str, body: bytes | str | None = None, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{n}={v}" for n, v in self.cookies.items())
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        answer = Answer(response.status, dict(response.headers), response.read())
        if self.keeps_cookies:
            for cookie in response.headers.get_all("Set-Cookie", []):
                name, _, value = cookie.partition(";")[0].partition("=")
                self.cookies[name] = value
        connection.close()
        return answer

    def opened(self) -> "Client":
        """Opens the page, which gives it a session."""
        assert self("GET", "/").status == 200
        return self

    def post(self, path: str, values: Any) -> Answer:
        return self("POST", path, json.dumps(values), **{"Content-Type": "application/json"})

    def upload(self, content: bytes, name: str = "image.png") -> Answer:
        boundary = uuid.uuid4().hex
        head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = f"--{boundary}\r\n{head}".encode() + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return self("POST", "/gradio_api/upload", body, **{"Content-Type": kind})

    def events(self, tab: str) -> str:
        """All that the queue says until it is done."""
        return self("GET", f"/gradio_api/queue/data?session_hash={tab}").body.decode()


@dataclass
class Page:
    """What the page consists of, as Gradio describes it."""

    config: dict[str, Any]

    @property
    def types(self) -> dict[int, str]:
        return {c["id"]: c["type"] for c in self.config["components"]}

    @property
    def endpoints(self) -> list[dict[str, Any]]:
        return list(self.config["dependencies"])

    def values(self, endpoint: dict[str, Any], **changes: Any) -> list[Any]:
        """What a browser would send, but for values by the label of their component."""
        by_id = {c["id"]: c["props"] for c in self.config["components"]}
        values = []
        for number in endpoint["inputs"]:
            label = str(by_id[number].get("label")).replace(" ", "_")
            values.append(changes.get(label, by_id[number].get("value")))
        return values

    def sampling(self, session: str, **changes: Any) -> dict[str, Any]:
        """The call that the first Start button makes."""
        endpoint = next(d for d in self.endpoints if d["api_name"] == "follow")
        data = self.values(endpoint, **{"steps": STEPS, "seed": "5", **changes})
        return {"data": data, "fn_index": endpoint["id"], "session_hash": session}


def files_in(text: str) -> list[str]:
    """Paths of the files that an answer hands out."""
    return list(dict.fromkeys(part.split('"')[0] for part in text.split('"path":"')[1:]))


def tab() -> str:
    return uuid.uuid4().hex[:10]


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny_run(tmp_path_factory.mktemp("run"), tiny_data)


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(run, tmp_path_factory.mktemp("page"), checked=False) as server:
        yield server


@pytest.fixture
def user(server: Server) -> Client:
    return Client(server.port).opened()


@pytest.fixture
def page(user: Client) -> Page:
    return Page(user("GET", "/config").json())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


def sampled(user: Client, page: Page, **changes: Any) -> tuple[str, str]:
    """(session hash, all that was said) of a sampling that was let in."""
    session = tab()
    answer = user.post("/gradio_api/queue/join", page.sampling(session, **changes))
    assert answer.status == 200, answer
    return session, user.events(session)


def test_a_user_samples_and_gets_what_was_made(user: Client, page: Page) -> None:
    _, said = sampled(user, page)
    assert f"{STEPS} of {STEPS} steps" in said
    files = [user("GET", f"/gradio_api/file={path}") for path in files_in(said)[-5:]]
    assert {answer.status for answer in files} == {200}
    assert any(answer.body.startswith(b"\x89PNG") for answer in files)


# -- files ---------------------------------------------------------------------------------------


def test_no_value_of_any_component_of_any_endpoint_reads_a_file(
    user: Client, page: Page, secret: Path
) -> None:
    mine = user.upload(b"mine").json()[0]
    paths = [str(secret), "/etc/passwd", "train.py", f"file://{secret}", "http://10.0.0.1/x"]
    paths += [f"http://127.0.0.1:1/{'../' * 20}{mine[1:]}", f"{mine}/../../{secret}"]
    shapes: list[Callable[[str], Any]] = [
        lambda path: {"path": path, "meta": {"_type": "gradio.FileData"}},
        lambda path: [{"deep": {"path": path, "url": path, "meta": {"_type": "x"}}}],
        lambda path: {"background": {"path": path, "meta": {"_type": "gradio.FileData"}}},
    ]
    attempts = 0
    for endpoint in page.endpoints:
        for place in range(len(endpoint["inputs"])):
            shape = shapes[attempts % len(shapes)]
            data = page.values(endpoint)
            data[place] = shape(paths[attempts % len(paths)])
            call = {"data": data, "fn_index": endpoint["id"], "session_hash": tab()}
            for route in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
                answer = user.post(route, call)
                assert answer.status == 403, (endpoint["api_name"], place, answer)
                assert answer.body == b"no such file of this session\n"
            attempts += 1
    kinds = {page.types[number] for endpoint in page.endpoints for number in endpoint["inputs"]}
    assert {"dropdown", "slider", "checkbox", "textbox", "imageeditor", "uploadbutton"} <= kinds
    assert attempts > 40


def test_gradio_itself_refuses_them_too(run: Path, secret: Path, tmp_path: Path) -> None:
    """Behind the guard, so that neither lock depends on the other."""
    from fastapi.testclient import TestClient

    from sundae.editing.sampler import Sampler
    from sundae.interactive.server import _app, _prepare_environment
    from sundae.interactive.session_files import SessionFiles
    from sundae.interactive.settings import Settings

    sampler = Sampler.from_pretrained(run, device="cpu")
    files = SessionFiles(tmp_path / "files")
    _prepare_environment(files.root)
    app = _app(Settings(sampler, sampler.cfg.sampling), None, files, 1)
    with TestClient(app) as client:
        page = Page(client.get("/config").json())
        value = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
        call = page.sampling("abc", strategy=value)
        assert client.post("/gradio_api/queue/join", json=call).status_code == 200
        said = client.get("/gradio_api/queue/data?session_hash=abc").text
        assert "not uploaded by a user" in said
        copies = [
            p
            for p in files.root.rglob("*")
            if p.is_file() and p.read_bytes() == secret.read_bytes()
        ]
        assert copies == []


def test_only_files_of_the_session_are_served(user: Client, server: Server, secret: Path) -> None:
    uploaded = Path(user.upload(b"mine").json()[0])
    assert user("GET", f"/gradio_api/file={uploaded}").body == b"mine"
    root = uploaded.parents[1]
    for path in (
        str(secret),
        f"{uploaded.parent}/../../../{'../' * 20}{secret}",
        f"{root}/..",
        str(root),
        str(server.folder),
        "train.py",
        str(ROOT / "train.py"),
        "/proc/self/environ",
        "http://127.0.0.1:1/",
        f"http://127.0.0.1:1/{'../' * 20}{str(uploaded)[1:]}",  # Gradio would fetch it
        f"https://hf.co/{'../' * 20}{str(uploaded)[1:]}",
        f"file://{secret}",
        "%2e%2e/train.py",
    ):
        for route in ("/gradio_api/file=", "/gradio_api/file%3D", "//gradio_api/file="):
            answer = user("GET", route + path)
            assert answer.status in (403, 404), (route, path, answer)
            assert SECRET.encode() not in answer.body


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/component_server",
        "/gradio_api/stream/x",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit",
        "/gradio_api/call/follow",
        "/gradio_api/call/v2/follow",
        "/gradio_api/api/predict",
        "/gradio_api/run/follow",
        "/gradio_api/cancel",
        "/login",
    ],
)
def test_routes_that_the_page_does_not_need_do_not_exist(user: Client, path: str) -> None:
    assert user.post(path, {"data": []}).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/token",
        "/gradio_api/custom_component/1/server/x/y",
        "/gradio_api/runs",
        "/gradio_api/dev/reload",
        "/monitoring",
        "/docs",
        "/svelte/../../x",
    ],
)
def test_neither_do_these(user: Client, path: str) -> None:
    assert user("GET", path).status == 404


# -- hosts and origins ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7", "", "["])
def test_another_host_name_is_not_answered(user: Client, host: str) -> None:
    for path in ("/", "/config", "/assets/x.js"):
        assert user("GET", path, Host=host).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "[::1]:7860", "LOCALHOST."])
def test_its_own_names_are_at_any_port_which_a_tunnel_may_change(user: Client, host: str) -> None:
    assert user("GET", "/config", Host=host).status == 200


@pytest.mark.parametrize("origin", ["http://localhost:1", "https://evil.example", "null", "x"])
def test_another_origin_may_neither_call_nor_upload(
    user: Client, page: Page, origin: str, server: Server
) -> None:
    call = json.dumps(page.sampling(tab()))
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/config"):
        method = "GET" if path == "/config" else "POST"
        answer = user(method, path, call, Origin=origin)
        assert answer.status == 403
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert user("OPTIONS", "/gradio_api/upload", **preflight).status == 403
    assert user("GET", "/config", Origin=f"http://127.0.0.1:{server.port}").status == 200


def test_another_site_may_link_to_the_page_but_not_embed_what_it_serves(user: Client) -> None:
    path = Path(user.upload(b"mine").json()[0])
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert user("GET", f"/gradio_api/file={path}", **foreign).status == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert user("GET", "/", **link).status == 200
    assert user("GET", f"/gradio_api/file={path}", **link).status == 403


# -- passwords and tokens ------------------------------------------------------------------------


def test_beyond_this_machine_a_link_with_a_token_is_needed(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, "--host", "0.0.0.0") as server:
        token = server.link.partition("/?token=")[2]
        assert len(token) > 40
        for wrong in (Client(server.port), Client(server.port, cookies={"sundae-access": token})):
            for path in ("/", "/config", "/?token=wrong", "/theme.css", "/gradio_api/file=x"):
                assert wrong("GET", path).status == 401
            assert wrong.post("/gradio_api/queue/join", {}).status == 401
            assert wrong.upload(b"x").status == 401
        friend = Client(server.port)
        entry = friend("GET", f"/?token={token}")
        assert (entry.status, entry.headers["location"]) == (303, "./")
        page = Page(friend.opened()("GET", "/config").json())
        assert f"{STEPS} of {STEPS} steps" in sampled(friend, page)[1]
        for name in ("evil.example", "localhost.evil.example"):
            assert friend("GET", "/", Host=name).status == 403
        assert friend("GET", "/", Host="192.0.2.7:7860").status == 200  # no name, no rebinding


def test_a_password_can_be_asked_for_instead(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, "--auth", "ann:se:cret") as server:
        client = Client(server.port)
        for given in (None, "ann:", "ann:se", "bob:se:cret", ":", "ann:se:cret "):
            coded = base64.b64encode(str(given).encode()).decode()
            headers = {} if given is None else {"Authorization": f"Basic {coded}"}
            answer = client("GET", "/config", **headers)
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")
        coded = base64.b64encode(b"ann:se:cret").decode()
        assert client("GET", "/config", Authorization=f"Basic {coded}").status == 200


def test_everybody_is_let_in_only_when_told_to_and_warned_of(run: Path, tmp_path: Path) -> None:
    with serving(run, tmp_path, "--host", "0.0.0.0", "--no-auth", "--allow-host", "my.lab") as it:
        client = Client(it.port)
        assert it.link == it.url
        assert client("GET", "/", Host="my.lab").status == 200
        assert client("GET", "/", Host="your.lab").status == 403


# -- sizes and floods ----------------------------------------------------------------------------


def test_what_is_too_large_is_refused_before_it_is_read(user: Client, page: Page) -> None:
    lengths = {"/gradio_api/upload": 51 * 2**20, "/gradio_api/queue/join": 2**16 + 1}
    for path, length in lengths.items():
        assert user("POST", path, b"x", Content_Length=str(length)).status == 413
        chunked = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        assert user("POST", path, b"1\r\nx\r\n0\r\n\r\n", **chunked).status in (400, 411)
        both = b"5\r\n{    \r\n" * 1000 + b"0\r\n\r\n"  # of which the second would prevail
        assert user("POST", path, both, Content_Length="5", **chunked).status == 411
    for body in ("[" * 60_000, '{"data": [NaN]}', "[]", "{", '{"session_hash": 7}', "9" * 5000):
        assert user("POST", "/gradio_api/queue/join", body).status == 400
    path = Path(user.upload(b"x").json()[0])
    many = [{"path": str(path), "meta": {"_type": "gradio.FileData"}}] * 5
    answer = user.post("/gradio_api/queue/join", page.sampling(tab(), strategy=many))
    assert (answer.status, answer.body) == (400, b"more than 4 files in one request\n")


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 10**9},
        {"samples": 10**30},
        {"samples": -1},
        {"steps": 10**9},
        {"steps": "3; rm"},
        {"seed": "9" * 10_000},
        {"class": ["zero"] * 1000 + ["<b>"]},
        {"strategy": "nonsense"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_values_beyond_what_the_controls_allow_are_refused(
    user: Client, page: Page, changes: dict[str, Any]
) -> None:
    _, said = sampled(user, page, **changes)
    assert "images in" not in said
    assert '"success":false' in said
    assert len(said) < 20_000


def test_what_takes_long_waits_in_the_queue(user: Client, page: Page) -> None:
    """Called directly, as many would run at once as there are threads."""
    endpoints = [d for d in page.endpoints if d["api_name"] in ("follow", "_open")]
    assert len(endpoints) >= 2
    for endpoint in endpoints:
        call = {"data": page.values(endpoint), "fn_index": endpoint["id"], "session_hash": tab()}
        assert user.post("/gradio_api/run/predict", call).status == 404


def test_a_flood_of_requests_leaves_the_page_usable(server: Server, page: Page) -> None:
    answers: list[int] = []

    def flood() -> None:
        client = Client(server.port, keeps_cookies=False)
        answers.append(client.post("/gradio_api/queue/join", page.sampling(tab())).status)
        answers.append(client.upload(uuid.uuid4().bytes).status)
        answers.append(client("GET", "/config").status)

    threads = [threading.Thread(target=flood) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 150
    assert set(answers) <= {200, 503}
    assert answers.count(503) < 50  # the queue is bounded, the rest is not its business
    for _ in range(60):
        session = tab()
        user = Client(server.port).opened()
        if user.post("/gradio_api/queue/join", page.sampling(session)).status == 200:
            assert f"{STEPS} of {STEPS} steps" in user.events(session)
            return
        threading.Event().wait(1)
    raise AssertionError("the queue stayed full")


# -- users ---------------------------------------------------------------------------------------


def test_two_users_do_not_get_at_each_others_files(
    server: Server, user: Client, page: Page
) -> None:
    session, said = sampled(user, page)
    uploaded = user.upload(b"mine").json()[0]
    others = Client(server.port).opened(), Client(server.port, keeps_cookies=False)
    numbered = sorted(server.folder.iterdir())[-1]  # a name that can be guessed
    for path in [*files_in(said), uploaded]:
        assert user("GET", f"/gradio_api/file={path}").status in (200, 403)
        for other in others:
            assert other("GET", f"/gradio_api/file={path}").status == 403
            value = {"path": path, "meta": {"_type": "gradio.FileData"}}
            call = page.sampling(tab(), strategy=value)
            assert other.post("/gradio_api/queue/join", call).status == 403
    for other in (*others, user):
        assert other("GET", f"/gradio_api/file={numbered / '00000.png'}").status == 403
    for other in others:
        for query in (f"session_hash={session}", f"session_hash=x&session_hash={session}"):
            assert other("GET", f"/gradio_api/queue/data?{query}").status in (400, 403)
        assert other("GET", f"/gradio_api/heartbeat/{session}").status == 403
        assert other.post("/gradio_api/queue/join", page.sampling(session)).status == 403


def test_names_are_text_and_never_markup(user: Client, page: Page) -> None:
    endpoint = next(d for d in page.endpoints if d["api_name"] == "_open")
    uploaded = user.upload(b"no image", "<img src=x onerror=alert(1)>.png").json()[0]
    value = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    session = tab()
    call = {"data": [value], "fn_index": endpoint["id"], "session_hash": session}
    assert user.post("/gradio_api/queue/join", call).status == 200
    said = user.events(session)
    assert "cannot be read as an image" in said
    assert "<img" not in said
