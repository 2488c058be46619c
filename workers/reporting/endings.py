"""Endings: the steps of an ended run: record it in the ledger, ask the API, report if needed, release the claim."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from flowfleet.api.client import Answer, EndApi, Mark, RunState, StateType, Verdict
from flowfleet.api.traits import Traits
from flowfleet.errors import ApiRejected, ApiUnavailable, LedgerUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import Claim, Claims, Outcome, Refusal, State
from workers.background import BackgroundJobs
from workers.deployment import Exit, StopReason
from workers.reporting.exit_table import CANCELLED, SECOND_LOOK_SECONDS, Decision, Step, decide, for_cancelled
from workers.reporting.outbox import Outbox, Report
from workers.reporting.run_log import RunLog
from workers.state.attempts import Attempt, Attempts
from workers.state.run_folders import RunFolders

logger = logging.getLogger(__name__)

#: ends wait this long for others, so that one request asks about all of them
GATHER_SECONDS = 0.3
#: a full disk is tried again this often
DISK_SECONDS = 10.0


@dataclass(kw_only=True)
class Endings:
    """The steps of each end: `ended` in the ledger, a look at the API, a report if one is due, and the release.

    A report goes to the disk before it goes to the API, and is sent again until the API has answered. Its file goes
    only when the run is settled, so a crash at any point sends it once more.
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
    #: takes a claim over once more that the ledger gives to another worker; True when the claim is ours again
    take_again: Callable[[Attempt], bool] = lambda _attempt: False
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    #: key of an ended attempt → (when to look at its state at the API, whether it was looked at before)
    _looks: dict[str, tuple[float, bool]] = field(default_factory=dict, init=False)

    def ended(self, attempt: Attempt) -> None:
        """Begin the steps for a run of ours that has ended and whose exit is on disk."""
        self.failpoints.hit("end.before_record")
        if attempt.exit is not None and attempt.exit.ignored:
            signals = ", ".join(f"{name} x {count}" for name, count in attempt.exit.ignored.items())
            logger.warning(
                "the process above a run ignored signals that were not its worker's",
                extra={**attempt.fields, "signals": signals},
            )
        self.to_ledger.post(lambda: self._record(attempt.key))

    def resend(self) -> list[Report]:
        """Send again all reports that an earlier worker has left in the outbox, and return them."""
        reports = self.outbox.to_send()
        for report in reports:
            self._post(report)
        return reports

    # -- the ledger

    def _record(self, key: str) -> None:
        attempt = self.attempts.get(key)
        if attempt is None or attempt.exit is None:
            return
        held = attempt.held
        if attempt.fenced:
            self._lost(attempt, "fenced")
            return
        outcome = self.claims.end(held.run_id, held.claim, self.worker, attempt.exit.to_record())
        if _is_ended(outcome):
            self.failpoints.hit("end.after_record")
            self._look(key, GATHER_SECONDS, before=False)
        elif outcome.refusal is Refusal.UNKNOWN:
            # a ledger that lost its data: the next renewal writes the claim again, or says that it is not ours
            raise LedgerUnavailable(f"the ledger does not know the ended run {held.run_id} yet")
        elif outcome.refusal is Refusal.OWNER and self.take_again(attempt):
            self.to_ledger.post(lambda: self._record(key))
        else:
            self._lost(attempt, str(outcome.refusal))

    def _lost(self, attempt: Attempt, why: str) -> None:
        # whoever owns the run now reports its end; the true exit is still worth a line on the run's log page
        logger.warning(
            "ended run is not ours any more", extra={**attempt.fields, "why": why, "exit": str(attempt.exit)}
        )
        self.run_log.say(
            attempt.held.run_id,
            f"The process of an earlier attempt at this flow run on {self.worker} {attempt.exit}.",
            logging.WARNING,
        )
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
        logger.info("run settled", extra={"run_id": run_id, "claim": claim, "outcome": outcome})
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
        again = _may_run_again(attempt)
        decision = decide(attempt.exit, state, traits=self.traits, looked_before=looked_before, again=again)
        if attempt.cancelled:
            decision = for_cancelled(decision)
        if decision.step is Step.LOOK_AGAIN:
            self._look(attempt.key, SECOND_LOOK_SECONDS, before=True)
        elif decision.step is Step.RELEASE:
            if attempt.exit.stop_reason is not None and not attempt.cancelled:
                # the engine has written an end of its own, which says nothing of the stop
                self.run_log.say(attempt.held.run_id, f"The flow run's process {attempt.exit}.", logging.WARNING)
            self._release(attempt.held, decision.outcome)
        else:
            report = self._report(attempt, decision)
            self.outbox.put(report)
            self._post(report)

    def _keep(self, attempt: Attempt, end: Exit) -> None:
        # the report that is sent if the API turns out to have no end of its own
        running = RunState(
            run_id=attempt.held.run_id, run_name=attempt.held.name, kind=StateType.RUNNING, name="Running"
        )
        decision = decide(end, running, traits=self.traits, looked_before=True)
        self.outbox.put_aside(self._report(attempt, decision))

    def _post(self, report: Report) -> None:
        self.to_api.post(lambda: self._send(report))

    def _send(self, report: Report) -> None:
        self.failpoints.hit("end.before_report")
        if report.kind is StateType.SCHEDULED:
            answer = self.api.run_again(report.run_id, report.claim, report.message, self.mark)
            if answer.being_cancelled:
                # by somebody, after we looked: it is not started again, and nobody may be told so
                report = replace(report, kind=StateType.CANCELLED, message=CANCELLED)
        if report.kind is not StateType.SCHEDULED:
            answer = self.api.report(report.run_id, report.kind, report.message, self.mark)
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"no definite answer to the report of run {report.run_id}: {answer.reason}")
        self.failpoints.hit("end.after_report")
        self._act_on(report, answer)

    def _act_on(self, report: Report, answer: Answer) -> None:
        """Release the claim, or look at the run again, as the API's definite answer to a report says."""
        state = answer.state
        if answer.verdict is Verdict.ACCEPTED:
            self.run_log.say(report.run_id, report.message, logging.ERROR)
            logger.info("end reported", extra={"run_id": report.run_id, "claim": report.claim, "kind": report.kind})
            self._release(report, report.kind.value.lower())
        elif answer.gone or (state is not None and state.kind.terminal):
            outcome = "gone" if answer.gone or state is None else state.kind.value.lower()
            self._release(report, outcome)
        elif self.attempts.get(report.key) is None:
            logger.warning(
                "report refused and dropped",
                extra={"run_id": report.run_id, "claim": report.claim, "reason": answer.reason},
            )
            self._release(report, "refused")
        else:
            # the API has another state than when we looked: look again and decide anew
            self._look(report.key, SECOND_LOOK_SECONDS, before=True)

    def _no_room(self, attempt: Attempt, exc: OSError) -> None:
        logger.error(
            "report cannot be written to the disk, tried again",
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
    """Whether a run that its worker's stop has ended goes back to Scheduled: asked for, and seen to be gone whole."""
    end = attempt.exit
    stopped = end is not None and end.stop_reason == StopReason.WORKER and not attempt.cancelled
    return stopped and attempt.held.policy == "requeue" and attempt.folder.cleared()


def _is_ended(outcome: Outcome) -> bool:
    claim = outcome.claim
    # a claim that is ended already: this was a repeat, and the answer to the first try was lost
    return outcome.moved or (outcome.refusal is Refusal.STATE and claim is not None and claim.state is State.ENDED)
