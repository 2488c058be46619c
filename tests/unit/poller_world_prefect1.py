"""The poller's world at a Prefect 1 API in memory: labels, a Submitted memory of 30 s, late commits, late retries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flowfleet.api import traits
from flowfleet.api.client import Answer, DueRuns, LogLine, RunState, StateType, UnfinishedRun, UnfitRun, Verdict
from flowfleet.flow_run import FlowRun, Offer, Route
from tests.unit.poller_world import FakeApi, Time, World

TENANT = "77777777-7777-4777-8777-777777777777"
#: as of Prefect Server: for so long it refuses a second Submitted of a run, whoever asks
MEMORY_SECONDS = 30.0


def offer(*labels: str, deploy: str = "process") -> Offer:
    return Offer(backend="prefect1", labels=tuple(sorted(labels)), tenant=TENANT, deploy=deploy)


def route(*labels: str) -> Route:
    return Route.of_labels(TENANT, labels)


class FakePrefect1(FakeApi):
    """Answers as the client of Prefect 1 does; what that must guarantee is told in its comments."""

    backend = "prefect1"
    traits = traits.of(backend)

    def __init__(self, time: Time) -> None:
        super().__init__(time)
        self.labels: dict[str, tuple[str, ...]] = {}
        self.refuses_repeats = True
        #: seconds after which the next claim call is carried out, though it gets no answer
        self.late: list[float] = []
        self._coming: list[tuple[float, str, str]] = []
        self._memory: dict[str, float] = {}
        self.unfit: dict[str, str] = {}
        self.late_retries: set[str] = set()
        self.nobodys: list[UnfitRun] = []
        self.asked_for: list[tuple[Offer, ...]] = []
        self.lines: list[LogLine] = []
        self.reinstated: list[tuple[str, str]] = []
        self.restarted: set[str] = set()

    def add(self, seconds: float = 0.0, name: str = "run", run_id: str | None = None, labels: Sequence[str] = ("x",)):
        run_id = super().add(seconds, name, run_id)
        self.labels[run_id] = tuple(labels)
        return run_id

    def routes(self, offer: Offer) -> list[Route]:
        return []

    def _arrive(self) -> None:
        """What was sent long ago is carried out now."""
        for at, run_id, call in list(self._coming):
            if self._time.now >= at:
                self._coming.remove((at, run_id, call))
                if self.runs[run_id].kind is StateType.SCHEDULED:
                    self._submit(run_id, call)

    def _submit(self, run_id: str, call: str) -> None:
        self._memory[run_id] = self._time.now
        self.runs[run_id] = replace(
            self.runs[run_id], kind=StateType.PENDING, name="Submitted", call=call, at=self._time.moment()
        )

    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        self._ask("due")
        return self._of_labels(offers, within_seconds)

    def count_due(self, offers: Sequence[Offer]) -> list[DueRuns]:
        self._ask("count_due")
        return [replace(found, runs=(), unfit=()) for found in self._of_labels(offers, 0.0)]

    def _of_labels(self, offers: Sequence[Offer], within_seconds: float) -> list[DueRuns]:
        self._arrive()
        now, until = self._time.moment(), self._time.moment(within_seconds)
        found: list[DueRuns] = []
        waiting = [
            (run_id, state)
            for run_id, state in self.runs.items()
            if (state.kind is StateType.SCHEDULED or run_id in self.late_retries) and self.due_at[run_id] <= until
        ]
        for where in sorted({route(*self.labels[run_id]) for run_id, _ in waiting}):
            if not any(each.serves(where) for each in offers):
                continue
            here = [(run_id, state) for run_id, state in waiting if route(*self.labels[run_id]) == where]
            runs = [
                FlowRun(
                    run_id=run_id,
                    name=state.run_name,
                    route=where,
                    due=self.due_at[run_id],
                    state="Running" if run_id in self.late_retries else "Scheduled",
                )
                for run_id, state in here
                if run_id not in self.unfit
            ]
            runs.sort(key=lambda run: run.due)
            ready = [self.due_at[run_id] for run_id, _ in here if self.due_at[run_id] <= now]
            unfit = [
                UnfitRun(run_id=run_id, name=state.run_name, reason=self.unfit[run_id])
                for run_id, state in here
                if run_id in self.unfit
            ]
            found.append(
                DueRuns(
                    route=where,
                    runs=tuple(runs),
                    due=len(ready),
                    oldest=min(ready, default=None),
                    unfit=tuple(unfit),
                )
            )
        return found

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Any) -> dict[str, Answer]:
        self._arrive()
        unsure = self._write("claim")
        if unsure:
            return {run.run_id: unsure for run in runs}
        if self.late:
            at = self._time.now + self.late.pop(0)
            for run in runs:
                self._memory[run.run_id] = self._time.now
                self._coming.append((at, run.run_id, call))
            return {run.run_id: Answer(verdict=Verdict.UNSURE, reason="no answer in time") for run in runs}
        return {run.run_id: self._claim_one(run.run_id, call) for run in runs}

    def _claim_one(self, run_id: str, call: str) -> Answer:
        state = self.runs[run_id]
        if state.kind is StateType.PENDING and state.call == call:
            return Answer(verdict=Verdict.ACCEPTED, state=state)
        if state.kind is not StateType.SCHEDULED:
            return Answer(verdict=Verdict.REFUSED, reason=f"the run is {state.name}", state=state)
        remembered = self._time.now - self._memory.get(run_id, float("-inf")) < MEMORY_SECONDS
        if remembered and self.refuses_repeats:
            # not ours, and not anybody's either: what stands there is still Scheduled
            return Answer(verdict=Verdict.REFUSED, reason="this run has already been submitted.", state=state)
        self._submit(run_id, call)
        return Answer(verdict=Verdict.ACCEPTED)

    def settle(self, run_id: str, call: str) -> Answer:
        self._arrive()
        return super().settle(run_id, call)

    def unfinished(self, mark: Any) -> list[UnfinishedRun]:
        self._arrive()
        return super().unfinished(mark)

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        self._ask("unserved")
        self.asked_for.append(tuple(offers))
        return list(self.nobodys)

    def reinstate(self, run_id: str, claim: str, mark: Any) -> Answer:
        unsure = self._write("reinstate")
        if unsure:
            return unsure
        state = self.runs[run_id]
        if state.kind is not StateType.SCHEDULED or run_id in self.restarted:
            # that it ended before it was put back stands in its history
            return Answer(verdict=Verdict.REFUSED, reason="somebody has restarted it", state=state)
        self.reinstated.append((run_id, claim))
        self.runs[run_id] = replace(state, kind=StateType.RUNNING, name="Running")
        return Answer(verdict=Verdict.ACCEPTED, state=self.runs[run_id])

    def log(self, lines: Sequence[LogLine]) -> None:
        self._ask("log")
        self.lines += lines

    # what others do there

    def lazarus(self, run_id: str) -> None:
        """Put it back, whether it runs or not."""
        self.due_at[run_id] = self._time.moment()
        self.runs[run_id] = replace(
            self.runs[run_id], kind=StateType.SCHEDULED, name="Scheduled", call=None, scheduled=self._time.moment()
        )

    def be(self, run_id: str, kind: StateType, name: str) -> None:
        self.runs[run_id] = replace(self.runs[run_id], kind=kind, name=name)

    def submitted(self, call: str = "22222222-2222-4222-8222-222222222222") -> str:
        """A run that stands as ours and that no ledger knows."""
        run_id = self.add()
        state: RunState = self.runs[run_id]
        self.runs[run_id] = replace(
            state, kind=StateType.PENDING, name="Submitted", call=call, at=self._time.moment(-100000)
        )
        return run_id


class Labelled(World):
    """A poller at a Prefect 1 API, and workers that begin to serve a route as soon as they hear of it."""

    api: Any

    def __init__(self, **more: Any) -> None:
        super().__init__(api=self.make_api, **more)

    def make_api(self, time: Time) -> Any:
        """What the poller asks."""
        return FakePrefect1(time)

    def worker(self, *labels: str, worker: str = "worker@a", slots: int = 4, deploy: str = "process") -> None:
        self.roster.add(worker, slots, offer=offer(*labels, deploy=deploy), routes=(), deploy=deploy)

    def subscribe(self) -> bool:
        """What each worker does on the hint `routes`; True when a row has changed, which hints `freed`."""
        changed = False
        for worker, row in self.roster.table.items():
            served = tuple(sorted(route for route in self.roster.known if row.offer.serves(route)))
            if row.live and served != row.routes:
                self.roster.table[worker] = replace(row, routes=served)
                changed = True
        return changed

    def wait(self, seconds: float, gather_seconds: float = 0.0) -> frozenset[str]:
        """Wait for a hint: hints of workers that subscribe come a moment after the round."""
        if self.subscribe():
            self.time.now += min(seconds, 0.05)
            self.rings.add("freed")
            rung, self.rings = frozenset(self.rings), set()
            return rung
        return super().wait(seconds, gather_seconds)
