"""Serving of the page, to this machine unless told otherwise; nothing calls home.

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
from sundae.interactive.guard import MAX_UPLOAD, Guard, HostNames, session_cookie
from sundae.interactive.session_files import SessionFiles
from sundae.interactive.settings import Settings

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address

# Read when Gradio and huggingface_hub are imported, hence before.
_NO_CALLS_HOME = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}

_MAX_CONNECTIONS = 200  # an open page holds two or three
_SWEEP_INTERVAL = 10.0  # seconds
_MAX_IMAGE = 2**25  # pixels; Pillow warns of more, and refuses more than twice as many


def serve(
    settings: Settings,
    *,
    host: str,
    port: int,
    out_dir: Path | None,
    password: str | None = None,
    open_to_all: bool = False,
    host_names: Sequence[str] = (),
) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Args:
        settings: the model, and what the controls show at first.
        host: address to listen at. Beyond this machine, a link with a token is printed that admits
            whoever has it, unless there is a password.
        port: 0 for any free one.
        out_dir: receives every sampling; None stores those of a session for a day.
        password: "USER:PASSWORD", which browsers ask for.
        open_to_all: admit everybody who can reach the address.
        host_names: further names that the server is reached by, such as a proxy's.

    Raises:
        UserError: the address cannot be used, or the folder cannot be written to.
    """
    listener = _listen(host, port)
    address, port = listener.getsockname()[:2]
    ip = ipaddress.ip_address(address.partition("%")[0])
    token = None
    if not ip.is_loopback and password is None:
        if open_to_all:
            print(
                "warning: --no-auth lets everybody in who can reach this machine: they can use its "
                "processor and memory, and with --out-dir fill its disk",
                file=sys.stderr,
            )
        else:
            token = secrets.token_urlsafe(32)
    Image.MAX_IMAGE_PIXELS = _MAX_IMAGE
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half as many
    with TemporaryDirectory(prefix="sundae-", ignore_cleanup_errors=True) as scratch:
        files = SessionFiles(Path(scratch, "files"))
        keep = None if out_dir is None else make_folder(out_dir).resolve()
        _prepare_environment(files.root)
        import uvicorn  # a part of Gradio

        guarded = Guard(
            _app(settings, keep, files, port),
            names=_host_names({host.strip("[]"), address, *host_names}, ip),
            files=files,
            port=port,
            password=password,
            token=token,
        )
        listener.listen()  # whoever follows the link at once waits, and is not turned away
        name = socket.gethostname() if ip.is_unspecified else address
        query = f"/?token={token}" if token else ""
        link = f"http://{f'[{name}]' if ':' in name else name}:{port}{query}"
        print(f"open {link} (Ctrl-C ends it)", flush=True)
        # After its own shutdown the server passes a signal on; SIGTERM cleans up, too.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        config = uvicorn.Config(
            guarded,
            log_level="warning",
            timeout_graceful_shutdown=1,
            limit_concurrency=_MAX_CONNECTIONS,
        )
        with _swept(files):
            uvicorn.Server(config).run(sockets=[listener])


def _host_names(names: set[str], ip: _IP) -> HostNames:
    """The names that requests to a server at an address may be addressed to."""
    if ip.is_loopback or ip.is_unspecified:
        names |= {"localhost", "127.0.0.1", "::1"}
    if not ip.is_loopback:
        names |= {socket.gethostname(), socket.getfqdn()}
    return HostNames(names, any_address=ip.is_unspecified)


def _listen(host: str, port: int) -> socket.socket:
    """Takes the address before the slow part, so that a taken one is reported at once."""
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
    os.environ.update(_NO_CALLS_HOME, GRADIO_TEMP_DIR=str(cache))


def _app(settings: Settings, keep: Path | None, files: SessionFiles, port: int) -> Any:
    import gradio as gr
    from fastapi import FastAPI

    from sundae.interactive.page import CSS, THEME, build_page

    page = build_page(settings, keep, files, session_cookie(port))
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
    # Gradio checks paths in requests only where `launch` was called, which mounting is not. The
    # guard checks them before; this is the second lock of the same door.
    for name in ("has_launched", "is_running"):
        if not hasattr(page, name):
            raise RuntimeError(f"Gradio has no Blocks.{name} any more: does it check paths?")
        setattr(page, name, True)
    return app


@contextmanager
def _swept(files: SessionFiles) -> Iterator[None]:
    """Deletes old files from time to time."""
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(_SWEEP_INTERVAL):
            try:
                files.sweep()
            except OSError as error:
                print(f"warning: old files of the page: {error}", file=sys.stderr)

    threading.Thread(target=sweep, daemon=True, name="sweep").start()
    try:
        yield
    finally:
        ended.set()
