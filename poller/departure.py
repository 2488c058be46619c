"""Departure: how a poller leaves: by a stop, after its last poll, or by the word of `flowfleet leave`.

Where no other poller stands by, what has not begun goes back to the API first: nobody would claim, hand back or settle
it any more, and another executor would never see it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flowfleet.errors import ApiError, LedgerError
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Claim, Claims, State
from flowfleet.ledger.gate import Gate, Leader
from flowfleet.ledger.roster import Roster, WorkerRow
from poller.leader import Leadership, TermLost
from poller.progress import Progress
from poller.rebuild import Sweep
from poller.reconcile import Reconciler

logger = logging.getLogger(__name__)

#: claims whose user code has not begun, and which nobody may leave behind
NOT_BEGUN = frozenset({State.CLAIMING, State.QUEUED, State.TAKEN, State.RETURNING})
#: claims whose run goes on, whoever leaves
GOES_ON = frozenset({State.STARTING, State.RUNNING, State.MISSING})
#: after the last poll, what is queued gets this long to be taken; the leader would hand it back then
LAST_TAKES_SECONDS = 60.0
#: the end gives back for so long at most, and waits for so long at most for an answer of the API
GIVE_BACK_SECONDS = 20.0
SILENT_SECONDS = 5.0
_LOOK_SECONDS = 0.2
#: a line of the log names so many runs
_NAMED = 20


class Pause(Protocol):
    """The inbox of the loop, as far as one can sleep by it."""

    def wait(self, seconds: float, gather_seconds: float = 0.0) -> frozenset[str]:
        """Wait for so long, or until a hint comes."""


@dataclass(kw_only=True)
class Departure:
    """The departure of one poller."""

    gate: Gate
    claims: Claims
    roster: Roster
    leadership: Leadership
    reconciler: Reconciler
    sweep: Sweep
    progress: Progress
    failpoints: Failpoints
    clock: Callable[[], float]
    #: the poller inside `flowfleet leave` claims nothing, whatever is said, and stays until that command ends it
    substitute: bool = False
    #: whether the word stands: nothing is claimed
    ordered: bool = field(default=False, init=False)
    #: whether this leader has seen, by the word, that nothing is left which has not begun
    cleared: bool = field(default=False, init=False)
    #: True once the word has been followed
    done: bool = field(default=False, init=False)
    _leader: Leader | None = field(default=None, init=False)
    _swept: bool = field(default=False, init=False)
    #: until when the end gives back; None: it does not
    _clears_until: float | None = field(default=None, init=False)
    #: whether another poller leads on, so that nothing is left behind
    _replaced: bool = field(default=False, init=False)

    # -- by the word

    def look(self, term: int | None) -> None:
        """Look whether the word stands. Raises `LedgerError`.

        A poller that stands by ends when it sees that the leader lives, which does all; else it takes over first.
        """
        ordered = self.substitute or self.gate.leave_ordered()
        if ordered != self.ordered:
            self.ordered, self._leader, self._swept = ordered, None, False
            logger.info("all pollers are told to leave" if ordered else "no poller is told to leave any more")
        if not ordered or term is not None:
            return
        self.cleared = self._swept = False
        leader = self.gate.leader()
        if leader is not None and self._leader is not None and leader.beat != self._leader.beat:
            self.done = not self.substitute
        self._leader = leader

    def give_back(self, term: int, rows: Sequence[WorkerRow]) -> None:
        """Follow the word as the leader: hand back and finish, until nothing is left that has not begun.

        Raises as `Reconciler.tend` and `Sweep.run` do.
        """
        self.reconciler.tend(term, self.claims.live(), rows, leaving=True)
        self.cleared = False
        if any(claim.state in NOT_BEGUN for claim in self.claims.live()):
            return
        if not self._swept or self.clock() >= self.sweep.again_at:
            self.sweep.run()
            self._swept = True
        self.cleared = self.sweep.again_at == float("inf")
        self.done = self.cleared and not self.substitute

    # -- the end

    @property
    def under_way(self) -> bool:
        """Whether the end gives back, and the API has answered lately."""
        until = self._clears_until
        return until is not None and self.clock() < until and self.progress.seconds_ago < SILENT_SECONDS

    def await_takes(self, inbox: Pause, stopped: Callable[[], bool]) -> None:
        """Wait after the last poll until what is queued is taken, where a live worker takes it."""
        if self.leadership.term is None:
            return
        until = self.clock() + LAST_TAKES_SECONDS
        try:
            while not stopped() and self.clock() < until and self._will_be_taken():
                self.progress.note()
                inbox.wait(_LOOK_SECONDS)
        except LedgerError as exc:
            logger.warning("the last claims are not waited for", extra={"error": str(exc)})

    def _will_be_taken(self) -> bool:
        served = {route for row in self.roster.rows() if row.takes_runs for route in row.routes}
        unpublished = self.reconciler.claimer.unpublished
        return any(
            claim.state is State.QUEUED and claim.route in served and claim.claim not in unpublished
            for claim in self.claims.live()
        )

    def finish(self, term: int | None) -> None:
        """End in order: settle and give back what has not begun, unless another poller stands by, then leave the lead.

        `term` is the one in which the loop has led, if it has.
        """
        self._clears_until = self.clock() + GIVE_BACK_SECONDS
        self.progress.note()
        try:
            self._clear(term)
        except (ApiError, LedgerError, TermLost) as exc:
            logger.warning("not all claims could be settled, the next leader will", extra={"error": str(exc)})
        self.failpoints.hit("leave.before_resign")
        self._clears_until = None
        try:
            self.leadership.resign()
        except LedgerError as exc:
            logger.warning("could not resign, a standby will notice", extra={"error": str(exc)})

    def _clear(self, led: int | None) -> None:
        term = self.leadership.term or self.leadership.stand_down()
        if term is None:
            self._replaced = True
            return
        if term != led:
            self.reconciler.new_term()
        if not self.ordered:
            self.reconciler.clear(term, last=False)
            self._replaced = self.leadership.hand_over()
        if not self._replaced:
            self.reconciler.clear(term, last=True)

    def last_words(self) -> None:
        """Resign where the end takes too long, and name what could not be given back. Raises `LedgerError`."""
        self.leadership.resign()
        left = self.left()
        if "not_given_back" in left:
            logger.warning("runs could not be given back, the next poller does that", extra=left)

    def left(self) -> dict[str, str]:
        """The runs that are still the fleet's, by name, for the last line: those that go on, and those left behind.

        Nothing where another poller leads on.
        """
        if self._replaced:
            return {}
        try:
            live = self.claims.live()
        except LedgerError:
            return {}
        told = {
            "go_on": [claim for claim in live if claim.state in GOES_ON],
            "not_given_back": [claim for claim in live if claim.state in NOT_BEGUN],
        }
        return {name: names_of(claims) for name, claims in told.items() if claims}


def names_of(claims: Iterable[Claim]) -> str:
    """The runs of these claims, by name and id, as a line of the log names them."""
    names = [f"{claim.name} ({claim.run_id})" for claim in claims]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
