"""Serve the page, to this machine unless told otherwise, and let nothing call home.

Import this only where Gradio is installed.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from sundae.common.errors import UserError
from sundae.common.files import make_folder
from sundae.interactive.guard import MAX_UPLOAD, Access, Guard, HostNames, session_cookie
from sundae.interactive.session import Session
from sundae.interactive.session_files import SessionFiles
from sundae.interactive.settings import Settings

# Read when Gradio and huggingface_hub are imported, hence before.
_SILENCE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}

_MOST_CONNECTIONS = 200  # an open page holds two or three
_SWEEP_EVERY = 10.0  # seconds
_LARGEST_IMAGE = 2**25  # pixels; Pillow warns of more, and refuses more than twice as many


def serve(
    session: Session,
    settings: Settings,
    *,
    host: str,
    port: int,
    out_dir: Path | None,
    password: str | None = None,
    open_to_all: bool = False,
    host_names: Sequence[str] = (),
) -> None:
    """Serve the page until Ctrl-C or a kill.

    Args:
        session: the model.
        settings: what the controls show at first.
        host: address to listen at. Beyond this machine, a link with a token is printed that lets
            in whoever has it, unless there is a password.
        port: 0 for any free one.
        out_dir: keeps every sampling; None keeps those of a session for a day.
        password: "USER:PASSWORD", which browsers ask for.
        open_to_all: let in everybody who can reach the address.
        host_names: further names that the server is reached by, such as a proxy's.

    Raises:
        UserError: the address cannot be used, or the folder not be written to.
    """
    listener = _listen(host, port)
    address, port = listener.getsockname()[:2]
    access = _access(address, password, open_to_all)
    names = reachable_names(host, address, host_names)
    Image.MAX_IMAGE_PIXELS = _LARGEST_IMAGE
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half as many
    with TemporaryDirectory(prefix="sundae-", ignore_cleanup_errors=True) as scratch:
        files = SessionFiles(Path(scratch, "files"))
        keep = None if out_dir is None else make_folder(out_dir).resolve()
        _prepare_environment(files.root)
        import uvicorn  # a part of Gradio

        guarded = Guard(
            _app(session, settings, keep, files, port),
            names=names,
            access=access,
            files=files,
            port=port,
        )
        listener.listen()  # whoever follows the link at once waits, and is not turned away
        print(f"open {_link(address, port, access)} (Ctrl-C ends it)", flush=True)
        # After its own farewell the server passes a signal on; a kill shall clear up, too.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        config = uvicorn.Config(
            guarded,
            log_level="warning",
            timeout_graceful_shutdown=1,
            limit_concurrency=_MOST_CONNECTIONS,
        )
        with _swept(files):
            uvicorn.Server(config).run(sockets=[listener])


def reachable_names(host: str, address: str, further: Sequence[str] = ()) -> HostNames:
    """The names that requests to a server may be addressed to.

    Args:
        host: what the user called the address.
        address: the one that is listened at.
        further: names given by the user.
    """
    names = {host.strip("[]"), address, *further}
    number = ipaddress.ip_address(address.partition("%")[0])
    if number.is_loopback or number.is_unspecified:
        names |= {"localhost", "127.0.0.1", "::1"}
    if not number.is_loopback:
        names |= {socket.gethostname(), socket.getfqdn()}
    return HostNames(names, any_address=number.is_unspecified)


def _access(address: str, password: str | None, open_to_all: bool) -> Access:
    """Beyond this machine, a password or a token is needed unless the user opted out."""
    if password is not None:
        return Access(password=password)
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return Access()
    if open_to_all:
        print(
            "warning: --no-auth lets everybody in who can reach this machine: they can use its "
            "processor and memory, and with --out-dir fill its disk",
            file=sys.stderr,
        )
        return Access()
    return Access(token=secrets.token_urlsafe(32))


def _link(address: str, port: int, access: Access) -> str:
    """What to open; where the server listens at all addresses, the machine's name stands in."""
    unspecified = ipaddress.ip_address(address.partition("%")[0]).is_unspecified
    name = socket.gethostname() if unspecified else address
    shown = f"[{name}]" if ":" in name else name
    query = f"/?token={access.token}" if access.token else ""
    return f"http://{shown}:{port}{query}"


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before the slow part, so that a taken one is said at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen at --host {host} --port {port}: {error.strerror}; choose another"
        ) from None
    return listener


def _prepare_environment(cache: Path) -> None:
    """Gradio reads dozens of variables, one of which would publish the page; none is ours."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ.update(_SILENCE, GRADIO_TEMP_DIR=str(cache))


def _app(
    session: Session, settings: Settings, keep: Path | None, files: SessionFiles, port: int
) -> Any:
    import gradio as gr
    from fastapi import FastAPI

    from sundae.interactive.page import CSS, THEME, build_page

    page = build_page(session, settings, keep, files, session_cookie(port))
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        server_name="127.0.0.1",
        server_port=port,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        max_file_size=MAX_UPLOAD,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        theme=THEME,
        css=CSS,
    )
    _mark_as_launched(page)
    return app


def _mark_as_launched(page: Any) -> None:
    """Gradio checks paths in requests only where `launch` was called, which mounting is not.

    The guard checks them before; this is the second lock of the same door.
    """
    for name in ("has_launched", "is_running"):
        if not hasattr(page, name):
            raise RuntimeError(f"Gradio has no Blocks.{name} any more: does it check paths?")
        setattr(page, name, True)


@contextmanager
def _swept(files: SessionFiles) -> Iterator[None]:
    """Deletes old files from time to time."""
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(_SWEEP_EVERY):
            try:
                files.sweep()
            except OSError as error:
                print(f"warning: old files of the page: {error}", file=sys.stderr)

    threading.Thread(target=sweep, daemon=True, name="sweep").start()
    try:
        yield
    finally:
        ended.set()
