"""Session: HTTP to one Prefect API: credentials, CSRF, deadlines, retry, and the server's clock."""

import logging
import random
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import requests
from urllib3.exceptions import InsecureRequestWarning

from flowfleet.api.transport.address import Address
from flowfleet.api.transport.connection import HttpConnection, is_unanswered
from flowfleet.api.transport.contact import Contact
from flowfleet.api.transport.flavour import PREFECT3, Disposition, Flavour
from flowfleet.api.transport.freshness import ReadTooOld, boot_clock
from flowfleet.api.transport.responses import CONNECT_SECONDS, ResponseReader
from flowfleet.api.transport.server_clock import ServerClock
from flowfleet.errors import ApiMaintenance, ApiUnavailable, SettingsError

logger = logging.getLogger(__name__)

#: how long a response may take
READ_SECONDS = 30.0
#: how many times as long the response to a bulk of states may take: ten runs behind a busy SQLite pass ten seconds
BULK_TIMES = 2.0
#: a request is tried this often in all, and no new try begins RETRY_WINDOW_SECONDS after the first
TRIES = 5
#: the tries of a request for whose answer somebody waits, or whose caller tells of the failure at once and asks again
ASKED_TRIES = 2
RETRY_WINDOW_SECONDS = 30.0
_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class _Request:
    """One request to be sent."""

    method: str
    path: str
    body: Any
    #: the request's name in logs and errors
    named: str
    headers: Mapping[str, str]
    seconds: float
    #: by the boot-time clock; None = always
    fresh_until: float | None = None


@dataclass(eq=False, repr=False)
class Session:
    """HTTP requests to one Prefect API, with retries. Thread-safe: one keep-alive connection per thread."""

    address: Address
    flavour: Flavour = PREFECT3
    user_agent: str = "flowfleet"
    pause: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    boot_clock: Callable[[], float] = boot_clock
    dice: Callable[[], float] = random.random
    read_seconds: float = READ_SECONDS
    #: reads the credentials anew: at SIGHUP and after a refusal they may have changed
    find_again: Callable[[], Address] | None = None
    #: what all sessions of a process with this API have in common
    contact: Contact = field(default_factory=Contact)
    reader: ResponseReader = field(init=False)
    #: whether the last response refused our credentials
    key_refused: bool = field(default=False, init=False)
    _renewing: threading.Lock = field(default_factory=threading.Lock, init=False)
    _headers: dict[str, str] = field(init=False)
    _local: threading.local = field(default_factory=threading.local, init=False)
    _csrf_client: str = field(default_factory=lambda: str(uuid.uuid4()), init=False)
    _csrf_token: str | None = field(default=None, init=False)
    _server_clock: ServerClock = field(default_factory=ServerClock, init=False)

    def __post_init__(self) -> None:
        self.reader = ResponseReader(self.address, self.flavour)
        self._headers = self._headers_for(self.address)
        if self.address.insecure:
            logger.warning("the certificate of the Prefect API is not checked", extra={"api": self.address.shown})
            warnings.simplefilter("ignore", InsecureRequestWarning)  # once is enough

    @property
    def bulk_seconds(self) -> float:
        """How long the response to a bulk of states may take."""
        return BULK_TIMES * self.read_seconds

    @property
    def skew_seconds(self) -> float:
        """The server's clock minus ours."""
        return self._server_clock.skew_seconds

    @property
    def authorization(self) -> str | None:
        """The `Authorization` header that is sent now; a secret."""
        return self._headers.get("Authorization")

    def _headers_for(self, address: Address) -> dict[str, str]:
        headers = {**address.headers, "User-Agent": self.user_agent, "Accept": "application/json"}
        if address.authorization:
            headers["Authorization"] = address.authorization
        return headers

    def renew(self) -> bool:
        """Read the credentials again; True when they have changed. The address stays what it was."""
        if self.find_again is None:
            return False
        with self._renewing:
            try:
                found = self.find_again()
            except SettingsError as error:  # a file that is being replaced: the next try finds it whole
                logger.warning("credentials could not be read again", extra={"error": str(error)})
                return False
            headers = self._headers_for(found)
            if headers == self._headers:
                return False
            # one assignment, since other threads read it at any time
            self._headers = headers
        logger.info("credentials for the Prefect API were read again", extra={"api": self.address.shown})
        return True

    def get(self, path: str, **options: Any) -> Any:
        """Send a GET and return the JSON of the response; options and errors are those of `call`."""
        return self.call("GET", path, **options)

    def post(self, path: str, body: Any, **options: Any) -> Any:
        """Send a POST and return the JSON of the response; options and errors are those of `call`."""
        return self.call("POST", path, body, **options)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        named: str = "",
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
        tries: int = TRIES,
        fresh_until: float | None = None,
    ) -> Any:
        """Send one request, with its retries, and return the JSON of the response (None for an empty one).

        `named` is the request's name in logs and errors (default: `METHOD PATH`), `headers` go with this request only.
        After `fresh_until` (boot-time clock) no try is sent, and `ReadTooOld` raised: the process may have been frozen.
        Raises `ApiUnavailable` (later), `KeyRefused` (401, 403) or `ResponseRefused` (any other 4xx). A read that timed
        out is not repeated here: the server may still be at work on it, and callers know whether repeating is harmless.
        """
        named = named or f"{method} {path}"
        asked = _Request(method, path, body, named, headers or {}, seconds or self.read_seconds, fresh_until)
        with self.contact.asking():
            return self._repeat(asked, tries)

    def _repeat(self, asked: _Request, tries: int) -> Any:
        began = self.clock()
        for attempt in range(1, tries + 1):
            try:
                answer, disposition = self._send(asked)
            except ApiUnavailable as error:
                if isinstance(error, ReadTooOld) or isinstance(error.__cause__, requests.exceptions.ReadTimeout):
                    raise
                trouble, wait = error, None
            else:
                put_off = self.reader.put_off(asked.named, answer, disposition)
                if put_off is None:
                    self.contact.answered()
                    return self.reader.content(asked.named, answer, disposition)
                if isinstance(put_off, ApiMaintenance):
                    raise put_off  # it lasts: whoever asks waits without end, and is not held up here
                trouble, wait = put_off, put_off.retry_after_seconds
            self.contact.failed(trouble)
            wait = wait if wait is not None else 0.25 * 2**attempt * (0.5 + self.dice())
            if attempt == tries or self.clock() - began + wait > RETRY_WINDOW_SECONDS:
                raise trouble
            # whoever asks tells of an outage, once it is one
            logger.debug(
                "the Prefect API did not answer, next try follows",
                extra={"request": asked.named, "attempt": attempt, "next_in_seconds": round(wait, 2)},
            )
            self.pause(wait)
        raise AssertionError("unreachable: tries is at least 1")

    def _send(self, asked: _Request) -> tuple[requests.Response, Disposition]:
        """Send a request, again when the server asks for a CSRF token, or refuses a key that has been replaced."""
        used = self._headers
        answer = self._exchange_with_csrf(asked)
        disposition = self.reader.disposition(answer)
        if disposition is Disposition.REFUSED:
            self.renew()
            if self._headers is not used:
                answer = self._exchange_with_csrf(asked)
                disposition = self.reader.disposition(answer)
        self.key_refused = disposition is Disposition.REFUSED
        return answer, disposition

    def _exchange_with_csrf(self, asked: _Request) -> requests.Response:
        answer = self._exchange(asked)
        if (
            answer.status_code == HTTPStatus.FORBIDDEN
            and self.flavour.csrf
            and asked.method in _CHANGES
            and self._fetch_csrf(asked.seconds)
        ):
            answer = self._exchange(asked)
        return answer

    def _exchange(self, asked: _Request) -> requests.Response:
        """Send a request once; once more, at once, where a connection that was idle has ended under it."""
        connection = self._connection()
        for by_used_connection in (True, False) if connection.is_open() else (False,):
            try:
                return self._try(asked, connection)
            except requests.exceptions.RequestException as error:
                if not (by_used_connection and is_unanswered(error)):
                    raise self.reader.silence(error, asked.seconds) from error
        raise AssertionError("unreachable: the last try returns or raises")

    def _try(self, asked: _Request, connection: HttpConnection) -> requests.Response:
        if asked.fresh_until is not None and self.boot_clock() > asked.fresh_until:
            raise ReadTooOld(
                f"{asked.named} was not sent, since what it follows from was read too long ago", answered=True
            )
        headers = dict(asked.headers)
        if self._csrf_token and asked.method in _CHANGES:
            headers |= {"Prefect-Csrf-Token": self._csrf_token, "Prefect-Csrf-Client": self._csrf_client}
        answer = connection.send(
            asked.method,
            self.address.url + asked.path,
            json=asked.body,
            headers=headers,
            timeout=(CONNECT_SECONDS, asked.seconds),
            verify=self._verify(),
        )
        self._server_clock.note(answer.headers.get("Date", ""))
        return answer

    def _verify(self) -> bool | str:
        # given with each request, since a REQUESTS_CA_BUNDLE of the environment would beat the session's own value
        if self.address.insecure:
            return False
        return str(self.address.ca_file) if self.address.ca_file else True

    def _connection(self) -> HttpConnection:
        connection: HttpConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = HttpConnection(lambda: self._headers, self.clock)
        return connection

    def _fetch_csrf(self, seconds: float) -> bool:
        """Fetch a CSRF token; False when the server does not use them, so that a 403 means what it says."""
        path = f"/csrf-token?client={self._csrf_client}"
        answer = self._exchange(_Request("GET", path, None, f"GET {path}", {}, seconds))
        if answer.status_code != HTTPStatus.OK:
            return False
        try:
            token = answer.json()["token"]
        except (ValueError, KeyError, TypeError):
            return False
        self._csrf_token = str(token)
        return True
