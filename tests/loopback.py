"""Loopback: the HTTP server in front of the APIs that tests bring along."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HttpError(Exception):
    """An answer other than 200, or one with headers."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, body: Any = None) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"detail": detail} if body is None else body
        self.headers = dict(headers or {})


class Page(bytes):
    """A web page: what a proxy says for an API that is not there."""


#: method, path, JSON (the bytes of what is none) and headers → what to answer: bytes as they are, all else as JSON;
#: raises `HttpError`, or `BrokenPipeError` when the line is to break
Answer = Callable[[str, str, Any, Mapping[str, str]], Any]


class Loopback(ThreadingHTTPServer):
    """Listens from the first moment on, and serves from `start` to `stop`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler(answer))
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(10)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Lines that break are the trade here."""


def read(text: bytes) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return text


def handler(answer_to: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do(self) -> None:
            body = read(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            status, headers = 200, {}
            try:
                answer = answer_to(self.command, self.path, body, self.headers)
            except HttpError as error:
                status, headers, answer = error.status, error.headers, error.body
            except BrokenPipeError:
                self.close_connection = True
                return
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(answer, Page) else "application/json")
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
