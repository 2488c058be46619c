"""API watch: the thread that asks the API about this worker's runs where the ledger does not speak for them.

While Redis is away it also shows the worker in its pools, under a name of its own, as a sign of life: the leader, which
hears of no renewals then, puts its judgement of the runs off.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from flowfleet.api.client import Mark
from flowfleet.api.life import cut_off_name
from flowfleet.errors import ApiError, KeyRefused
from flowfleet.guard import guarded
from flowfleet.ledger.claims import Claims, Refusal
from flowfleet.retry import REFUSED_SECONDS
from workers.runs.cancelling import Cancelling
from workers.runs.fencing import Fencing
from workers.state.attempts import Attempt
from workers.state.ledger_view import LedgerView

logger = logging.getLogger(__name__)

#: how many renewals have to fail before the worker counts as cut off: a short outage of Redis costs no request
MISSED_RENEWALS = 2


@dataclass(kw_only=True)
class ApiWatch:
    """The thread; it looks at each renewal interval, and at once when a renewal says something new."""

    mark: Mark
    ledger_view: LedgerView
    claims: Claims
    #: ends a run of ours that somebody wants cancelled, where the ledger cannot tell us so
    cancelling: Cancelling
    clock: Callable[[], float] = time.monotonic
    #: the pools in which we show ourselves as cut off now
    _shown: set[str] = field(default_factory=set, init=False)
    _next_pause: float | None = field(default=None, init=False)
    _nudged: threading.Event = field(default_factory=threading.Event, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        worker = self.mark.worker or ""
        self._name = cut_off_name(self.mark.fleet, worker)
        self.api, self.attempts = self.cancelling.api, self.cancelling.attempts
        self.fencing = Fencing(
            worker=worker,
            attempts=self.attempts,
            claims=self.claims,
            api=self.api.ends,
            traits=self.api.traits,
            supervisor=self.cancelling.supervisor,
            ledger_view=self.ledger_view,
            clock=self.clock,
            on_cancelled=self.cancelling.cancelled,
        )
        self._outage = self.cancelling.to_api.outage.of("api-watch")
        self._started = self.clock()
        self._thread = threading.Thread(target=self._run, name="api-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def refused(self, attempt: Attempt, refusal: Refusal) -> None:
        """Note that a renewal was refused for this claim; the API is asked at once where that is news."""
        if self.fencing.fenced(attempt, refusal):
            self._nudged.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._nudged.set()

    @property
    def away(self) -> bool:
        """Whether Redis has not answered for some renewals."""
        since = self.ledger_view.renewed_at
        silent = self.clock() - (self._started if since is None else since)
        return silent > MISSED_RENEWALS * self.ledger_view.lease.renew_seconds

    def _run(self) -> None:
        while not self._closed:
            self._nudged.wait(self._next_pause or self.ledger_view.lease.renew_seconds)
            self._nudged.clear()
            if self._closed:
                return
            with guarded(logger, "runs in doubt could not be looked at"):  # guards the loop
                self.look()

    def look(self) -> None:
        """Ask about the runs in doubt, and show or hide that we are cut off; an error of the API is logged."""
        away = self.away
        steps: tuple[Callable[[], bool], ...] = (
            partial(self.fencing.look, away=away),
            self._show if away else self._hide,
        )
        answered = False
        for step in steps:
            try:
                answered = step() or answered
            except ApiError as exc:
                # nothing is known, so nothing is ended: asked again
                self._next_pause = REFUSED_SECONDS if isinstance(exc, KeyRefused) else None
                self._outage.failed(exc, next_try=self._next_pause or self.ledger_view.lease.renew_seconds)
                return
        self._next_pause = None
        if answered:
            self._outage.passed()
        else:
            self._outage.left()

    def _show(self) -> bool:
        """Show that we are cut off; whether the API was asked."""
        pools = self.ledger_view.offer.pools if self.attempts.running() else ()
        for pool in pools:
            if pool not in self._shown:
                logger.info("cut off from Redis: the API is asked about the runs", extra={"pool": pool})
            self.api.presence.online(pool, self._name, self.ledger_view.lease.renew_seconds)
            self._shown.add(pool)
        return bool(pools)

    def _hide(self) -> bool:
        """Show that no more; whether the API was asked."""
        pools = sorted(self._shown)
        for pool in pools:
            self.api.presence.offline(pool, self._name)
            self._shown.discard(pool)
        return bool(pools)
