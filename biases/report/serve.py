"""``biases report --serve``: the page, and nothing else, over HTTP."""

from __future__ import annotations

import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from biases._checks import fail

LOOPBACK = "127.0.0.1"


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that goes away is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def server(page: Path, host: str = LOOPBACK, port: int = 0) -> ThreadingHTTPServer:
    """A server of ``page`` at ``/``, as it is on disk when asked for; not yet serving.

    Args:
        page: the file.
        host: where to listen.
        port: 0 for any that is free.

    Raises:
        ValueError: a port out of range, or nothing can listen there.
    """
    if not 0 <= port < 2**16:
        fail("--port", "0 to 65535", port)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            # The path itself has several slashes at its beginning made one.
            if self.requestline.split()[1].partition("?")[0] != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                content = page.read_bytes()
            except OSError:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            for name, value in (
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Length", str(len(content))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ):
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    try:
        return _Server((host, port), Handler)
    except OSError as error:
        raise ValueError(f"--serve: expected a free address, got {host}:{port}: {error.strerror}") from error
