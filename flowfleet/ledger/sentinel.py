"""Sentinel: a Redis whose primary changes: sentinels name it to each connection that is opened, and replicas confirm.

An address is `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/NAME/DB`, where NAME is the primary's among the
sentinels; `rediss+sentinel://` speaks TLS with them and with the servers.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import redis
from redis.sentinel import MasterNotFoundError, Sentinel

from flowfleet.ledger.login import Login, database_of, tls_of

logger = logging.getLogger(__name__)

#: the schemes of an address with sentinels, and whether their connections are encrypted
SCHEMES = {"redis+sentinel": False, "rediss+sentinel": True}
PORT = 26379
#: seconds that one sentinel gets for its answer
_ASK_SECONDS = 2.0
#: a write is confirmed by a replica within so many milliseconds, or is not waited for any longer
CONFIRM_MS = 500
#: seconds for which nobody is waited for after no replica has confirmed
_ALONE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class SentinelAddress:
    """The parts of an address with sentinels."""

    hosts: tuple[tuple[str, int], ...]
    name: str
    database: int
    #: the client library's arguments for a server of TLS; None = not encrypted
    tls: dict[str, Any] | None = None

    @classmethod
    def parse(cls, parts: SplitResult) -> "SentinelAddress":
        """Read it; raises `ValueError` for what is none."""
        if "@" in parts.path + parts.query + parts.fragment:
            raise ValueError("a password that is not percent-encoded: what came before would be taken for the hosts")
        name, _, database = parts.path.strip("/").partition("/")
        if not name:
            raise ValueError("the name of the primary is missing")
        hosts = tuple(_host(each) for each in parts.netloc.rpartition("@")[2].split(","))
        tls = tls_of(parts) if SCHEMES[parts.scheme] else None
        return cls(hosts=hosts, name=unquote(name), database=database_of(database), tls=tls)


def _host(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a sentinel without a host")
    return parts.hostname, parts.port or PORT


class Sentinels:
    """The sentinels of one primary. Threads may share it."""

    def __init__(self, address: SentinelAddress, login: Login) -> None:
        self._name = address.name
        how: dict[str, Any] = {"socket_timeout": _ASK_SECONDS, "socket_connect_timeout": _ASK_SECONDS}
        if address.tls is not None:
            how |= {"ssl": True, **address.tls}
        # most sentinels ask for no password; one that does is given that of the servers
        make: Any = Sentinel  # the library types nothing of it
        self._open = make(address.hosts, sentinel_kwargs=how)
        self._guarded = make(address.hosts, sentinel_kwargs={**how, "credential_provider": login})
        self._lock = threading.Lock()

    def primary(self) -> tuple[str, int]:
        """Host and port of the primary now; raises the client library's `ConnectionError` where none says so."""
        sentence = f"none of its sentinels names a live primary {self._name!r}"
        with self._lock:  # the library puts the sentinel first that has answered
            for ask in (self._open, self._guarded):
                try:
                    host, port = ask.discover_master(self._name)
                except MasterNotFoundError as exc:
                    if "AuthenticationError" not in str(exc):
                        break
                    sentence = "its sentinels refuse our password or user"
                else:
                    return str(host), int(port)
        raise redis.exceptions.ConnectionError(sentence)


class _NamedBySentinels:
    """A connection that asks the sentinels where to go; mixed into the classes of the client library."""

    sentinels: Sentinels
    host: str
    port: int

    def _connect(self) -> Any:
        self.host, self.port = self.sentinels.primary()
        base: Any = super()
        return base._connect()  # noqa: SLF001 - the one place at which the library opens a socket of either kind


def named_by(sentinels: Sentinels, kind: type) -> type:
    """A class of connections like `kind`, TCP or TLS, which go to the primary that the sentinels name."""
    return type(f"{kind.__name__}NamedBySentinels", (_NamedBySentinels, kind), {"sentinels": sentinels})


def pool_of(address: SentinelAddress, sentinels: Sentinels, **how: Any) -> redis.ConnectionPool:
    """Connections to the primary for the client library, with the arguments `how` of its client."""
    kind = named_by(sentinels, redis.Connection if address.tls is None else redis.SSLConnection)
    return redis.ConnectionPool(connection_class=kind, db=address.database, **(address.tls or {}), **how)


@dataclass
class Replication:
    """Whether a replica has what a script has written, so that a failover right after it loses nothing.

    Where no replica confirms it is not waited for for a while: the fleet would stand, and what a failover loses is made
    good as after any loss of Redis.
    """

    address: str
    clock: Callable[[], float] = time.monotonic
    _alone_until: float | None = field(default=None, init=False)

    @property
    def awaited(self) -> bool:
        """Whether the next script waits for a replica."""
        return self._alone_until is None or self.clock() >= self._alone_until

    def told(self, replicas: int) -> None:
        """Note how many replicas have confirmed the last script."""
        fields = {"redis": self.address}
        if replicas > 0:
            if self._alone_until is not None:
                logger.info("a replica of Redis confirms again what is written", extra=fields)
            self._alone_until = None
            return
        if self._alone_until is None:
            logger.warning("no replica of Redis confirms what is written, a failover now may lose some", extra=fields)
        self._alone_until = self.clock() + _ALONE_SECONDS
