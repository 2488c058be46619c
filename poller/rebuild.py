"""Rebuild: the sweep for runs that the API shows as ours and the ledger does not know, and the gate opened after it.

Workers re-assert what they hold, the sweep finds what nobody holds; of that, what was launched is restored afterwards
(poller/restore.py). Nothing else is needed to rebuild a ledger.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flowfleet.api.client import ApiClient, Mark, StateType, UnfinishedRun, Verdict
from flowfleet.errors import ApiRejected
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Claims
from flowfleet.ledger.gate import Gate
from poller.metrics import PollerMetrics

logger = logging.getLogger(__name__)

SUBMITTED = "Submitted"
#: where there is no Launching a run stays Submitted until its engine, which loads the flow first, has written Running.
#: A sweep comes when no start is possible any more, so what is still Submitted after this has no engine.
ENGINE_START_SECONDS = 60.0


@dataclass
class Sweep:
    """Compares the API's unfinished runs of this fleet with the ledger."""

    api: ApiClient
    claims: Claims
    mark: Mark
    failpoints: Failpoints
    metrics: PollerMetrics
    clock: Callable[[], float]
    #: runs that the last sweep found launched by this fleet and unknown to the ledger; `Restorer` sees to them
    unknown: tuple[UnfinishedRun, ...] = field(default=(), init=False)
    #: by run and call of each run that was Submitted and unknown: when that was seen first, by our monotonic clock
    _waiting: dict[tuple[str, str | None], float] = field(default_factory=dict, init=False)

    @property
    def again_at(self) -> float:
        """When the next sweep is worth its request, by the monotonic clock: runs left alone may be clear by then."""
        return min(self._waiting.values(), default=float("inf")) + ENGINE_START_SECONDS

    def count(self) -> int:
        """Count the unfinished runs of this fleet that the API shows, and touch none."""
        return len(self.api.unfinished(self.mark))

    def run(self) -> int:
        """Make one full sweep; return how many unfinished runs of this fleet the API showed.

        Raises `ApiUnavailable` when the sweep could not be done in full.
        """
        unfinished = self.api.unfinished(self.mark)
        unknown: list[UnfinishedRun] = []
        waiting: dict[tuple[str, str | None], float] = {}
        for found in unfinished:
            # asked run by run and after the listing: what was claimed meanwhile is known here, since the ledger hears
            # of each claim before the API does
            if self.claims.get(found.state.run_id) is not None:
                continue
            if _never_launched(found):
                seen = self._first_seen(found)
                if self.clock() - seen >= self._engine_start_seconds:
                    self._give_back(found)
                else:
                    waiting[found.state.run_id, found.state.call] = seen
            else:
                unknown.append(found)
        self.unknown, self._waiting = tuple(unknown), waiting
        self.metrics.unknown.set(len(unknown))
        return len(unfinished)

    @property
    def _engine_start_seconds(self) -> float:
        return 0.0 if self.api.traits.has_launching else ENGINE_START_SECONDS

    def _first_seen(self, found: UnfinishedRun) -> float:
        """When the sweep first saw this run as Submitted and unknown, by our own clock.

        The state's own age says less: it counts from the claim, and the start may come minutes after that.
        """
        state, now = found.state, self.clock()
        if (state.run_id, state.call) not in self._waiting and self._engine_start_seconds:
            logger.info(
                "run is submitted and unknown to the ledger, looked at again before it is given back",
                extra={"run_id": state.run_id, "next_look_seconds": self._engine_start_seconds},
            )
        return self._waiting.get((state.run_id, state.call), now)

    def _give_back(self, found: UnfinishedRun) -> None:
        state = found.state
        due = found.due or state.scheduled or datetime.now(UTC)
        if state.call is None:
            logger.warning("run was submitted under our name without a call id", extra={"run_id": state.run_id})
            return
        try:
            answer = self.api.ends.hand_back(state.run_id, state.call, due, self.mark, "unknown to the ledger")
        except ApiRejected as exc:
            logger.warning("run cannot be handed back", extra={"run_id": state.run_id, "error": str(exc)})
            return
        if answer.silence:
            raise answer.silence
        self.failpoints.hit("return.after_api")
        if answer.verdict is Verdict.ACCEPTED:
            self.metrics.handed_back.labels("unknown").inc()
            logger.warning("run handed back", extra={"run_id": state.run_id, "reason": "unknown to the ledger"})


def _never_launched(found: UnfinishedRun) -> bool:
    """Whether the state alone says that nothing was started: Launching always comes before the fork.

    The infrastructure mark says nothing here. The server never clears it, so a run in its second life (resumed after a
    suspend, retried in the UI) still has that of its first.
    """
    return found.state.kind is StateType.PENDING and found.state.name == SUBMITTED


@dataclass
class Gatekeeper:
    """Opens the gate for a new Redis process: after a TTL in which workers could re-assert, and a full sweep."""

    gate: Gate
    sweep: Sweep
    failpoints: Failpoints
    clock: Callable[[], float]
    #: a TTL, and a renewal more for the workers that reconnect late
    wait_seconds: float
    #: the process of Redis, the term and the number of outages for which the wait has begun
    _waits_for: tuple[str, int, int] | None = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)
    _looked: bool = field(default=False, init=False)

    def left_seconds(self) -> float:
        """Seconds that a shut gate still waits for workers before the sweep."""
        return max(0.0, self._since + self.wait_seconds - self.clock())

    def tend(self, term: int, outages: int) -> bool:
        """Open a shut gate when its time has come; True when the gate is open.

        With each term and after each outage the wait begins anew: workers get the whole time again.
        """
        if self.gate.is_open():
            self._waits_for = None
            return True
        server = self.gate.server()
        if (server, term, outages) != self._waits_for:
            self._waits_for, self._since, self._looked = (server, term, outages), self.clock(), False
        if not self._looked:
            # an empty ledger is that of a new fleet, or one that lost everything: the API knows which
            if self.gate.empty() and self.sweep.count() == 0:
                return self._open(term, server)
            self._looked = True
            logger.warning(
                "Redis was restarted, replaced or promoted: nothing is claimed until workers have told what they run",
                extra={"server": server, "wait_seconds": round(self.left_seconds(), 1)},
            )
        if self.left_seconds() > 0:
            return False
        self.sweep.run()
        return self._open(term, server)

    def _open(self, term: int, server: str) -> bool:
        self.failpoints.hit("gate.before_open")
        opened = self.gate.open(term, server)
        if opened:
            logger.info("gate opened", extra={"server": server, "term": term})
            self._waits_for = None
        return opened
