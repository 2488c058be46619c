"""Store: the connection to Redis, the fleet's key prefix, and the Lua scripts by name.

All use of the client library goes through a store: every error of the library leaves here as `LedgerUnavailable` (wait
and ask again) or `LedgerUnusable` (waiting cannot cure it, see `error_answers`). Nothing is retried but one reconnect,
so a script may run twice for one call.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from flowfleet.errors import LedgerUnavailable, LedgerUnusable
from flowfleet.ledger import sentinel
from flowfleet.ledger.error_answers import ledger_error
from flowfleet.ledger.login import TLS, Login, database_of, tls_of
from flowfleet.ledger.sentinel import CONFIRM_MS, Replication, SentinelAddress, Sentinels
from flowfleet.ledger.transitions import lua_table

T = TypeVar("T")

#: oldest server whose scripts and commands we use
OLDEST_SERVER = (6, 2)
_FLEET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SCHEMES = ("redis", "rediss", "redis+socket", *sentinel.SCHEMES)
_SCHEME = re.compile(r"[a-z][a-z+-]{1,20}")


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """The Redis or Valkey server that answers, as `check` describes it."""

    version: str
    process: str  # the server's run id: another after each start
    persistent: bool  # the append-only file is on, or snapshots are made
    eviction: str  # maxmemory-policy
    software: str = "redis"


class Store:
    """The keys of one fleet in one Redis. Threads may share a store."""

    def __init__(self, client: redis.Redis, address: str, fleet: str, replication: Replication | None = None) -> None:
        self.client = client
        #: with sentinels: scripts wait until a replica has what they wrote
        self._replication = replication
        self.address = address  # without its password, for messages
        self.fleet = fleet
        self.prefix = f"flowfleet:{fleet}:"
        #: how many outages are over: a subscription notices by it that the address may lead to another server now
        self.outages = 0
        self._refuses = False
        self._answered = False
        self._scripts: dict[str, tuple[str, str]] = {}
        self._prelude = lua_table() + _read("prelude")

    def key(self, name: str) -> str:
        """The full name of one of this fleet's keys."""
        return self.prefix + name

    def script(self, name: str, *args: str | float) -> Any:
        """Run one Lua script by its file name; loads it when the server does not have it (yet, or after a restart)."""
        source, digest = self._source(name)
        with self.errors():
            try:
                answer = self._run("EVALSHA", digest, *args)
            except redis.exceptions.NoScriptError:
                answer = self._run("EVAL", source, *args)
        # a script is the most that we ask for: whoever may run one can use this server, so what fails later may pass
        self._answered = True
        return answer

    def _run(self, command: str, script: str, *args: str | float) -> Any:
        client: Any = self.client
        words = (command, script, 1, self.prefix, *map(str, args))
        if self._replication is None or not self._replication.awaited:
            return client.execute_command(*words)
        # one answer after the other on one connection: WAIT counts the replicas that have what this connection wrote
        pipeline = client.pipeline(transaction=False)
        answer, replicas = pipeline.execute_command(*words).wait(1, CONFIRM_MS).execute(raise_on_error=False)
        for each in (answer, replicas):
            if isinstance(each, Exception):
                raise each
        self._replication.told(int(replicas))
        return answer

    def ask(self, command: Callable[[redis.Redis], T]) -> T:
        """Run a plain command; errors of the client library become ours (see `errors`)."""
        with self.errors():
            return command(self.client)

    def ask_if_allowed(self, command: Callable[[redis.Redis], T]) -> T | None:
        """Run a plain command that a server may forbid, as many hosted ones do; None where it does."""
        with self.errors():
            try:
                return command(self.client)
            except redis.exceptions.ResponseError:
                return None

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter that must outlive processes (bad messages, refusals)."""
        self.ask(lambda client: client.hincrby(self.key("counters"), name[:100], by))

    def counts(self) -> dict[str, int]:
        """All counters of the fleet."""
        found: Any = self.ask(lambda client: client.hgetall(self.key("counters")))
        return {name: int(value) for name, value in found.items()}

    def check(self) -> ServerFacts:
        """Ask which server it is. Raises `LedgerUnusable` with the remedy for a cluster, a replica or an old one."""
        info: Any = self.ask(lambda client: client.info())
        if info.get("cluster_enabled") == 1 or info.get("redis_mode") == "cluster":
            raise LedgerUnusable(
                f"Redis at {self.address} is a cluster, which Celery cannot use; give that of a standalone server"
            )
        version = str(info.get("redis_version", "0"))
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_SERVER:
            raise LedgerUnusable(
                f"Redis at {self.address} has version {version}; flowfleet needs Redis 6.2, Valkey 8 or newer"
            )
        if info.get("role") == "slave" and self._replication is not None:
            raise LedgerUnavailable(f"the sentinels of {self.address} name a replica, no primary is chosen yet")
        if info.get("role") == "slave":
            raise LedgerUnusable(
                f"Redis at {self.address} is a replica and takes no writes; give the address of its primary"
            )
        saves: Any = self.ask_if_allowed(lambda client: client.config_get("save")) or {}
        snapshots = int(info.get("rdb_last_save_time", 0)) > 0 and bool(saves.get("save"))
        return ServerFacts(
            version=str(info.get("valkey_version", version)),
            process=str(info.get("run_id", "")),
            persistent=info.get("aof_enabled") == 1 or snapshots,
            eviction=str(info.get("maxmemory_policy", "")),
            software=str(info.get("server_name", "redis")),
        )

    def close(self) -> None:
        """Close all connections."""
        self.client.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the client library raises into our two errors."""
        try:
            yield
        except redis.exceptions.RedisError as exc:
            # a primary that became a replica keeps its connections, while the address may lead to its successor by now
            self.client.connection_pool.disconnect(inuse_connections=False)
            self._refuses = True
            raise ledger_error(exc, self.address, answered=self._answered) from exc
        if self._refuses:
            self._refuses = False
            self.outages += 1

    def _source(self, name: str) -> tuple[str, str]:
        if name not in self._scripts:
            source = self._prelude + _read(name)
            # SHA-1 is the name under which Redis keeps a script; nothing is protected by it
            self._scripts[name] = (source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        return self._scripts[name]


def open_store(url: str, fleet: str, *, socket_timeout: float = 5.0, login: Login | None = None) -> Store:
    """A store for a URL and a fleet; needs no live server. Raises `LedgerUnusable` for an unusable address or name."""
    if not _FLEET.fullmatch(fleet):
        raise LedgerUnusable(
            f"--fleet {fleet[:80]!r}: use letters, digits, dot, dash and underscore, at most 64 of them"
        )
    scheme, mark, _ = url.partition("://")
    if mark and scheme not in _SCHEMES and _SCHEME.fullmatch(scheme):
        raise LedgerUnusable(
            f"the Redis address of --redis or FLOWFLEET_REDIS begins with {scheme}://, which is not supported: use "
            "redis://HOST:PORT/DB, rediss://HOST:PORT/DB (TLS), redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB or "
            "redis+socket:///PATH"
        )
    login = login or Login(lambda: url)
    how: dict[str, Any] = {
        "credential_provider": login,
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_timeout,
        "health_check_interval": 25,
        "decode_responses": True,
        "encoding_errors": "replace",
        "protocol": 2,
        # one reconnect for a connection that died while idle; after a timeout nothing is known, and nothing is repeated
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,)),
        "client_name": f"flowfleet-{fleet}",
    }
    address = redacted(url)
    try:
        parts = urlsplit(url)
        if parts.scheme in sentinel.SCHEMES:
            named = SentinelAddress.parse(parts)
            pool = sentinel.pool_of(named, Sentinels(named, login), socket_keepalive=True, **how)
            return Store(redis.Redis(connection_pool=pool), address, fleet, Replication(address))
        place = _place(parts)
    except ValueError:
        # neither the address nor what is wrong with it is shown or kept: nobody can tell which part is the password
        raise LedgerUnusable(
            "the Redis address of --redis or FLOWFLEET_REDIS cannot be read: use redis://HOST:PORT/DB (a PORT up "
            "to 65535), redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB or redis+socket:///PATH, and write a password in "
            "it percent-encoded (/ as %2F, @ as %40, # as %23, % as %25)"
        ) from None
    return Store(redis.Redis(**place, **how), address, fleet)


def redacted(url: str) -> str:
    """The URL without user and password; whatever characters these contain, they end at the last @ of the URL."""
    scheme, mark, rest = url.partition("://")
    place = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return f"{scheme}://{place}" if mark else "(no address)"


def _place(parts: SplitResult) -> dict[str, Any]:
    """The arguments that tell the client where the server is. Raises `ValueError` for what is no address."""
    if parts.scheme not in _SCHEMES:
        raise ValueError("not a scheme of ours")
    return _socket_place(parts) if parts.scheme == "redis+socket" else _port_place(parts)


def _port_place(parts: SplitResult) -> dict[str, Any]:
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("a password that is not percent-encoded: what came before would be taken for the host")
    return {
        "host": parts.hostname or "localhost",
        "port": parts.port or 6379,
        "db": database_of(parts.path.strip("/")),
        "socket_keepalive": True,
        **({"ssl": True, **tls_of(parts)} if parts.scheme == TLS else {}),
    }


def _socket_place(parts: SplitResult) -> dict[str, Any]:
    if not parts.path or parts.path == "/":
        raise ValueError("the path of the socket is missing")
    if parts.netloc.rpartition("@")[2]:
        raise ValueError("a socket has no host: perhaps a password that is not percent-encoded")
    database = (parse_qs(parts.query).get("virtual_host") or ["0"])[0]
    return {"unix_socket_path": unquote(parts.path), "db": database_of(database.strip("/"))}


def _read(name: str) -> str:
    return (files("flowfleet.ledger") / "scripts" / f"{name}.lua").read_text("utf-8")
