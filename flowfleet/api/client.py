"""Client: the Protocols by which poller and workers use a Prefect API, whichever version it is, and their records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flowfleet.api.backlog import BacklogApi
from flowfleet.api.container_ask import ContainerAsk
from flowfleet.api.found import FoundRuns
from flowfleet.api.life import LifeApi
from flowfleet.api.presence import PresenceApi
from flowfleet.api.traits import Traits
from flowfleet.api.transport.server_clock import ServerInfo
from flowfleet.errors import ApiError, ApiUnavailable, KeyRefused, RunGone
from flowfleet.flow_run import FlowRun, Route

if TYPE_CHECKING:  # what only reads records of the API needs no HTTP
    from flowfleet.api.transport.session import Session


def unguarded() -> None:
    """No last look before a write."""


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
        """Whether a run in this state has ended."""
        return self in (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of one run, as the API tells it."""

    run_id: str
    run_name: str
    kind: StateType
    name: str  # the state's own name: Submitted, Launching, AwaitingRetry, …
    message: str = ""
    scheduled: datetime | None = None  # the state's scheduled time
    call: str | None = None  # the state's transition id (Prefect 3), or the call id in its context (Prefect 1)
    infrastructure: str | None = None  # the run's infrastructure mark (Prefect 3)
    at: datetime | None = None  # when the state was written
    #: True when the run comes back by itself though its state is Running (Prefect 1: a task to retry later)
    comes_back: bool = False
    #: Scheduled or Paused, and handed to nobody: only its own process continues it (Prefect 3: a retry or pause inside)
    held: bool = False
    #: how the run is tried again (Prefect 3: its whole `empirical_policy`)
    retry_policy: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def waits(self) -> bool:
        """Whether the run is Scheduled or Paused and comes back by itself: an end written now would take that away."""
        return self.kind in (StateType.SCHEDULED, StateType.PAUSED) and not self.held

    @property
    def needs_process(self) -> bool:
        """Whether the run has begun, and only a process of its own can bring it on."""
        return self.held or self.kind in (StateType.RUNNING, StateType.PENDING)


class Verdict(StrEnum):
    """The outcome of a state that we wrote to the API."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # definitely not written; the answer's `state` is the one that the run has
    UNSURE = "unsure"  # no definite answer: ask again with the same ids, then settle


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The API's answer to one write: the verdict, the reason, and the run's state now.

    A `state` of None means that the run is gone, or that its state is not known.
    """

    verdict: Verdict
    reason: str = ""
    state: RunState | None = None
    gone: bool = False
    #: set when UNSURE because the API does not answer at all now: any other request would wait as long for nothing
    silence: ApiUnavailable | None = None
    #: REFUSED because somebody has claimed the run since: what stands there is another attempt's, and is not covered
    claimed_since: bool = False

    @classmethod
    def to_error(cls, error: ApiError, state: RunState | None = None) -> Answer:
        """The answer for an error of the API, which says nothing about the state that we wrote, unless the run is gone.

        Raises `KeyRefused` again, which says nothing about any run.
        """
        if isinstance(error, KeyRefused):
            raise error
        if isinstance(error, RunGone):
            return cls(verdict=Verdict.REFUSED, reason=str(error), gone=True)
        silence = error if isinstance(error, ApiUnavailable) and not error.answered else None
        return cls(verdict=Verdict.UNSURE, reason=str(error), state=state, silence=silence)

    @property
    def being_cancelled(self) -> bool:
        """Whether the write was refused because somebody is cancelling the run.

        Whoever wanted to hand back such a run before it began reports it as Cancelled instead.
        """
        return self.verdict is Verdict.REFUSED and self.state is not None and self.state.kind is StateType.CANCELLING


@dataclass(frozen=True, kw_only=True)
class UnfinishedRun:
    """A run that the API shows as this fleet's and as not ended; the leader's sweep reads these."""

    state: RunState
    route: Route | None
    due: datetime | None
    #: `NAME@HOST` of the worker that launched it, if any did
    worker: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job of a run: command, environment, folder. The worker asks the API for it; it never goes through Redis."""

    state: RunState
    #: the command of pool, deployment or run; None = the engine of this Prefect
    command: tuple[str, ...] | None = None
    #: the run's environment variables; None removes a variable that the worker's own environment has
    env: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    #: environment variables of the engine that hold only where neither its worker nor its run sets them
    engine_defaults: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: what the engine must have: API address, credentials, run id. It wins over every other layer; None removes
    engine_env: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    working_dir: str | None = None
    flow_id: str | None = None
    flow_name: str | None = None
    deployment_id: str | None = None
    deployment_name: str | None = None
    pool: str | None = None
    #: all resolved job variables, for limits and for deployers of other kinds
    variables: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: sentences for the run's log page about what was asked for and is not there
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A log line that we write on the run's own log page."""

    run_id: str
    message: str
    at: datetime
    level: int = 20


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The fleet's mark at the API: `flowfleet FLEET …` in messages, `flowfleet:FLEET:HOST:PID` as infrastructure."""

    fleet: str
    worker: str | None = None


class ClaimApi(Protocol):
    """The part of a client by which runs become ours, from Scheduled to started."""

    def claim(self, runs: Sequence[FlowRun], call: str, mark: Mark) -> dict[str, Answer]:
        """Move at most 10 runs from Scheduled to Submitted in one call with the id `call`.

        The call id stands in the state that is written (Prefect 3: as its transition id). Never raises because of one
        run: each run has its own answer.
        """

    def settle(self, run_id: str, call: str) -> Answer:
        """Read whether the run is claimed by this very call: ACCEPTED, REFUSED or UNSURE (no answer)."""

    def launching(self, run_id: str, call: str, claim: str, mark: Mark) -> Answer:
        """Move a run from Submitted to Launching, a second lock: a repeat is ACCEPTED, another claim id REFUSED."""

    def started(self, run_id: str, mark: Mark, process: int | str) -> None:
        """Write the infrastructure mark `flowfleet:FLEET:HOST:PID` (Prefect 3), or with the id of a container."""

    def started_line(self, mark: Mark, process: int | str) -> str:
        """The line for a run's log page that says that its process, or the container of this id, was started."""

    def reinstate(self, run_id: str, claim: str, mark: Mark) -> Answer:
        """Write back the state of a run that the API has put back to Scheduled though its process lives.

        Prefect 1's Lazarus puts runs back (source: Prefect Server). REFUSED when the run is not Scheduled, and at an
        API where nothing puts runs back.
        """


class EndApi(Protocol):
    """The part of a client by which claimed runs end, or go back."""

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        """The states of many runs in one request; a run that is left out does not exist any more."""

    def hand_back(
        self, run_id: str, call: str, due: datetime, mark: Mark, reason: str, *, never_began: bool = False
    ) -> Answer:
        """Move a run from Submitted to Scheduled at its old time, if it is still ours; clear the infrastructure mark.

        Launching goes back only with `never_began`, its host's proof that user code did not and will not begin: what a
        leader sees in a ledger that has lost writes may be behind what a worker has done.
        REFUSED = the run is not ours any more (ended, cancelled, somebody else's), or may have begun.
        """

    def claimed_since(self, run_id: str, claim: str) -> bool:
        """Whether somebody has claimed the run after this claim, by its history: a Running state names nobody."""

    def report(
        self,
        run_id: str,
        kind: StateType,
        message: str,
        mark: Mark,
        *,
        claim: str | None = None,
        still: Callable[[], object] = unguarded,
    ) -> Answer:
        """Propose an end (CRASHED, FAILED or CANCELLED) of this claim's attempt; None = of whichever stands there.

        A repeat for the same claim, whoever sends it, is ACCEPTED (`flow_run.report_id`). REFUSED when the run has
        ended already at the API, is Scheduled or Paused there and will go on by itself, or was claimed since.
        `still` is called right before the write; what it raises ends the report unsent.
        """

    def run_again(self, run_id: str, claim: str, message: str, mark: Mark) -> Answer:
        """Move a run of this claim, whose processes are all seen to be gone, from Running back to Scheduled, due now.

        Also from Submitted, Launching, and a retry or pause inside the process. A repeat with the same claim id is
        ACCEPTED. REFUSED in any other state, and when the run was claimed since.
        """


class OrderApi(Protocol):
    """The part of a client for what people order: which runs they cancel, and what they want of us for single runs."""

    def under_cancel(self, runs: Mapping[str, Route]) -> dict[str, RunState]:
        """Those of these runs that are being cancelled, or, where a cancel may be that at once, are Cancelled."""

    def cancel(self, run_id: str, message: str) -> Answer:
        """Cancel a run as a user does: Cancelling, or Cancelled where the API sees nothing that could run.

        ACCEPTED when the run is one of these, also by somebody else's word; REFUSED when it has ended otherwise.
        """

    def restart(self, run_id: str, message: str, mark: Mark, only: Collection[StateType] = ()) -> Answer:
        """Move a run that has ended or waits to Scheduled, due now; REFUSED while under way, or in none of `only`."""

    def find(self, text: str) -> FoundRuns:
        """The run with this id, the newest runs with this name, else unfinished ones with this in their id."""


class JobApi(Protocol):
    """The part of a client that tells what to start for a run."""

    def job(self, run_id: str) -> Job:
        """Ask what to run; the job's state also tells of a cancel that came after the claim.

        Raises `RunGone`, or `UnsupportedRun` naming what cannot be resolved.
        """

    def equip(self, job: Job) -> Job:
        """The job with its engine's layers of environment, as `job` gives it; for one that was put together here."""

    def hooks_command(self, python: str, job: Job, hooks: str, starters: Path | None) -> tuple[str, ...] | None:
        """The argv of a process that runs these hooks ("cancellation", "crashed") of the flow of a run that has ended.

        None = flows have none, or the job's command is not the engine.
        """

    def container(self, job: Job, extra: Mapping[str, str | None], marks: Mapping[str, str]) -> ContainerAsk:
        """What the run asks of its container: `extra` are variables of `--env`, `marks` such as no layer replaces."""

    def engine_command(self, python: str, job: Job, prefect: str, starters: Path | None = None) -> tuple[str, ...]:
        """The engine's argv, such as `PYTHON -m prefect.engine`.

        `python` is the interpreter and `prefect` the version of prefect in it, "" when that is not known. `starters` is
        a folder with files that start an engine as its own command does and do more; None = the engine's host has none.
        """


class ApiClient(Protocol):
    """A client of one Prefect API, with its parts, each by who uses it.

    Every method, also of its parts, raises `ApiUnavailable` (ask again later) or `ApiRejected` (a no). Methods that
    write states answer with a `Verdict`, and raise `KeyRefused` alone. Single requests are retried inside.
    """

    #: prefect1 or prefect3
    backend: str
    #: how this API behaves
    traits: Traits
    #: the API's address without secrets, as it may be shown and written down
    address: str
    #: the HTTP session, which knows whether the last answer refused our credentials, and reads them again
    session: Session
    presence: PresenceApi
    backlog: BacklogApi
    claims: ClaimApi
    ends: EndApi
    orders: OrderApi
    jobs: JobApi
    life: LifeApi

    def probe(self) -> ServerInfo:
        """Ask which API answers; raises `ApiRejected` with the remedy when it is no usable Prefect API."""

    def unfinished(self, mark: Mark) -> list[UnfinishedRun]:
        """Every run that this fleet has Submitted, Launching or started and that has not ended."""

    def log(self, lines: Sequence[LogLine]) -> None:
        """Append our lines to the log pages of their runs."""
