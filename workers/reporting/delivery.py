"""Delivery: the way of a report to the API, from the disk to the API's definite answer."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from flowfleet.api.client import Answer, EndApi, Mark, StateType, Verdict
from flowfleet.errors import ApiUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.ledger.claims import AGAIN
from workers.background import BackgroundJobs
from workers.reporting.end_hooks import EndHooks
from workers.reporting.exit_table import GONE_LOOK_SECONDS, SECOND_LOOK_SECONDS, cancelled_message
from workers.reporting.outbox import Outbox, Report
from workers.reporting.run_log import RunLog
from workers.state.attempts import Attempts
from workers.state.run_folders import RunFolders

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The delivery of reports: each is on the disk before it is sent, and is sent again until the API has answered."""

    attempts: Attempts
    api: EndApi
    mark: Mark
    outbox: Outbox
    to_api: BackgroundJobs
    run_log: RunLog
    failpoints: Failpoints
    #: drops the claim of a report that the API has taken, or need not take, with the outcome for the ledger's record
    release: Callable[[Report, str], None]
    #: looks again at the state of a run (key of its attempt), in so many seconds, and decides anew
    look_again: Callable[[str, float], None]
    runs: RunFolders
    hooks: EndHooks
    #: keys of reports whose runs the API did not know when they were sent
    _missed: set[str] = field(default_factory=set, init=False)

    def resend(self) -> list[Report]:
        """Send again all reports that are on the disk and are to be sent, and return them."""
        reports = self.outbox.to_send()
        for report in reports:
            self._post_after_hooks(report)
        return reports

    def put(self, report: Report) -> None:
        """Keep the report on the disk, and send it."""
        self.outbox.put(report)
        self._post(report)

    def _post_after_hooks(self, report: Report) -> None:
        # Cancelled is told when the hooks for it are over
        folder = self.runs.find(report.run_id, report.claim)
        if report.kind is StateType.CANCELLED and self.hooks.wanted(folder):
            self.hooks.run(folder, StateType.CANCELLING, lambda: self._post(report))
        else:
            self._post(report)

    def _post(self, report: Report, *, after: float = 0.0) -> None:
        self.to_api.post(lambda: self._send(report), after=after)

    def _send(self, report: Report) -> None:
        self.failpoints.hit("cancel.before_report" if report.kind is StateType.CANCELLED else "end.before_report")
        if report.kind is StateType.SCHEDULED:
            answer = self.api.run_again(report.run_id, report.claim, report.message, self.mark)
        else:
            answer = self.api.report(report.run_id, report.kind, report.message, self.mark, claim=report.claim)
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"no definite answer to the report of run {report.run_id}: {answer.reason}")
        self.failpoints.hit("end.after_report")
        if answer.gone and report.key not in self._missed:
            self._missed.add(report.key)
            self._post(report, after=GONE_LOOK_SECONDS)
            return
        self._missed.discard(report.key)
        self._act_on(report, answer)

    def _act_on(self, report: Report, answer: Answer) -> None:
        """Release the claim, or look at the run again, as the API's definite answer to a report says."""
        state = answer.state
        if answer.verdict is Verdict.ACCEPTED:
            self.run_log.say(report.run_id, report.message, logging.ERROR)
            logger.info("end reported", extra={**self._fields(report), "kind": report.kind})
            self._release_after_hooks(report)
        elif answer.gone or (state is not None and state.kind.terminal):
            outcome = "gone" if answer.gone or state is None else state.kind.value.lower()
            self.release(report, outcome)
        elif answer.claimed_since:
            logger.warning(
                "the run was claimed anew: the report of its earlier attempt is dropped",
                extra={**self._fields(report), "reason": answer.reason, "end": report.message},
            )
            self.run_log.say(
                report.run_id, f"Of an earlier attempt at this flow run: {report.message}", logging.WARNING
            )
            self.release(report, "overtaken")
        elif answer.being_cancelled and report.kind is not StateType.CANCELLED:
            self._tell_cancelled(report, answer)
        elif self.attempts.get(report.key) is None:
            logger.warning(
                "report refused and dropped",
                extra={"run_id": report.run_id, "claim": report.claim, "reason": answer.reason},
            )
            self.release(report, "refused")
        else:
            # the API has another state than when we looked: look again and decide anew
            self.look_again(report.key, SECOND_LOOK_SECONDS)

    def _fields(self, report: Report) -> Mapping[str, str]:
        attempt = self.attempts.get(report.key)
        return attempt.fields if attempt else {"run_id": report.run_id, "claim": report.claim}

    def _tell_cancelled(self, report: Report, answer: Answer) -> None:
        # by somebody, after we looked: no other end is taken then, and the run is not started again
        if self.attempts.get(report.key) is not None:
            self.look_again(report.key, 0.0)
            return
        how = report.message if report.kind is not StateType.SCHEDULED else "The flow run's process was stopped."
        why = answer.state.message if answer.state is not None else ""
        cancelled = replace(report, kind=StateType.CANCELLED, message=cancelled_message(why, how))
        self.outbox.put(cancelled)
        self._post_after_hooks(cancelled)

    def _release_after_hooks(self, report: Report) -> None:
        outcome = AGAIN if report.kind is StateType.SCHEDULED else report.kind.value.lower()
        folder = self.runs.find(report.run_id, report.claim)
        if report.kind is StateType.CRASHED and self.hooks.wanted(folder):
            self.hooks.run(folder, StateType.CRASHED, lambda: self.release(report, outcome))
        else:
            self.release(report, outcome)
