"""Server: loopback HTTP in front of the local Prefect 1 API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol


class Broken(Exception):
    """The line is to break without an answer."""


class Answers(Protocol):
    """What stands behind the server."""

    def answer(self, body: Any, headers: Mapping[str, str]) -> tuple[int, Any, Mapping[str, str]]: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are the trade here."""


def handler(api: Answers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.partition("?")[0] not in ("/", "/graphql"):
                self._say(404, {"errors": [{"message": f"no {self.path} here"}]}, {})
                return
            try:
                body = json.loads(text)
            except ValueError as error:
                self._say(400, {"errors": [{"message": f"no JSON: {error}"}]}, {})
                return
            try:
                self._say(*api.answer(body, self.headers))
            except Broken:
                self.close_connection = True

        def do_GET(self) -> None:
            self._say(405, {"errors": [{"message": "GraphQL is asked by POST here"}]}, {})

        def _say(self, status: int, answer: Any, headers: Mapping[str, str]) -> None:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Quiet."""

    return Handler
