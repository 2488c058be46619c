"""Arrivals: sees in a server's own command stream when a run is claimed and when its message reaches the queue."""

import re
import threading
import time
from collections import Counter
from typing import Any, Self

import redis


class Arrivals:
    """Reads MONITOR in a thread; `wait_claim` and `wait_message` return as soon as the server has executed it."""

    def __init__(self, socket: str) -> None:
        # while parts are started on a busy machine, a server may be silent for longer than the client's own time-out
        self._client = redis.Redis(unix_socket_path=socket, decode_responses=True, socket_timeout=None)
        self._lines: list[tuple[str, str]] = []
        self._news = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._monitor: Any = self._client.monitor()
        self._monitor.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        # the blocked read ends with its connection
        self._monitor.connection.disconnect()
        self._thread.join(5)
        self._client.close()

    def _read(self) -> None:
        while not self._over:
            try:
                text = self._monitor.next_command()["command"]
            except (OSError, ValueError, redis.RedisError, AttributeError):
                return
            with self._news:
                self._lines.append((text.partition(" ")[0].upper(), text))
                self._news.notify_all()

    def wait_claim(self, run_id: str, seconds: float) -> None:
        """The first script about this run: the claim, before the API is asked."""
        self._wait(lambda verb, text: verb in ("EVALSHA", "EVAL") and run_id in text, seconds, f"the claim of {run_id}")

    def wait_message(self, run_id: str, key: str, seconds: float) -> None:
        """The message of the run is in its queue."""
        self._wait(lambda verb, text: verb == "LPUSH" and key in text, seconds, f"the message of {run_id}")

    def messages(self, fleet: str) -> Counter[str]:
        """How often each message of the fleet was put into a queue, by its id."""
        with self._news:
            sent = [text for verb, text in self._lines if verb == "LPUSH" and fleet in text]
        return Counter(found for text in sent for found in re.findall(r'"id": "(.+?)"', text))

    def forget(self) -> None:
        """Start the next round with an empty memory."""
        with self._news:
            self._lines.clear()

    def _wait(self, matches: Any, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        seen = 0
        with self._news:
            while True:
                for verb, text in self._lines[seen:]:
                    if matches(verb, text):
                        return
                seen = len(self._lines)
                left = deadline - time.monotonic()
                assert self._thread.is_alive(), f"the server's command stream ended before {what}"
                assert left > 0, f"waited {seconds:.0f} s for {what}"
                self._news.wait(left)
