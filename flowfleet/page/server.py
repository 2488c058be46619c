"""Server: the small HTTP server of poller and worker, for health, metrics, logs and the request to poll now."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from flowfleet.errors import FleetError, SettingsError

logger = logging.getLogger(__name__)

#: paths without a token: they tell nothing that needs guarding, and probes of orchestrators carry none
OPEN_PATHS = frozenset({"/api/health", "/api/ready"})
#: what is told of each path, by the name of its handler
_WORDS = {
    "/api/health": ("/api/health", "whether this process works: 200 or 503, with the facts as JSON"),
    "/api/ready": ("/api/ready", "whether it also reaches what it needs: 200 or 503"),
    "/api/poke": ("/api/poke", "look for due runs now"),
    "/metrics": ("/metrics", "its numbers, for Prometheus"),
    "/api/runs/": ("/api/runs/RUN/log", "what the run with this id has printed; with ?follow=1 until its end"),
}
#: a client that sends nothing for this long is disconnected
_SILENCE_SECONDS = 10.0
_BODY_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """A request to the page."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PageAnswer:
    """The answer of a handler. `body` may come in pieces, for a log that is followed."""

    status: int = 200
    body: bytes | Iterator[bytes] = b""
    content_type: str = "text/plain; charset=utf-8"

    @classmethod
    def json(cls, value: Any, status: int = 200) -> PageAnswer:
        """A JSON answer."""
        return cls(status=status, body=json.dumps(value, default=str).encode() + b"\n", content_type="application/json")

    @classmethod
    def health(cls, facts: Mapping[str, Any], *, ok: bool) -> PageAnswer:
        """The answer to a question for health or readiness: 200 or 503, and the facts in either case."""
        return cls.json({"ok": ok, **facts}, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE)

    @classmethod
    def metrics(cls, body: bytes) -> PageAnswer:
        """Metrics in the exposition format of Prometheus."""
        return cls(body=body, content_type="text/plain; version=0.0.4; charset=utf-8")


Handler = Callable[[PageRequest], PageAnswer]


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `http://HOST:PORT` or `HOST:PORT`; raises `SettingsError` with the remedy."""
    remedy = "give it as http://HOST:PORT, for example http://127.0.0.1:8080"
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"The address {text!r} cannot be served: {remedy}.") from error
    if parts.scheme != "http":
        raise SettingsError(f"The address {text!r} cannot be served: only http is, so {remedy}.")
    if port is None:
        raise SettingsError(f"The address {text!r} has no port: {remedy}.")
    # no host means all addresses: Prefect 1's agents take http://:8080 so, and their deployments write it
    return host or "0.0.0.0", port


def is_loopback(host: str) -> bool:
    """True when only this machine can reach what listens on this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(address: str, handlers: Callable[[], Mapping[str, Handler]], token: Callable[[], str | None]) -> Page:
    """Serve the current handlers by path from threads of their own. A path with a `/` at its end has all paths below.

    On an address that other machines can reach, every path but health and ready asks for the current bearer token, and
    is refused while there is none.
    Raises `SettingsError` when the address cannot be served.
    """
    host, port = parse_address(address)
    try:
        family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        page = Page(family, str(sockaddr[0]), port, handlers, token)
    except socket.gaierror as error:
        raise SettingsError(f"The address {address} cannot be served: this machine does not know {host}.") from error
    except OSError as error:
        raise SettingsError(_why_not(address, port, error)) from error
    if not page.loopback and token() is None:
        logger.warning(
            "only health and ready are served, since others can reach this address and no FLOWFLEET_PAGE_TOKEN is set",
            extra={"address": address},
        )
    threading.Thread(target=page.serve_forever, kwargs={"poll_interval": 0.2}, name="page", daemon=True).start()
    return page


def _why_not(address: str, port: int, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"The address {address} cannot be served: port {port} needs more rights, so choose one above 1023."
    if error.errno == errno.EADDRINUSE:
        return f"The address {address} cannot be served: port {port} is in use, so choose another, or stop what has it."
    return f"The address {address} cannot be served: {error.strerror or error}."


class Page(ThreadingHTTPServer):
    """A page that is being served; `close` ends it."""

    daemon_threads = True
    #: closing must not wait for somebody who follows a log
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        family: int,
        host: str,
        port: int,
        handlers: Callable[[], Mapping[str, Handler]],
        token: Callable[[], str | None],
    ) -> None:
        self.address_family = family
        self.handlers = handlers
        self.token = token
        self.loopback = is_loopback(host)
        super().__init__((host, port), _Exchange)
        host, port = self.server_name, self.server_port
        #: the address of the page: a port 0 that was asked for has become a real one
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def close(self) -> None:
        """Stop listening; answers that are under way are cut off."""
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """Bind, but not as the base class: that asks DNS for this host's full name, for seconds where DNS is away."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log at debug level only: a client that hangs up is no error."""
        del request
        logger.debug("page client went away", extra={"client": client_address[0]})

    def find(self, path: str) -> Handler | None:
        """The handler of a path: its own, or that of the longest folder above it; None when there is none."""
        handlers = self.handlers()  # they may be replaced at any time
        if path in handlers:
            return handlers[path]
        if path == "/":
            return lambda _: PageAnswer(body=_listing(handlers).encode())
        above = [name for name in handlers if name.endswith("/") and path.startswith(name)]
        return handlers[max(above, key=len)] if above else None


def _listing(paths: Iterable[str]) -> str:
    """What is served: a line for each path."""
    told = [_WORDS.get(path, (path, "")) for path in paths]
    width = max(len(path) for path, _ in told)
    return "".join(f"{f'{path:<{width}}  {words}'.rstrip()}\n" for path, words in told)


class _Exchange(BaseHTTPRequestHandler):
    server: Page
    timeout = _SILENCE_SECONDS
    server_version = "flowfleet"
    sys_version = ""

    def do_POST(self) -> None:
        # Prefect 1's agents are poked with GET and with POST
        length = self.headers.get("Content-Length", "")
        self.rfile.read(min(int(length) if length.isdigit() else 0, _BODY_LIMIT))
        self._exchange()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        logger.debug("page served", extra={"request": format % args})

    def _exchange(self) -> None:
        parts = urlsplit(self.path)
        request = PageRequest(method=self.command, path=unquote(parts.path), query=dict(parse_qsl(parts.query)))
        self._send(self._refusal(request.path) or self._answer(request))

    do_GET = do_HEAD = _exchange  # noqa: N815 - the base class names them so

    def _refusal(self, path: str) -> PageAnswer | None:
        """The refusal of a request without the right token, else None; made before the path is looked up."""
        if self.server.loopback or path in OPEN_PATHS:
            return None
        token = self.server.token()
        if token is None:
            sentence = "This is not served to other machines while no FLOWFLEET_PAGE_TOKEN is set."
            return PageAnswer.json({"error": sentence}, HTTPStatus.FORBIDDEN)
        scheme, _, given = (self.headers.get("Authorization") or "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
            return None
        return PageAnswer.json({"error": "This asks for the page token as a bearer token."}, HTTPStatus.UNAUTHORIZED)

    def _answer(self, request: PageRequest) -> PageAnswer:
        handler = self.server.find(request.path)
        if handler is None:
            return PageAnswer.json(
                {"error": f"There is nothing at {request.path[:200]}: / lists what there is."}, HTTPStatus.NOT_FOUND
            )
        try:
            return handler(request)
        except FleetError as error:
            return PageAnswer.json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception:  # guards the process, which the page must not take down
            logger.exception("page handler failed", extra={"path": request.path})
            return PageAnswer.json({"error": "This failed here, the log says why."}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _send(self, answer: PageAnswer) -> None:
        self.send_response(answer.status)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Bearer realm="flowfleet"')
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Cache-Control", "no-store")
        if isinstance(answer.body, bytes):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        pieces = (answer.body,) if isinstance(answer.body, bytes) else answer.body
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
