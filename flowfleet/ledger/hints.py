"""Hints: published messages that say "look now". One may get lost, since every part also looks without them."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import redis

from flowfleet.errors import LedgerError
from flowfleet.ledger.store import Store
from flowfleet.retry import RetrySchedule

logger = logging.getLogger(__name__)

KINDS = ("freed", "routes", "poke", "wanted", "cancel", "due", "proved")
Listener = Callable[[str, str], None]


class Hints:
    """The fleet's one publish/subscribe channel."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def publish(self, kind: str, text: str = "") -> None:
        """Send a hint of one of `KINDS` to all subscribers; raises the errors of the ledger."""
        assert kind in KINDS, kind
        body = json.dumps({"kind": kind, "text": text[:200]})
        self._store.ask(lambda client: client.publish(self._store.key("hints"), body))

    def listen(self, callback: Listener) -> Subscription:
        """Call `callback(kind, text)` from a daemon thread until closed; the subscription outlives outages of Redis."""
        return Subscription(self._store, callback)


class Subscription:
    """A subscription to the hints; its own thread keeps it up, and renews it after an outage of Redis."""

    def __init__(self, store: Store, callback: Listener) -> None:
        self._store = store
        self._callback = callback
        self._closed = threading.Event()
        self._schedule = RetrySchedule("Redis", first_seconds=0.2, longest_seconds=5.0, level=logging.DEBUG)
        #: set while Redis has the subscription
        self.subscribed = threading.Event()
        self._thread = threading.Thread(target=self._keep_subscribed, name="flowfleet-hints", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the subscription and its thread."""
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _keep_subscribed(self) -> None:
        while not self._closed.is_set():
            try:
                with self._store.errors():
                    self._receive()
            except LedgerError as exc:
                self._schedule.failed(exc)
            self.subscribed.clear()
            self._closed.wait(self._schedule.wait_seconds())

    def _receive(self) -> None:
        pubsub: Any = self._store.client.pubsub()  # type: ignore[no-untyped-call]
        outages = self._store.outages
        try:
            pubsub.subscribe(self._store.key("hints"))
            # after an outage it is made anew: a primary that became a replica would keep it, and hear no hint any more
            while not self._closed.is_set() and self._store.outages == outages:
                try:
                    message = pubsub.get_message(timeout=0.5)
                except redis.exceptions.TimeoutError:
                    continue
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self._schedule.over()
                    self.subscribed.set()
                elif message["type"] == "message":
                    self._tell(str(message["data"]))
        finally:
            pubsub.close()

    def _tell(self, body: str) -> None:
        try:
            hint = json.loads(body)
            kind, text = str(hint["kind"]), str(hint["text"])
        except (ValueError, TypeError, KeyError):
            logger.warning("hint not understood", extra={"body": body[:200]})
            return
        if kind in KINDS:
            self._callback(kind, text)
