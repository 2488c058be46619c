"""Redis server: the Redis process behind a fleet as it describes itself, and the lengths of the fleet's queues."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowfleet.flow_run import Route
from flowfleet.ledger.store import Store


@dataclass(frozen=True, kw_only=True)
class QueueLength:
    """The number of messages in one queue, and the age of the oldest."""

    length: int
    #: unix seconds at which the oldest message was sent; None when empty or unreadable
    oldest: float | None


class RedisServer:
    """Read-only view of a Redis server; every method raises `LedgerUnavailable` or `LedgerUnusable` with a sentence."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.address = store.address

    def info(self) -> Mapping[str, Any]:
        """All fields of INFO."""
        answer: Any = self._store.ask(lambda client: client.info())
        return dict(answer)

    def config(self, name: str) -> str | None:
        """One value of CONFIG GET; None where the server forbids the command, as many hosted servers do."""
        answer: Any = self._store.ask_if_allowed(lambda client: client.config_get(name)) or {}
        return str(answer[name]) if name in answer else None

    def now(self) -> float:
        """The server's clock in unix seconds."""
        answer: Any = self._store.ask(lambda client: client.time())
        return int(answer[0]) + int(answer[1]) / 1e6

    def waiting(self, routes: Sequence[Route]) -> list[QueueLength]:
        """Length and oldest message of each route's queue, in one round trip."""
        if not routes:
            return []
        pipe = self._store.client.pipeline(transaction=False)
        for route in routes:
            key = queue_key(self._store, route)
            pipe.llen(key)
            pipe.lindex(key, -1)
        answers: Any = self._store.ask(lambda _: pipe.execute())
        return [
            QueueLength(length=int(length), oldest=_sent_at(oldest))
            for length, oldest in zip(answers[::2], answers[1::2], strict=True)
        ]


def queue_key(store: Store, route: Route) -> str:
    """The list behind a route's queue, the same as `flowfleet.broker.queue_key`, without importing Celery for it."""
    return store.key(f"broker:{route}")


def version_of(info: Mapping[str, Any]) -> str:
    """The version that people know: for Valkey its own, beside which it tells clients of Redis 7.2.4."""
    return str(info.get("valkey_version") or info.get("redis_version") or "unknown")


def _sent_at(message: str | None) -> float | None:
    if not message:
        return None
    try:
        # a queue may hold anything, also what is no message of ours
        return float(json.loads(message)["headers"]["enqueued_at"])
    except (ValueError, TypeError, KeyError):
        return None
