"""States: the states of Prefect 1 runs, read from the API's rows and written as its JSON (source: prefect 1.4.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flowfleet.api.client import Mark, RunState, StateType
from flowfleet.api.prefect1.graphql import CORE_VERSION
from flowfleet.api.transport.reading import Json, instant
from flowfleet.flow_run import claim_id

SUBMITTED = "Submitted"
#: states of a run or task at whose start time the API hands out the run again
WAITING = frozenset({"Scheduled", "Retrying", "Queued", "Resume", "Paused"})
_KINDS = {
    **dict.fromkeys(("Scheduled", "Retrying", "Queued", "Resume"), StateType.SCHEDULED),
    **dict.fromkeys(("Submitted", "Pending", "ClientFailed"), StateType.PENDING),
    "Running": StateType.RUNNING,
    "Paused": StateType.PAUSED,
    "Cancelling": StateType.CANCELLING,
    **dict.fromkeys(("Success", "Finished", "Mapped", "Cached", "Looped", "Skipped"), StateType.COMPLETED),
    **dict.fromkeys(("Failed", "TimedOut", "TriggerFailed", "ValidationFailed"), StateType.FAILED),
    "Cancelled": StateType.CANCELLED,
}
#: states of a run that has not ended
UNFINISHED = frozenset(name for name, kind in _KINDS.items() if not kind.terminal)


def kind_of(name: str) -> StateType:
    """The kind of a Prefect 1 state type; a type that we do not know counts as RUNNING."""
    return _KINDS.get(name, StateType.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """The fleet's mark in the `context` of a Prefect 1 state, which tells whose claim the state belongs to."""

    fleet: str
    call: str
    claim: str = ""
    #: the version of the run before our write: any other version in between was written by somebody else
    version: int | None = None
    #: the id of a hand-back, reported end or reinstatement, by which its repeat is recognised; empty for a claim
    done: str = ""

    def to_context(self) -> dict[str, Any]:
        """The stamp as the `context` of a state."""
        entries = {"fleet": self.fleet, "call": self.call, "claim": self.claim, "version": self.version}
        return {"flowfleet": {**entries, **({"done": self.done} if self.done else {})}}

    @classmethod
    def read(cls, serialized: Mapping[str, Any]) -> Stamp | None:
        """The stamp of a state; None when it has none."""
        context = serialized.get("context")
        ours = context.get("flowfleet") if isinstance(context, Mapping) else None
        if not isinstance(ours, Mapping) or not isinstance(ours.get("call"), str):
            return None
        version = ours.get("version")
        return cls(
            fleet=str(ours.get("fleet") or ""),
            call=ours["call"],
            claim=str(ours.get("claim") or ""),
            version=version if isinstance(version, int) else None,
            done=str(ours.get("done") or ""),
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task run that matters here: waiting, Submitted or Running."""

    task_run_id: str
    version: int | None
    state: str
    serialized: Mapping[str, Any]

    @classmethod
    def read(cls, row: Json) -> Task:
        """Read one row of `task_runs`."""
        serialized = row.get("serialized_state") or {}
        return cls(
            task_run_id=str(row["id"]),
            version=row.get("version"),
            state=str(row.get("state") or serialized.get("type") or ""),
            serialized=serialized,
        )

    def due(self, now: datetime) -> bool:
        """Whether the API hands out the run because of this task."""
        start = instant(self.serialized.get("start_time"))
        return self.state in WAITING and start is not None and start <= now

    @property
    def stamp(self) -> Stamp | None:
        """Our stamp, where the task is Submitted; else None."""
        return Stamp.read(self.serialized) if self.state == SUBMITTED else None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A flow run: one row of `flow_run`."""

    run_id: str
    name: str
    version: int | None
    state: str
    serialized: Mapping[str, Any]
    labels: tuple[str, ...] = ()
    scheduled: datetime | None = None
    at: datetime | None = None
    #: the last sign of life of the run's engine
    heartbeat: datetime | None = None
    tasks: tuple[Task, ...] = ()
    #: the row itself, for fields that only few callers need
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, row: Json) -> Run:
        """Read one row; raises KeyError, TypeError or ValueError for what is no such row (see `reading`)."""
        serialized = row.get("serialized_state") or {}
        return cls(
            run_id=str(row["id"]),
            name=str(row.get("name") or row["id"]),
            version=row.get("version"),
            state=str(row.get("state") or serialized.get("type") or ""),
            serialized=serialized,
            labels=tuple(sorted(map(str, row.get("labels") or ()))),
            scheduled=instant(row.get("scheduled_start_time")),
            at=instant(row.get("state_timestamp")),
            heartbeat=instant(row.get("heartbeat")),
            tasks=tuple(Task.read(task) for task in row.get("task_runs") or ()),
            row=row,
        )

    @property
    def stamp(self) -> Stamp | None:
        """Our stamp on the run's state or, for a late retry, on the states of its task runs; None where there is none.

        The task runs come first: a Running run that was written back after Lazarus bears a stamp too, of an earlier
        claim.
        """
        of_tasks = (task.stamp for task in self.tasks if task.stamp) if self.state == "Running" else ()
        return next(iter(of_tasks), None) or Stamp.read(self.serialized)

    @property
    def kind(self) -> StateType:
        """The kind of the run's state; PENDING for a late retry, a Running run whose due tasks are Submitted.

        Such a run waits for a process, as a Submitted one does. With a task that is Running it counts as RUNNING: its
        process has come, and the other tasks wait for their turn.
        """
        waits = any(task.stamp for task in self.tasks) and all(task.state != "Running" for task in self.tasks)
        if self.state == "Running" and waits:
            return StateType.PENDING
        return kind_of(self.state)

    def claimed_by(self, call: str) -> bool:
        """Whether the run waits for a process under this call."""
        stamp = self.stamp
        return stamp is not None and stamp.call == call and not stamp.done and self.kind is StateType.PENDING

    @property
    def start_time(self) -> datetime | None:
        """The earliest start time in the state, the state before Submitted or a Running run's tasks; else None."""
        inner = self.serialized.get("state")
        before = inner if self.state == SUBMITTED and isinstance(inner, Mapping) else {}
        times = [instant(state.get("start_time")) for state in (self.serialized, before)]
        if self.state == "Running":
            times += [instant(task.serialized.get("start_time")) for task in self.tasks]
        return min(filter(None, times), default=None)

    def to_state(self) -> RunState:
        """The run's state as pollers and workers read it."""
        stamp, kind = self.stamp, self.kind
        return RunState(
            run_id=self.run_id,
            run_name=self.name,
            kind=kind,
            name=SUBMITTED if kind is StateType.PENDING and stamp is not None else self.state,
            message=str(self.serialized.get("message") or ""),
            scheduled=self.start_time or self.scheduled,
            call=stamp.call if stamp else None,
            at=self.at,
            comes_back=self.state == "Running" and any(task.state in WAITING for task in self.tasks),
        )


#: kinds that are no end yet, but that no write of ours may cover: somebody wants the run cancelled
CANCELS = frozenset({StateType.CANCELLING})
#: these and Scheduled: a run that somebody has put off is not to be started at its old time either
PUT_OFF = CANCELS | {StateType.SCHEDULED}
#: these and more: a run that another agent has claimed, or that an engine has begun, is not to be started once more
THEIRS = PUT_OFF | {StateType.PENDING, StateType.RUNNING}

# -- the JSON of states that we write

_NO_RESULT = {"type": "NoResultType", "__version__": CORE_VERSION}


def plain(text: str) -> str:
    """The text without what no server's database keeps (NUL, halves of surrogate pairs): it would refuse the state."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def written(name: str, message: str, stamp: Stamp | None = None, **more: Any) -> dict[str, Any]:
    """A state as the engine's own serializer writes it."""
    return {
        "type": name,
        "message": plain(message),
        "context": stamp.to_context() if stamp else {},
        "cached_inputs": {},
        "_result": _NO_RESULT,
        "__version__": CORE_VERSION,
        **more,
    }


def submitted(before: Mapping[str, Any], stamp: Stamp, *, task: bool = False) -> dict[str, Any]:
    """Submitted, written over the state `before`; the message is that of Prefect 1's own agent."""
    message = "Submitted for execution." if task else "Submitted for execution"
    return written(SUBMITTED, message, stamp, state={"_result": _NO_RESULT, **before})


def stamp_of(mark: Mark, call: str, run: Run) -> Stamp:
    """The stamp of a claim."""
    return Stamp(fleet=mark.fleet, call=call, claim=claim_id(call, run.run_id), version=run.version)


def scheduled_again(run: Run, due: datetime, stamp: Stamp, reason: str) -> dict[str, Any]:
    """Scheduled at the start time that the run had, else at `due`."""
    start = run.start_time or due
    return written("Scheduled", f"Handed back: {reason}", stamp, start_time=start.isoformat())


def before_submitted(serialized: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state over which this Submitted state was written; None when it tells none."""
    inner = serialized.get("state")
    return dict(inner) if isinstance(inner, Mapping) and inner.get("type") else None


def overtaken(versions: Sequence[Json], stamp: Stamp, *, kinds: Collection[StateType]) -> dict[str, Any] | None:
    """An end, or one of these kinds, that somebody wrote between our reading and our writing, or at the same moment.

    `versions` are the run's states. A Prefect Server takes any state over any other, so our write may have covered it;
    and it gives two states that are written at once the same version, of which the first stands and the other is only
    kept (source: Prefect Server). Of several the last counts, but an end yields to nothing but a restart.
    """
    found: dict[str, Any] | None = None
    since = stamp.version
    if since is None:
        return None
    rows = sorted((row for row in versions if (row.get("version") or 0) > since), key=lambda row: row["version"])
    ours = [row["version"] for row in rows if _call_of(row) == stamp.call]
    for row in rows:
        state = row.get("serialized_state") or {}
        kind = kind_of(str(row.get("state") or state.get("type") or ""))
        whose = Stamp.read(state)
        # of two fleets the later one yields, or both would; other agents never yield
        yields = whose is not None and not kind.terminal and bool(ours) and row["version"] >= ours[0]
        if not (kind.terminal or kind in kinds) or yields or (whose is not None and whose.fleet == stamp.fleet):
            continue
        ended = found is not None and kind_of(str(found.get("type"))).terminal
        if not ended or kind.terminal or kind is StateType.SCHEDULED:
            found = dict(state)
    return found


def _call_of(row: Json) -> str | None:
    stamp = Stamp.read(row.get("serialized_state") or {})
    return stamp.call if stamp else None


def claimed_since(versions: Sequence[Json], claim: str) -> bool:
    """Whether a claim of somebody else comes after this one among a run's states.

    A claim is Submitted. That of a late retry stands in the states of task runs alone, and is not found here: then
    nothing tells of another one, and False is the answer.
    """
    ours = others = False
    for row in sorted(versions, key=lambda row: row.get("version") or 0):
        state = row.get("serialized_state") or {}
        if str(row.get("state") or state.get("type") or "") != SUBMITTED:
            continue
        stamp = Stamp.read(state)
        mine = stamp is not None and stamp.claim == claim
        ours |= mine
        others |= ours and not mine
    return others
