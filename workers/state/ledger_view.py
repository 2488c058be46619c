"""Ledger view: what the ledger last told this worker, and whether the worker may take runs now."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flowfleet.flow_run import Offer, Route
from flowfleet.ledger.claims import Lease, Renewal
from flowfleet.ledger.ledger_id import remembered


@dataclass
class LedgerView:
    """The answer to the last renewal: written by the heartbeat, read by the slots and the launch."""

    offer: Offer
    clock: Callable[[], float] = time.monotonic
    _renewal: Renewal | None = None
    #: when the last answered renewal was sent, by `clock`; None = none was
    renewed_at: float | None = None
    #: the routes whose queues are consumed now, as the slots bootstep has them
    served: frozenset[Route] = frozenset()
    #: the ids of the ledger that this process has heard, for a Redis that has lost them
    ledgers: tuple[str, ...] = ()
    #: why the deployer can start no run now, then nothing is fetched and no route served; empty where it can
    shut: Callable[[], str] = lambda: ""
    #: set once adoption is done and the platform is ready
    ready: threading.Event = field(default_factory=threading.Event)

    def tell(self, renewal: Renewal, sent: float) -> None:
        """Note the answer to a renewal that was sent at `sent`, by `clock`."""
        self._renewal, self.renewed_at = renewal, sent
        self.ledgers = remembered(renewal.ledgers, self.ledgers)

    def serve(self, routes: frozenset[Route]) -> bool:
        """Note the routes whose queues are consumed from now on; True when they are others than before."""
        changed = routes != self.served
        self.served = routes
        return changed

    @property
    def lease(self) -> Lease:
        """The lease that the leader has set; the default one until the first answer."""
        return self._renewal.lease if self._renewal else Lease()

    @property
    def wanted(self) -> str:
        """What the operator wants of this worker: active, paused or draining; active until the first answer."""
        return self._renewal.wanted if self._renewal else "active"

    @property
    def gate_open(self) -> bool:
        """Whether the gate was open at the last answer; False until the first."""
        return self._renewal is not None and self._renewal.gate_open

    @property
    def connected(self) -> bool:
        """Whether a renewal was answered within the last TTL."""
        return self.renewed_at is not None and self.clock() - self.renewed_at < self.lease.ttl_seconds

    @property
    def accepting(self) -> bool:
        """Whether a message may be fetched now, as far as the ledger decides; free slots are counted elsewhere."""
        return self.ready.is_set() and self.gate_open and self.connected and self.wanted == "active" and not self.shut()

    def routes(self) -> frozenset[Route]:
        """Every route known to the fleet that our offer can serve; none until the first answer."""
        known = self._renewal.routes if self._renewal else ()
        return frozenset(route for route in known if self.offer.serves(route))
