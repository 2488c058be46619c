"""Leader: which poller of the fleet asks and claims; the others stand by and watch its counter."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from flowfleet.errors import FleetError, LedgerError
from flowfleet.ledger.claims import Lease
from flowfleet.ledger.gate import Gate, Leader
from flowfleet.retry import RetrySchedule

logger = logging.getLogger(__name__)

#: how often the leader's counter moves, and a standby looks at it
BEAT_SECONDS = 3.0


class TermLost(FleetError):
    """A script refused our term: another poller has been elected."""


@dataclass
class Leadership:
    """The part of this poller in the election: a candidate, then perhaps the leader of one term.

    No key expires: a standby takes over only when it has itself seen the counter stand still for `leader_seconds` of
    its own monotonic clock. A leader that only believes that it leads is harmless: each script carries the term.
    """

    gate: Gate
    name: str
    host: str
    nonce: str
    lease: Lease
    leader_seconds: float
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        self._seen: Leader | None = None
        self._seen_at = 0.0
        self._lock = threading.Lock()
        self._term: int | None = None
        self._resigned = False
        #: whether the last look has proved that Redis takes writes: our own, or one of another leader that was seen
        self.proved = False

    @property
    def term(self) -> int | None:
        """The term that this poller leads; None while it stands by."""
        return self._term

    def tend(self) -> int | None:
        """Move our counter, or watch the leader's and take over when it stands still. Raises `LedgerUnavailable`.

        Returns the term that this poller leads now, or None while it stands by.
        """
        with self._lock:
            self.proved = False
            if self._resigned:
                return None
            if self._term is not None:
                if self.gate.lead(self._term, self.nonce, self.lease):
                    self.proved = True
                    return self._term
                self._stand_by(self._term)
            return self._watch()

    def _watch(self) -> int | None:
        now = self.clock()
        leader = self.gate.leader()
        if leader is not None:
            if self._seen is None or (leader.term, leader.beat) != (self._seen.term, self._seen.beat):
                if self._seen is None or leader.term != self._seen.term:
                    logger.info("standing by", extra={"leader": f"{leader.name}@{leader.host}", "term": leader.term})
                self.proved = self._seen is not None
                self._seen, self._seen_at = leader, now
                return None
            if now - self._seen_at < self.leader_seconds:
                return None
        term = self.gate.elect(self.name, self.host, self.nonce, leader)
        self._seen = None
        self.proved = True
        if term is not None:
            self._term = term
            logger.info("elected", extra={"leader": f"{self.name}@{self.host}", "term": term})
        return term

    def begin_anew(self) -> None:
        """Begin the watch anew after an outage of Redis: the leader could not move its counter either."""
        with self._lock:
            self._seen = None

    def lose(self, term: int) -> None:
        """Stand by, since a script has refused this term; a newer term of ours is kept."""
        with self._lock:
            if self._term == term:
                self._stand_by(term)

    def _stand_by(self, term: int) -> None:
        logger.warning("another poller leads now, standing by", extra={"term": term})
        self._term = None
        self._seen = None

    def resign(self) -> None:
        """Give up the lead for good, and write that down in the ledger, so that a standby need not wait."""
        with self._lock:
            self._resigned = True
            if self._term is not None:
                term, self._term = self._term, None
                self.gate.resign(term)
                logger.info("resigned", extra={"term": term})


@dataclass
class LeadershipThread:
    """The thread that tends the leadership, so that a slow answer of the API does not look like a dead leader."""

    leadership: Leadership
    outage: RetrySchedule
    changed: Callable[[], None]
    #: does the loop still make rounds? A leader whose loop hangs must not keep the others standing by
    working: Callable[[], bool]
    beat_seconds: float = BEAT_SECONDS

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leadership", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for its end."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._once()
            self._stopped.wait(self.beat_seconds)

    def _once(self) -> None:
        before = self.leadership.term
        if before is not None and not self.working():
            logger.error("the loop hangs, the lead is left to another", extra={"term": before})
            return
        try:
            self.leadership.tend()
        except LedgerError as exc:
            self.leadership.begin_anew()
            self.outage.failed(exc)
        else:
            if self.leadership.proved:  # a Redis that takes no writes still answers a standby's reads
                self.outage.over()
        if self.leadership.term != before:
            self.changed()
