"""Heartbeat: one call to the ledger renews all that this worker holds, and its answer says what we have to do."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flowfleet.errors import LedgerError
from flowfleet.guard import guarded
from flowfleet.ledger.claims import Claim, Claims, Refusal, Renewal, State
from flowfleet.ledger.roster import SHUT_LIMIT, Roster, WorkerRow
from flowfleet.retry import Outage, SharedOutage
from workers.runs.answering import Answering
from workers.runs.api_watch import ApiWatch
from workers.runs.cancelling import Cancelling
from workers.runs.leases import Leases
from workers.runs.revived import RevivedClaims
from workers.runs.supervisor import Supervisor
from workers.shim.syscalls import boot_clock
from workers.state.attempts import Attempt, Attempts
from workers.state.ledger_view import LedgerView
from workers.state.run_folders import RunFolders

logger = logging.getLogger(__name__)

#: seconds between renewals while the gate is shut or Redis is away, so that a change is seen soon
SHUT_SECONDS = 1.0
#: a supervisor whose loop has not gone round for so many seconds watches nobody
WATCH_SECONDS = 10.0


@dataclass(kw_only=True)
class Heartbeat:
    """The heartbeat thread: renews each `renew_seconds` of the lease, or at once when it is nudged."""

    claims: Claims
    roster: Roster
    row: WorkerRow
    attempts: Attempts
    ledger_view: LedgerView
    supervisor: Supervisor
    cancelling: Cancelling
    leases: Leases
    api_watch: ApiWatch
    answering: Answering
    on_answer: Callable[[], None]
    runs: RunFolders
    #: the outage of Redis, where other parts of the process meet it too
    outage: Outage = field(default_factory=lambda: SharedOutage("Redis").of())
    #: called for a claim that the ledger has as another worker's: asks for it again if we took it over from a
    #: dead worker, and tells whether it is ours now
    take_again: Callable[[Attempt], bool] = lambda _attempt: False
    clock: Callable[[], float] = time.monotonic
    _beat: int = field(default=0, init=False)
    _nudged: threading.Event = field(default_factory=threading.Event, init=False)
    _closed: bool = field(default=False, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def nudge(self) -> None:
        """Renew now, without waiting for the next turn."""
        self._nudged.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._nudged.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._closed:
            self._nudged.wait(self._pause())
            self._nudged.clear()
            if self._closed:
                return
            with guarded(logger, "a renewal failed"):  # the worker's sign of life must not end with one fault
                try:
                    self.renew()
                except LedgerError as exc:  # also a password that was changed: it may be changed back
                    self.outage.failed(exc, next_try=self._pause())

    def _pause(self) -> float:
        wanted = self.ledger_view.lease.renew_seconds
        return wanted if self.ledger_view.gate_open and self.ledger_view.connected else min(SHUT_SECONDS, wanted)

    def renew(self) -> Renewal:
        """Renew all claims at once and act on the answer; raises `LedgerUnavailable`."""
        self._write_routes()
        held = self._held()
        self._beat += 1
        sent, sent_at = boot_clock(), self.clock()
        renewal = self.claims.renew(self.row.worker, self.row.nonce, self._beat, held)
        self.outage.passed()
        if not renewal.signed_on:
            self._sign_on_again()
        was_open = self.ledger_view.gate_open
        self.ledger_view.tell(renewal, sent_at)
        kept = [f"{one.run_id}.{one.claim}" for one in held if one.run_id not in renewal.fenced]
        self.attempts.prove(kept, sent)
        self.leases.extend(kept)
        self.api_watch.fencing.confirmed(kept)
        self._act(renewal, held)
        if renewal.gate_open and not was_open:
            RevivedClaims(worker=self.row.worker, claims=self.claims, attempts=self.attempts, runs=self.runs).release()
        self.on_answer()
        return renewal

    def _held(self) -> list[Claim]:
        watched = self.clock() - self.supervisor.seen < WATCH_SECONDS
        if not watched:
            logger.error("the supervisor does not answer: running claims are not renewed")
        return [
            dataclasses.replace(attempt.held, ttl=self.leases.ttl(attempt.key))
            for attempt in self.attempts.all()
            if not attempt.fenced and (watched or attempt.held.state is not State.RUNNING)
        ]

    def _sign_on_again(self) -> None:
        """Sign on again: the ledger has lost our row (an empty Redis), or another process has our name."""
        row = dataclasses.replace(self.row, beat=self._beat)
        other = self.roster.sign_on(row, ledgers=self.ledger_view.ledgers)
        if other is None:
            logger.warning(
                "the ledger had lost this worker, which has signed on again", extra={"worker": self.row.worker}
            )
        else:
            logger.error("another process has this worker's name", extra={"worker": self.row.worker})

    def _write_routes(self) -> None:
        # a stopping worker serves no route: it may wait hours for its runs, and what was claimed for it meanwhile would
        # lie in the queue and be handed back; so does one whose container engine is away
        shut = self.ledger_view.shut()[:SHUT_LIMIT]
        routes = () if shut or self.attempts.closed else tuple(sorted(self.ledger_view.served))
        if (routes, shut) != (self.row.routes, self.row.shut):
            row = dataclasses.replace(self.row, routes=routes, shut=shut)
            self.roster.update(row)
            self.row = row

    def _act(self, renewal: Renewal, held: list[Claim]) -> None:
        if renewal.reasserted:
            logger.warning("the ledger had lost claims that are written again", extra={"runs": len(renewal.reasserted)})
        for missed in renewal.missed:
            self.answering.asked(missed)
        for one in held:
            attempt = self.attempts.get(f"{one.run_id}.{one.claim}")
            if attempt is None:
                continue
            if one.run_id in renewal.fenced:
                self._fence(attempt, renewal.fenced)
            elif one.run_id in renewal.cancelled:
                self.cancelling.cancelled(attempt, renewal.cancelled[one.run_id])

    def _fence(self, attempt: Attempt, fenced: Mapping[str, Refusal]) -> None:
        refusal = fenced[attempt.held.run_id]
        if refusal is Refusal.OWNER and self.take_again(attempt):
            return
        logger.warning("claim is not ours any more", extra={**attempt.fields, "refusal": str(refusal)})
        self.api_watch.refused(attempt, refusal)
