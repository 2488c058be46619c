"""Lawless HTTP: the loopback server in front of `LawlessApi`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol


class HttpError(Exception):
    """An answer other than 2xx."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, body: Any = None) -> None:
        super().__init__(detail)
        self.status = status
        self.body = body
        self.detail = detail
        self.headers = dict(headers or {})


class Page(bytes):
    """A web page: what a proxy says for an API that is not there."""


class Answers(Protocol):
    """What stands behind the server."""

    def answer(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Any: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Lines that break are the trade here."""


def handler(api: Answers, prefix: str = "/api") -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            status, headers = 200, {}
            try:
                answer = api.answer(
                    self.command, self.path.removeprefix(prefix), json.loads(text) if text else {}, self.headers
                )
            except HttpError as error:
                status, headers = error.status, error.headers
                answer = error.body if error.body is not None else {"detail": error.detail}
            except BrokenPipeError:
                self.close_connection = True
                return
            page = isinstance(answer, Page)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if page else "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        do_GET = do_POST = do_PATCH = do_DELETE = do  # noqa: N815 - names that http.server calls

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Quiet."""

    return Handler
