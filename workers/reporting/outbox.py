"""Outbox: reports go to the disk before they go to the API, and are sent again until the API has answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowfleet.api.client import Answer, ApiClient, Mark, StateType, Verdict
from flowfleet.errors import ApiUnavailable
from flowfleet.failpoints import Failpoints
from workers.background import BackgroundJobs
from workers.state.run_folders import OutboxFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report of one run's end to the API."""

    run_id: str
    claim: str
    kind: StateType
    message: str
    #: NAME@HOST of the claim's owner in the ledger
    worker: str

    @property
    def key(self) -> str:
        """The key of the attempt, RUN.CLAIM."""
        return f"{self.run_id}.{self.claim}"

    def to_record(self) -> dict[str, Any]:
        """The JSON form for the outbox folder, which adds run id and claim id itself."""
        return {"kind": self.kind.value, "message": self.message, "worker": self.worker}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Report:
        """Read a record of the outbox folder back."""
        return cls(
            run_id=str(record["run_id"]),
            claim=str(record["claim"]),
            kind=StateType(record["kind"]),
            message=str(record["message"]),
            worker=str(record["worker"]),
        )


#: called with the report and the API's definite answer
OnAnswer = Callable[[Report, Answer], None]


class Outbox:
    """The reports of one worker. A file goes only by `delivered`, so a crash at any point sends it once more."""

    def __init__(
        self,
        *,
        folder: OutboxFolder,
        api: ApiClient,
        background: BackgroundJobs,
        mark: Mark,
        on_answer: OnAnswer,
        failpoints: Failpoints,
    ) -> None:
        self._folder = folder
        self._api = api
        self._background = background
        self._mark = mark
        self._on_answer = on_answer
        self._failpoints = failpoints

    def put(self, report: Report) -> None:
        """Keep the report and send it; the report is on disk once this returns."""
        self._folder.put(report.run_id, report.claim, {**report.to_record(), "looked": True})
        self._background.post(lambda: self._send(report))

    def keep(self, report: Report) -> None:
        """Keep a report that must not be sent yet: the API could not be asked whether it has an end already.

        A report of the same attempt that is on disk already stays as it is.
        """
        if not self.holds(report.run_id, report.claim):
            self._folder.put(report.run_id, report.claim, {**report.to_record(), "looked": False})

    def resend(self) -> list[Report]:
        """Send again all reports that an earlier worker has left here, and return them.

        Reports that it only kept (`keep`) are not sent: adoption looks at the folders of their runs.
        """
        reports = []
        for record in self._folder:
            if not record.get("looked", True):
                continue
            try:
                reports.append(Report.from_record(record))
            except (KeyError, ValueError) as exc:
                logger.error("report cannot be read and is left alone", extra={"error": repr(exc)})
        for report in reports:
            self._background.post(lambda report=report: self._send(report))  # type: ignore[misc]
        return reports

    def take_over(self, left: OutboxFolder) -> int:
        """Move the reports of a dead worker of this host into our own folder; returns how many there were."""
        moved = 0
        for record in list(left):
            run_id, claim = str(record["run_id"]), str(record["claim"])
            rest = {name: value for name, value in record.items() if name not in ("v", "run_id", "claim")}
            self._folder.put(run_id, claim, rest)
            left.remove(run_id, claim)
            moved += 1
        return moved

    def pending(self) -> int:
        """How many reports the API has not accepted yet."""
        return sum(1 for _ in self._folder)

    def holds(self, run_id: str, claim: str) -> bool:
        """Whether there is a report of this attempt."""
        return self._folder.get(run_id, claim) is not None

    def delivered(self, run_id: str, claim: str) -> None:
        """Remove the report of this attempt: nothing more is to be told about it."""
        self._folder.remove(run_id, claim)

    def _send(self, report: Report) -> None:
        self._failpoints.hit("end.before_report")
        answer = self._api.report(report.run_id, report.kind, report.message, self._mark)
        if answer.verdict is Verdict.UNSURE:
            raise ApiUnavailable(f"no definite answer to the report of run {report.run_id}: {answer.reason}")
        self._failpoints.hit("end.after_report")
        self._on_answer(report, answer)
