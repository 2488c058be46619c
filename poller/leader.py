"""Leader: which poller of the fleet asks and claims; the others stand by and watch its counter."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flowfleet.errors import FleetError, LedgerError
from flowfleet.ledger.claims import Lease
from flowfleet.ledger.gate import Gate, Leader
from flowfleet.ledger.ledger_id import remembered
from flowfleet.retry import RetrySchedule

logger = logging.getLogger(__name__)

#: how often the leader's counter moves, and a standby looks at it
BEAT_SECONDS = 3.0


#: a poller whose counter the leader saw move so lately stands by: it moves with each beat, and is looked at as often
STANDING_SECONDS = 2 * BEAT_SECONDS + 1.0
#: and one that has not moved for so long is forgotten
GONE_SECONDS = 60.0


class TermLost(FleetError):
    """A script refused our term: another poller has been elected."""


class Standbys:
    """The pollers that stand by, as their leader sees them: by the moves of their counters, on its own clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        #: nonce → counter, since when it stands there, and whether it was ever seen to move
        self._seen: dict[str, tuple[int, float, bool]] = {}

    def note(self, counters: Mapping[str, int]) -> list[str]:
        """Note the counters; the nonces of those that have not moved for so long that they are to be forgotten."""
        now = self._clock()
        seen, self._seen = self._seen, {}
        for nonce, counter in counters.items():
            before, since, moved = seen.get(nonce, (counter, now, False))
            self._seen[nonce] = (counter, since, moved) if counter == before else (counter, now, True)
        return [nonce for nonce, (_, since, _) in self._seen.items() if now - since >= GONE_SECONDS]

    def moving(self) -> list[str]:
        """The nonces of those that were lately seen to move."""
        now = self._clock()
        return [nonce for nonce, (_, at, moved) in self._seen.items() if moved and now - at < STANDING_SECONDS]


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
        self._follows = False
        self._lock = threading.Lock()
        self._term: int | None = None
        self._resigned = False
        self._standbys = Standbys(self.clock)
        #: the ids of the ledger that this process has heard, its own first
        self._ledgers: tuple[str, ...] = ()

    @property
    def ledger(self) -> str:
        """The id of the ledger that this poller leads, by which its claims are known; empty before it has led."""
        return self._ledgers[0] if self._ledgers else ""

    @property
    def term(self) -> int | None:
        """The term that this poller leads; None while it stands by."""
        return self._term

    @property
    def follows(self) -> bool:
        """Whether another poller leads, and its counter has been seen to move."""
        return self._follows

    def tend(self) -> int | None:
        """Move our counter, or watch the leader's and take over when it stands still. Raises `LedgerUnavailable`.

        Returns the term that this poller leads now, or None while it stands by.
        """
        with self._lock:
            if self._resigned:
                return None
            if self._term is not None:
                if self.gate.lead(self._term, self.nonce, self.lease):
                    self.gate.forget_standbys(self._standbys.note(self.gate.standbys()))
                    self._ledgers = self._heard()
                    return self._term
                self._stand_by(self._term)
            term = self._watch()
            if term is None:
                self.gate.stand_by(self.nonce, self._ledgers)
                self._ledgers = self._heard()
            return term

    def _watch(self) -> int | None:
        now = self.clock()
        leader = self.gate.leader()
        if leader is not None:
            if self._seen is None or (leader.term, leader.beat) != (self._seen.term, self._seen.beat):
                if self._seen is None or leader.term != self._seen.term:
                    logger.info("standing by", extra={"leader": f"{leader.name}@{leader.host}", "term": leader.term})
                self._follows = self._seen is not None
                self._seen, self._seen_at = leader, now
                return None
            if now - self._seen_at < self.leader_seconds:
                return None
        term = self._elect(leader)
        self._forget()
        if term is not None:
            logger.info("elected", extra={"leader": f"{self.name}@{self.host}", "term": term})
        return term

    def _elect(self, leader: Leader | None) -> int | None:
        term = self.gate.elect(self.name, self.host, self.nonce, leader, self.lease, ledgers=self._ledgers)
        if term is not None:
            # before anything is claimed under this term
            self._ledgers = self._heard()
            self._term = term
        return term

    def _heard(self) -> tuple[str, ...]:
        return remembered(self.gate.ledgers(), self._ledgers)

    @property
    def standbys(self) -> int:
        """How many other pollers stand by, as far as this one leads and has seen their counters move."""
        return len(self._standbys.moving()) if self._term is not None else 0

    def begin_anew(self) -> None:
        """Begin the watch anew after an outage of Redis: the leader could not move its counter either."""
        with self._lock:
            self._forget()

    def lose(self, term: int) -> None:
        """Stand by, since a script has refused this term; a newer term of ours is kept."""
        with self._lock:
            if self._term == term:
                self._stand_by(term)

    def _stand_by(self, term: int) -> None:
        logger.warning("this poller leads no more, standing by", extra={"term": term})
        self._term = None
        self._forget()

    def _forget(self) -> None:
        """Forget what was seen of another leader: its watch begins anew."""
        self._seen, self._follows = None, False

    def hand_over(self) -> bool:
        """Give up the lead for good to a poller that stands by; False when none is seen to, and then we still lead."""
        with self._lock:
            others = self._standbys.moving()
            if self._term is None or not others or not self.gate.resign(self._term, others):
                return False
            self._left(self._term)
            return True

    def stand_down(self) -> int | None:
        """End as a poller that stands by; the term when nobody leads and we have to, before we end, else None."""
        with self._lock:
            if self._term is None and not self._resigned:
                if not self.gate.stand_down(self.nonce):
                    # the leader has ended too, and perhaps has left its claims to us
                    self._elect(None)
                self._resigned = self._term is None
            return self._term

    def resign(self) -> None:
        """Give up the lead for good, and write that down in the ledger, so that a standby need not wait."""
        with self._lock:
            self._resigned = True
            if self._term is not None:
                term, self._term = self._term, None
                self.gate.resign(term)
                self._left(term)

    def _left(self, term: int) -> None:
        self._resigned, self._term = True, None
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
            self.outage.over()  # each look ends with a write of ours: a Redis that takes none still answers reads
        if self.leadership.term != before:
            self.changed()
