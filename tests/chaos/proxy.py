"""A real MLflow server on loopback, and in front of it a proxy that can be slow, refuse, or lose answers."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, Literal

Mode = Literal["pass", "slow", "500", "lost"]
"""`lost`: the server takes the request and does it, and the client never hears of it."""
START_S: Final = 120.0
SLOW_S: Final = 2.0
_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}


@dataclass
class Server:
    """`mlflow server` over a database; can be killed and started again."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            RuntimeError: If it does not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or free_port()
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        options += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        options += ["--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"mlflow server did not start, see {self.folder}/server.log")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def kill(self) -> None:
        """Ends it and its workers at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class _Threads(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed in the middle of a request is what this is for."""


@dataclass
class Proxy:
    """Stands between the sweep and the server.

    Attributes:
        mode: What is done to requests.
        hit: How many requests a mode other than `pass` met.
    """

    server: Server
    mode: Mode = "pass"
    hit: int = 0
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def handle_any(self) -> None:
                proxy.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None: ...

        self.listener: socketserver.BaseServer = _Threads(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.listener.server_address[1]}"
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request, by the mode of the moment."""
        mode = self.mode
        with self.lock:
            self.seen += 1
            self.hit += mode != "pass"
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if mode == "500":
            handler.send_error(500, "out of order")
            return
        if mode == "slow":
            time.sleep(SLOW_S)
        status, headers, content = self._forward(handler, body)
        if mode == "lost":
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _forward(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in _HOP}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except (OSError, http.client.HTTPException):
            with self.lock:
                self.hit += 1
            handler.connection.shutdown(socket.SHUT_RDWR)
            raise
        finally:
            connection.close()


@contextmanager
def served(folder: Path) -> Iterator[Proxy]:
    """A server with its proxy, while the block runs."""
    server = Server(folder)
    server.start()
    proxy = Proxy(server)
    try:
        yield proxy
    finally:
        proxy.listener.shutdown()
        proxy.listener.server_close()
        server.kill()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
