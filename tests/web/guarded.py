"""Run a script that may open no connection beyond this machine: python guarded.py LOG SCRIPT ..."""

import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


def guard(log: Path) -> None:
    """Note and refuse every look-up and connection of this process that leaves the machine."""

    def refuse(host: Any) -> None:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if not name.startswith(LOCAL):
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
            raise OSError(f"the test lets nothing out, not even to {name}")

    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def guarded_look_up(host: Any, *rest: Any, **options: Any) -> Any:
        if host is not None:
            refuse(host)
        return look_up(host, *rest, **options)

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address[0])
        connect(self, address)

    socket.getaddrinfo = guarded_look_up
    socket.socket.connect = guarded_connect  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path.cwd()))
    runpy.run_path(sys.argv[0], run_name="__main__")
