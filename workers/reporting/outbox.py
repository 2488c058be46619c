"""Outbox: the reports on this worker's disk that the API has not accepted yet."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowfleet.api.client import StateType
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


@dataclass(frozen=True)
class Outbox:
    """The reports of one worker, one file each."""

    folder: OutboxFolder

    def put(self, report: Report) -> None:
        """Keep a report that is to be sent; it is on disk once this returns."""
        self.folder.put(report.run_id, report.claim, {**report.to_record(), "looked": True})

    def put_aside(self, report: Report) -> None:
        """Keep a report that must not be sent yet: the API could not be asked whether it has an end already.

        A report of the same attempt that is on disk already stays as it is.
        """
        if self.folder.get(report.run_id, report.claim) is None:
            self.folder.put(report.run_id, report.claim, {**report.to_record(), "looked": False})

    def to_send(self) -> list[Report]:
        """The reports that are to be sent; those `put_aside` are not: adoption looks at the folders of their runs."""
        reports = []
        for record in self.folder:
            if not record.get("looked", True):
                continue
            try:
                reports.append(Report.from_record(record))
            except (KeyError, ValueError) as exc:
                logger.error("report cannot be read and is left alone", extra={"error": repr(exc)})
        return reports

    def take_over(self, left: OutboxFolder) -> int:
        """Move the reports of a dead worker of this host into our own folder; returns how many there were."""
        moved = 0
        for record in list(left):
            run_id, claim = str(record["run_id"]), str(record["claim"])
            rest = {name: value for name, value in record.items() if name not in ("v", "run_id", "claim")}
            self.folder.put(run_id, claim, rest)
            left.remove(run_id, claim)
            moved += 1
        return moved

    def count(self) -> int:
        """How many reports the API has not accepted yet."""
        return sum(1 for _ in self.folder)

    def remove(self, run_id: str, claim: str) -> None:
        """Remove the report of this attempt, if there is one: nothing more is to be told about it."""
        self.folder.remove(run_id, claim)
