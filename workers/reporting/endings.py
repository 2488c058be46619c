"""Endings: the steps of an ended run: record it in the ledger, ask the API, report if needed, release the claim."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flowfleet.api.client import Answer, EndApi, Mark, RunState, StateType, Verdict
from flowfleet.api.traits import Traits
from flowfleet.errors import ApiRejected, ApiUnavailable, LedgerBehind
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Claim, Claims, Outcome, Refusal, State
from workers.background import BackgroundJobs
from workers.deployment import Exit, StopReason
from workers.reporting.delivery import Delivery
from workers.reporting.end_hooks import EndHooks, NoHooks
from workers.reporting.exit_table import GONE_LOOK_SECONDS, SECOND_LOOK_SECONDS, Decision, Step, decide
from workers.reporting.outbox import Outbox, Report
from workers.reporting.receipts import Receipts
from workers.reporting.run_log import RunLog
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolders

logger = logging.getLogger(__name__)

#: ends wait this long for others, so that one request asks about all of them
GATHER_SECONDS = 0.3
#: states of a claim in the ledger whose run has ended here: only an older copy of Redis can show them
_NOT_BEGUN = frozenset({State.CLAIMING, State.QUEUED, State.TAKEN, State.RETURNING})
#: a full disk is tried again this often
DISK_SECONDS = 10.0


@dataclass(kw_only=True)
class Endings:
    """The steps of each end: `ended` in the ledger, a look at the API, a report if one is due, and the release.

    A report goes to the API by `Delivery`. Its file goes only when the run is settled, so a crash at any point sends it
    once more.
    """

    attempts: Attempts
    claims: Claims
    api: EndApi
    traits: Traits
    worker: str
    mark: Mark
    runs: RunFolders
    outbox: Outbox
    to_ledger: BackgroundJobs
    to_api: BackgroundJobs
    run_log: RunLog
    failpoints: Failpoints
    #: called with the attempt (None when this process did not hold it) and the outcome once a run is settled
    on_settled: Callable[[Attempt | None, str], None]
    #: cancels a run at the API as a user does, with this message
    cancel_at_api: Callable[[str, str], Answer]
    #: called with each attempt that has ended and whose claim is not ours any more
    on_fenced_end: Callable[[Attempt], None] = lambda _attempt: None
    #: takes a claim over once more that the ledger gives to another worker; True when the claim is ours again
    take_again: Callable[[Attempt], bool] = lambda _attempt: False
    receipts: Receipts = field(default_factory=Receipts)
    hooks: EndHooks = field(default_factory=NoHooks)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        #: key of an ended attempt → (when to look at its state at the API, whether it was looked at before)
        self._looks: dict[str, tuple[float, bool]] = {}
        #: keys of ended attempts whose runs were not in the API's last answer
        self._missed: set[str] = set()
        self._delivery = Delivery(
            attempts=self.attempts,
            api=self.api,
            mark=self.mark,
            outbox=self.outbox,
            to_api=self.to_api,
            run_log=self.run_log,
            failpoints=self.failpoints,
            release=self._release,
            look_again=lambda key, after: self._look(key, after, before=True),
            runs=self.runs,
            hooks=self.hooks,
        )

    def ended(self, attempt: Attempt) -> None:
        """Begin the steps for a run of ours that has ended and whose exit is on disk."""
        self.failpoints.hit("end.before_record")
        if attempt.exit is not None:
            attempt.folder.certify(attempt.exit)
        if attempt.exit is not None and attempt.exit.ignored:
            signals = ", ".join(f"{name} x {count}" for name, count in attempt.exit.ignored.items())
            logger.warning(
                "the process above a run ignored signals that were not its worker's",
                extra={**attempt.fields, "signals": signals},
            )
        self.to_ledger.post(lambda: self._record(attempt.key))

    def resend(self) -> list[Report]:
        """Send again all reports that an earlier worker has left in the outbox, and return them."""
        return self._delivery.resend()

    # -- the ledger

    def _record(self, key: str) -> None:
        attempt = self.attempts.get(key)
        if attempt is None or attempt.exit is None:
            return
        held = attempt.held
        if attempt.fenced:
            self._lost(attempt, "fenced")
            return
        outcome = self.claims.end(held.run_id, held.claim, self.worker, attempt.exit.certificate())
        if _is_ended(outcome):
            self.failpoints.hit("end.after_record")
            told = self.receipts.end_of(attempt)
            if told is not None:
                self._let_go(attempt, told.value.lower())
            else:
                self._look(key, GATHER_SECONDS, before=False)
        elif _is_behind(outcome):
            # a ledger that lost its data, or its last writes: the next renewal writes the claim again, or says that
            # it is not ours
            raise LedgerBehind(f"the ledger does not know yet that run {held.run_id} has begun")
        elif outcome.refusal is Refusal.OWNER and self.take_again(attempt):
            self.to_ledger.post(lambda: self._record(key))
        else:
            self._lost(attempt, str(outcome.refusal))

    def _lost(self, attempt: Attempt, why: str) -> None:
        # whoever owns the run now reports its end; the true exit is still worth a line on the run's log page
        logger.warning(
            "ended run is not ours any more", extra={**attempt.fields, "why": why, "exit": str(attempt.exit)}
        )
        if attempt.refusal is not Refusal.FORGOTTEN:  # that one is told of by nobody
            self.run_log.say(
                attempt.held.run_id,
                f"The process of an earlier attempt at this flow run on {self.worker} {attempt.exit}.",
                logging.WARNING,
            )
        self.on_fenced_end(attempt)
        self._settle(attempt.held.run_id, attempt.held.claim, "lost")

    def _release(self, ended: Report | Claim, outcome: str) -> None:
        run_id, claim = ended.run_id, ended.claim
        owner = ended.worker if isinstance(ended, Report) else self.worker

        def release() -> None:
            done = self.claims.release(run_id, claim, owner, outcome)
            if not done.moved:
                logger.info(
                    "claim was gone before its release",
                    extra={"run_id": run_id, "claim": claim, "refusal": str(done.refusal)},
                )
            self._settle(run_id, claim, outcome)

        self.to_ledger.post(release)

    def _settle(self, run_id: str, claim: str, outcome: str) -> None:
        folder = self.runs.find(run_id, claim)
        if folder.path.exists():
            folder.settle()
        self.outbox.remove(run_id, claim)
        attempt = self.attempts.remove(f"{run_id}.{claim}")
        names = attempt.fields if attempt else {"run_id": run_id, "claim": claim}
        logger.info("run settled", extra={**names, "outcome": outcome})
        self.on_settled(attempt, outcome)

    # -- the API

    def _look(self, key: str, after: float, *, before: bool) -> None:
        with self._lock:
            self._looks[key] = (self.clock() + after, before)
        self.to_api.post(self._look_at_all, after=after)

    def _look_at_all(self) -> None:
        now = self.clock() + 0.05
        with self._lock:
            due = {key: before for key, (at, before) in self._looks.items() if at <= now}
        attempts = {key: attempt for key in due if (attempt := self.attempts.get(key)) is not None}
        if attempts:
            states = self._states(list(attempts.values()))
            for key, attempt in attempts.items():
                try:
                    self._decide(attempt, states.get(attempt.held.run_id), looked_before=due[key])
                except OSError as exc:
                    # the disk has no room for the report: this run is looked at again, and no other end waits for it
                    self._no_room(attempt, exc)
                    self._look(key, DISK_SECONDS, before=due[key])
        with self._lock:
            for key in due:
                # a second look that was asked for meanwhile stays
                if key in self._looks and self._looks[key][0] <= now:
                    del self._looks[key]

    def _states(self, attempts: list[Attempt]) -> dict[str, RunState]:
        try:
            return self.api.states([attempt.held.run_id for attempt in attempts])
        except ApiUnavailable:
            for attempt in attempts:
                if attempt.exit is not None and not attempt.exit.ok:
                    try:
                        self._keep(attempt, attempt.exit)
                    except OSError as exc:
                        self._no_room(attempt, exc)
            raise
        except ApiRejected as exc:
            # an end is never given up: the API may understand us after its next upgrade
            raise ApiUnavailable(f"the API refused to tell the states of ended runs: {exc}") from exc

    def _decide(self, attempt: Attempt, state: RunState | None, *, looked_before: bool) -> None:
        if attempt.exit is None:
            return
        if attempt.fenced:
            self._lost(attempt, "fenced")
            return
        if state is None and attempt.key not in self._missed:
            self._missed.add(attempt.key)
            self._look(attempt.key, GONE_LOOK_SECONDS, before=looked_before)
            return
        self._missed.discard(attempt.key)
        self.receipts.compare(attempt, state)
        again = _may_run_again(attempt)
        decision = decide(
            attempt.exit, state, traits=self.traits, looked_before=looked_before, again=again, cancel=attempt.cancel
        )
        if decision.step is Step.LOOK_AGAIN:
            self._look(attempt.key, SECOND_LOOK_SECONDS, before=True)
        elif decision.step is Step.RELEASE:
            self._let_go(attempt, decision.outcome)
        elif decision.cancelling_first:
            self.to_api.post(lambda: self._cancel_first(attempt))
        elif decision.kind is StateType.CANCELLED and self.hooks.wanted(attempt.folder):
            self.hooks.run(attempt.folder, StateType.CANCELLING, lambda: self._look(attempt.key, 0.0, before=True))
        else:
            self._delivery.put(self._report(attempt, decision))

    def _cancel_first(self, attempt: Attempt) -> None:
        if self.api.claimed_since(attempt.held.run_id, attempt.held.claim):
            self._let_go(attempt, "overtaken")  # the leader has told our end meanwhile, and somebody tries again
            return
        # the history of a cancelled run is Cancelling and Cancelled, whoever has asked, and hooks run in between
        why = attempt.cancel.why if attempt.cancel is not None else ""
        answer = self.cancel_at_api(attempt.held.run_id, why)
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"no definite answer to the cancel of run {attempt.held.run_id}: {answer.reason}")
        self._look(attempt.key, 0.0 if answer.verdict is Verdict.ACCEPTED else SECOND_LOOK_SECONDS, before=True)

    def _let_go(self, attempt: Attempt, outcome: str) -> None:
        if attempt.exit is not None and attempt.exit.stop_reason is not None:
            # the engine has written an end of its own, which says nothing of the stop
            self.run_log.say(attempt.held.run_id, f"The flow run's process {attempt.exit}.", logging.WARNING)
        self._release(attempt.held, outcome)

    def _keep(self, attempt: Attempt, end: Exit) -> None:
        # the report that is sent if the API turns out to have no end of its own
        running = RunState(
            run_id=attempt.held.run_id, run_name=attempt.held.name, kind=StateType.RUNNING, name="Running"
        )
        decision = decide(end, running, traits=self.traits, looked_before=True, cancel=attempt.cancel)
        self.outbox.put_aside(self._report(attempt, decision))

    def _no_room(self, attempt: Attempt, exc: OSError) -> None:
        logger.error(
            "report cannot be written to the disk: it is tried again",
            extra={**attempt.fields, "error": str(exc), "next_try_seconds": DISK_SECONDS},
        )

    def _report(self, attempt: Attempt, decision: Decision) -> Report:
        assert decision.kind is not None
        return Report(
            run_id=attempt.held.run_id,
            claim=attempt.held.claim,
            kind=decision.kind,
            message=decision.message,
            worker=self.worker,
        )


def _may_run_again(attempt: Attempt) -> bool:
    """Whether the run goes back to Scheduled: its policy asks for that, and what has ended it is no fault of its own.

    That is a stop of its worker, its dead man's switch or a restart of its host; and it is seen to be gone whole.
    """
    end = attempt.exit
    if end is None or attempt.cancelled or attempt.held.policy != "requeue":
        return False
    stopped = end.stop_reason in (StopReason.WORKER, StopReason.SWITCH) and attempt.folder.cleared()
    return end.rebooted or stopped


def _is_behind(outcome: Outcome) -> bool:
    """Whether the ledger may know less of the claim than this host: it has none, an older one, or one not begun."""
    if outcome.refusal is Refusal.STATE:
        return outcome.claim is not None and outcome.claim.state in _NOT_BEGUN
    return outcome.refusal in (Refusal.UNKNOWN, Refusal.OTHER_CLAIM)


def _is_ended(outcome: Outcome) -> bool:
    claim = outcome.claim
    # a claim that is ended already: this was a repeat, and the answer to the first try was lost
    return outcome.moved or (outcome.refusal is Refusal.STATE and claim is not None and claim.state is State.ENDED)
