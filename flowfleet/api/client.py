"""ApiClient: what poller and workers ask of a Prefect API, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from flowfleet.errors import ApiError, ApiUnavailable
from flowfleet.flow_run import FlowRun, Offer, Route


class StateType(StrEnum):
    """The type of a run's state at the API (Prefect 1's Submitted is PENDING here)."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        """True for an end."""
        return self in (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What the API says of a run."""

    run_id: str
    run_name: str
    kind: StateType
    name: str  # the state's own name: Submitted, Launching, AwaitingRetry, …
    message: str = ""
    scheduled: datetime | None = None  # the state's scheduled time
    call: str | None = None  # the transition id (Prefect 3) or the claim's mark (Prefect 1)
    infrastructure: str | None = None
    at: datetime | None = None
    #: True when the run comes back by itself though its state is Running (Prefect 1: a task to retry later)
    comes_back: bool = False
    #: True when it is Scheduled or Paused but only its own process can go on with it (Prefect 3: a retry or a pause
    #: inside the process): the API hands it to nobody, so when that process is gone an end must be reported
    held: bool = False


class Verdict(StrEnum):
    """What the API made of a state that we wrote."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # definitely not; `state` is what stands there
    UNSURE = "unsure"  # no definite answer: ask again with the same ids, then settle


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The verdict, why, and what stands at the API now (None = the run is gone, or not known)."""

    verdict: Verdict
    reason: str = ""
    state: RunState | None = None
    gone: bool = False
    #: UNSURE since the API does not answer at all now: whatever else is asked would wait as long for nothing
    silence: ApiUnavailable | None = None

    @classmethod
    def unsure(cls, error: ApiError, state: RunState | None = None) -> Answer:
        """What an error of the API says about the state that we wrote: nothing."""
        silence = error if isinstance(error, ApiUnavailable) and not error.answered else None
        return cls(verdict=Verdict.UNSURE, reason=str(error), state=state, silence=silence)

    @property
    def being_cancelled(self) -> bool:
        """Refused since somebody cancels the run: who gives it back unbegun says that it is done."""
        return self.verdict is Verdict.REFUSED and self.state is not None and self.state.kind is StateType.CANCELLING


@dataclass(frozen=True, kw_only=True)
class UnfitRun:
    """A run that is due and that nobody here can take, though it may be right for others; it stays Scheduled."""

    run_id: str
    name: str
    #: one sentence for its log page: what it asks for, and who could run it
    reason: str


@dataclass(frozen=True, kw_only=True)
class DueRuns:
    """What waits at the API for one route."""

    route: Route
    runs: tuple[FlowRun, ...]  # claimable now or within the asked time, in the server's order
    due: int  # how many are due now
    at_least: bool = False  # the API lists no more than this
    oldest: datetime | None = None
    #: how many runs of its pool, whichever, the API has room for (None = all that are listed)
    room: int | None = None
    #: counted in `due`, but asking for what no offer here can do (Prefect 1: storage, run_config)
    unfit: tuple[UnfitRun, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Somebody else at the API who would take the same runs: an agent of Prefect 1 with the same labels."""

    name: str
    type: str
    labels: tuple[str, ...]
    #: when it last asked for runs
    seen: datetime | None


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A run that the API shows as ours (of this fleet) and not ended: for the sweep."""

    state: RunState
    route: Route | None
    due: datetime | None
    #: `NAME@HOST` of the worker that launched it, if any did
    worker: str | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run waits at the API, and what holds it back there, for `explain`."""

    route: Route
    #: the pool's name; empty at Prefect 1, where only labels count
    pool: str
    #: what is paused: "pool", "queue" or None
    paused: str | None = None
    #: the limit that leaves no room now, in words
    limit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run: asked of the API by the worker, never through Redis."""

    state: RunState
    #: the command of pool, deployment or run; None = the backend's engine
    command: tuple[str, ...] | None = None
    #: None takes a variable of the worker's own away
    env: Mapping[str, str | None] = field(default_factory=dict)
    working_dir: str | None = None
    flow_id: str | None = None
    flow_name: str | None = None
    deployment_id: str | None = None
    deployment_name: str | None = None
    pool: str | None = None
    #: all resolved job variables, for deployers of other kinds
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of ours on the run's own log page."""

    run_id: str
    message: str
    at: datetime
    level: int = 20


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """Which API answers, and how far its clock is from ours."""

    backend: str
    version: str
    skew_seconds: float  # its clock minus ours
    #: the tenant whose runs we see, by name, where there are several
    tenant: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Who we are at the API: `flowfleet FLEET …` in state messages, `flowfleet:FLEET:HOST:PID` as infrastructure."""

    fleet: str
    worker: str | None = None


class ApiClient(Protocol):
    """One Prefect API. Every method raises `ApiUnavailable` (ask again later) or `ApiRejected` (a definite no).

    Methods that write states answer with a `Verdict` instead of raising, except `KeyRefused`, which says nothing
    about any run. Retry of single requests lives inside (api/session.py), bounded; loops retry above it.
    """

    backend: str
    #: where it is, as it may be shown and written down
    address: str

    @property
    def key_refused(self) -> bool:
        """Whether the last answer refused our credentials."""

    def renew(self) -> bool:
        """Look for the credentials where they came from; True when they are others now."""

    def probe(self) -> ServerInfo:
        """Ask who answers. Raises `ApiRejected` with the remedy when it is no usable Prefect API (too old, not one)."""

    def resolve(self, offer: Offer, *, create: bool) -> Offer:
        """Fill in the server's ids of the offer (pool uuids, tenant); `create` makes missing pools."""

    def routes(self, offer: Offer) -> list[Route]:
        """The routes that exist now for this offer (each work queue of its pools)."""

    # knowing and claiming: the leader
    def due(self, offers: Sequence[Offer], *, within_seconds: float, limit: int) -> list[DueRuns]:
        """Runs due now or within the given seconds that these offers may run, limits, pauses, priority observed."""

    def count_due(self, offers: Sequence[Offer]) -> list[DueRuns]:
        """Only count what is due, for pools that no live worker serves (polling would mark them READY)."""

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Mark) -> dict[str, Answer]:
        """Scheduled → Submitted for ≤ 10 runs in one call with the transition id `call`; never raises for one run."""

    def settle(self, run_id: str, call: str) -> Answer:
        """Read whether the run is claimed by this very call: ACCEPTED, REFUSED or UNSURE (no answer)."""

    def unserved(self, offers: Sequence[Offer]) -> list[UnfitRun]:
        """Due runs that no agent known to the API could take, whichever fleet's it is (Prefect 1: by their labels)."""

    def reinstate(self, run_id: str, claim: str, mark: Mark) -> Answer:
        """Write back the state of a run that the API has put back to Scheduled though its process lives.

        Prefect 1's Lazarus does so (source: Prefect Server); REFUSED where the run is not Scheduled, or nobody does so.
        """

    def rivals(self, offers: Sequence[Offer], mark: Mark) -> list[Rival]:
        """Others that take the runs of these offers too and know nothing of this fleet's ledger."""

    def hand_back(
        self, run_id: str, call: str, due: datetime, mark: Mark, reason: str, *, never_began: bool = False
    ) -> Answer:
        """Submitted → Scheduled at the old time, if it is still ours; clears the infrastructure mark.

        Launching goes back only with `never_began`, its host's proof that user code did not and will not begin: what a
        leader sees in a ledger that has lost writes may be behind what a worker has done.
        REFUSED = it is not ours any more (ended, cancelled, somebody else's), or may have begun.
        """

    def unfinished(self, mark: Mark) -> list[Unfinished]:
        """Every run that this fleet has Submitted, Launching or started and that has not ended."""

    def online(self, pool: str, name: str, interval_seconds: float) -> None:
        """Show the fleet as one online worker of the pool (Prefect 3: heartbeat by that name)."""

    def offline(self, pool: str, name: str) -> None:
        """Take that sign down."""

    # taking and ending: workers
    def job(self, run_id: str) -> Job:
        """What to run. Raises `RunGone`, or `UnsupportedRun` naming what cannot be resolved."""

    def launching(self, run_id: str, call: str, claim: str, mark: Mark) -> Answer:
        """Submitted → Launching, the second lock; the same claim id again is ACCEPTED, another's is REFUSED."""

    def started(self, run_id: str, mark: Mark, pid: int) -> None:
        """Write the infrastructure mark `flowfleet:FLEET:HOST:PID`."""

    def started_line(self, mark: Mark, pid: int) -> str:
        """The line of a run's log page that says that its process was started."""

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        """The states of many runs in one request; a run that is left out does not exist any more."""

    def place(self, run_id: str) -> Place | None:
        """Where a run waits, for people who ask; None when it has no such place."""

    def report(self, run_id: str, kind: StateType, message: str, mark: Mark) -> Answer:
        """Propose an end (CRASHED, FAILED or CANCELLED); REFUSED when the API has it ended already."""

    def log(self, lines: Sequence[LogLine]) -> None:
        """Append lines of ours to the logs of runs."""

    # the child
    def engine_command(self, python: str, job: Job, prefect: str) -> tuple[str, ...]:
        """The engine's argv for an interpreter and its prefect ("" where nobody knows): `PYTHON -m prefect.engine`."""

    def engine_defaults(self, job: Job) -> dict[str, str]:
        """Variables of the child that hold only where neither its worker nor its run says otherwise."""

    def engine_environment(self, run_id: str, job: Job) -> Mapping[str, str | None]:
        """The forced environment of the child: API address, credentials, run id; None takes a variable away."""
