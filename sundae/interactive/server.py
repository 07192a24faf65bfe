"""Serve the page, to this machine unless told otherwise, and let nothing call home.

Import this only where Gradio is installed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sundae.errors import UserError
from sundae.files import make_folder
from sundae.interactive.session import Session
from sundae.interactive.settings import Settings

# Read when Gradio and huggingface_hub are imported, hence before.
_SILENCE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}

# Tells the browser to ask no other host for anything, whatever the page says.
_POLICY = (
    "default-src 'self' blob: data:; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'"
)

_LARGEST_UPLOAD = "50mb"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]


def serve(
    session: Session, settings: Settings, *, host: str, port: int, out_dir: Path | None
) -> None:
    """Serve the page until Ctrl-C or a kill.

    Args:
        session: the model.
        settings: what the controls show at first.
        host: address to listen at.
        port: 0 for any free one.
        out_dir: keeps every sampling; None keeps them until the server ends.

    Raises:
        UserError: the address cannot be used, or the folder not be written to.
    """
    listener = _listen(host, port)
    with TemporaryDirectory(prefix="sundae-", ignore_cleanup_errors=True) as scratch:
        folders = [Path(scratch, name) for name in ("cache", "zips", "samples")]
        cache, zips, samples = (make_folder(folder) for folder in folders)
        if out_dir is not None:
            samples = make_folder(out_dir).resolve()
        os.environ.update(_SILENCE, GRADIO_TEMP_DIR=str(cache))
        import uvicorn  # a part of Gradio

        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        app = _app(session, settings, samples, zips)
        print(f"open http://{shown}:{address[1]} (Ctrl-C ends it)", flush=True)
        # After its own farewell the server passes a signal on; a kill shall clear up, too.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


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


def _app(session: Session, settings: Settings, samples: Path, zips: Path) -> Any:
    import gradio as gr
    from fastapi import FastAPI

    from sundae.interactive.page import CSS, THEME, build_page

    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build_page(session, settings, samples, zips),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[str(samples), str(zips)],
        max_file_size=_LARGEST_UPLOAD,
        ssr_mode=False,
        theme=THEME,
        css=CSS,
    )
    app.add_middleware(_OnlyThisHost)
    return app


class _OnlyThisHost:
    """Adds the policy to every answer."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Scope) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)
