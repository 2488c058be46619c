"""API troubles: what keeps each part of a fleet from the Prefect API, so that status can say it.

Only people read these: nothing is decided by them, so each expires by itself when its part tells it no longer.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowfleet.errors import FleetError
from flowfleet.ledger.store import Store
from flowfleet.retry import trouble_of

#: the part of a fleet that asks the API about everything
LEADER = "leader"
#: a poller that waits for the API before it can stand for election
STARTING = "starting"
#: trouble that lasts is told again this often, and is forgotten when it was not told for so long
REPEAT_SECONDS = 30.0
_FORGET_SECONDS = 90


@dataclass(frozen=True, kw_only=True)
class ApiTrouble:
    """What keeps one part from the API: key-refused, maintenance or away."""

    part: str
    trouble: str


@dataclass(kw_only=True)
class TroubleTeller:
    """The teller of one part's trouble: at once when it changes, and again while it lasts. Thread-safe."""

    store: Store
    part: str
    clock: Callable[[], float] = time.monotonic
    #: "": not known, so that the first good answer of a process takes back what one before it has told
    _told: str | None = field(default="", init=False)
    _told_at: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def tell(self, error: FleetError | None) -> None:
        """Tell what the last answer of the API was; None when it was a good one. Raises `LedgerError`."""
        trouble = trouble_of(error) if error is not None else None
        with self._lock:
            now = self.clock()
            if trouble == self._told and (trouble is None or now - self._told_at < REPEAT_SECONDS):
                return
            key = _key(self.store, self.part)
            if trouble is None:
                self.store.ask(lambda client: client.delete(key))
            else:
                text = json.dumps({"trouble": trouble})
                self.store.ask(lambda client: client.set(key, text, ex=_FORGET_SECONDS))
            self._told, self._told_at = trouble, now


def read(store: Store, parts: Sequence[str]) -> tuple[ApiTrouble, ...]:
    """The troubles of these parts, of those that have any."""
    if not parts:
        return ()
    told = store.ask(lambda client: client.mget([_key(store, part) for part in parts]))
    found = zip(parts, told, strict=True)
    return tuple(ApiTrouble(part=part, trouble=str(json.loads(text)["trouble"])) for part, text in found if text)


def _key(store: Store, part: str) -> str:
    return store.key(f"api-trouble:{part}")
