"""Claim: the record of our right to one attempt at a run, the answers of moves, and the readers of their fields."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any, Self

from flowfleet.errors import BadMessage
from flowfleet.flow_run import VERSION, Route
from flowfleet.ledger.transitions import Refusal, State

#: the owner of a restored claim whose worker the API does not name (Prefect 1); `worker forget` takes it as any other
UNKNOWN_WORKER = "unknown@unknown"


class CancelHow(IntEnum):
    """What a claim says about a cancel of its run; the higher one stays."""

    NONE = 0
    #: the API says Cancelling: the run is to end in order
    ASKED = 1
    #: the API shows an end of the run that is not ours, or no run at all, or somebody is in a hurry: KILL
    OVER = 2


@dataclass(frozen=True, kw_only=True)
class CancelAsked:
    """A cancel as a renewal tells its worker: how the run is to end, and who asked for it and why."""

    how: CancelHow
    why: str = ""
    #: the cancel was found at the API: it gives way to the word of who has asked for it
    found: bool = False

    def outweighs(self, other: Self | None) -> bool:
        """Whether this is to be noted instead of what is known of the cancel."""
        if other is None or self.how is not other.how:
            return other is None or self.how > other.how
        return other.found and not self.found


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Our right to one attempt at a run, as the ledger has it, or as its worker holds it.

    A worker's own has the state that its disk has, from taken to ended. Each renewal carries it, and writes it again
    after a loss of Redis.
    """

    run_id: str
    claim: str
    call: str  # the bulk call's id, the API's transition_id
    route: Route
    state: State
    name: str
    due: datetime  # the scheduled time that a hand-back restores
    #: names of its flow and deployment, as its worker has them of the API: from `starting` on
    flow: str = ""
    deployment: str = ""
    attempt: int = 1
    policy: str = "report"  # --on-lost-run: report | requeue
    worker: str | None = None  # NAME@HOST of the owner
    cancel: CancelHow = CancelHow.NONE
    cancel_why: str = ""  # who asked for the cancel, and why
    handle: Mapping[str, Any] | None = None
    exit: Mapping[str, Any] | None = None  # Exit.to_record without the run's output, when ended
    reason: str | None = None  # why it is returning, or what the API is told of a lost run
    #: returning with its owner's proof that user code never began: only then may the run be handed back from Launching
    never_began: bool = False
    since: float = 0.0  # unix seconds by the Redis clock; for display only
    began_at: float = 0.0  # when it was moved to `starting`, as `since`; 0 = not yet, or lost with Redis
    lingers: str | None = None  # the end that the API shows while the run's process lives
    lingers_since: float = 0.0  # since when that is known, as `since`
    moves: int = 0  # grows with each transition and renewal: a leader tells "has not moved" by it, never by a clock
    #: run id of the Redis process under which the owner last wrote the claim (or the claim was made): a claim that was
    #: written before the gate shut may be behind what its worker has done
    process: str = ""
    #: the run ends by itself when its lease runs out: its worker has said so as it started it
    switch: bool = False
    #: seconds of the longest lease by which its host may count: what its worker had heard as it spoke last, or what it
    #: was answered then; 0 = not known
    ttl: float = 0.0
    #: boot id and machine of the host that started it, as its worker's row had them
    boot_id: str = ""
    machine: str = ""
    was: State | None = None  # what it was before it was missing
    missed_at: float = 0.0  # unix seconds by the Redis clock since when it is missing; for display only
    proof: str | None = None  # why no process of it can live; a judged claim without leaves a tombstone
    v: int = 1

    @property
    def host(self) -> str:
        """HOST of its worker; empty where it has none."""
        return (self.worker or "").rpartition("@")[2]


@dataclass(frozen=True, kw_only=True)
class Tomb:
    """The tombstone of a run that was told as lost while its process may live: no new claim of the run passes it."""

    run_id: str
    claim: str
    route: Route
    name: str
    worker: str
    attempt: int
    policy: str
    boot_id: str
    machine: str
    missed_at: float  # unix seconds by the Redis clock since when its host was not heard of; for display only
    buried_at: float  # unix seconds by the Redis clock; for display only

    @property
    def host(self) -> str:
        """HOST of its worker."""
        return self.worker.rpartition("@")[2]


@dataclass(frozen=True, kw_only=True)
class Missed:
    """A claim of this host that is missing, judged or buried, and that its worker's renewal does not hold.

    The worker looks at its disk. Where no process of the claim is left it says so by `Claims.prove`.
    """

    run_id: str
    claim: str
    worker: str  # its owner, which may be another worker of this host


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a transition: moved, or refused with the reason and the claim that stood in the way."""

    moved: bool
    refusal: Refusal | None = None
    claim: Claim | None = None


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The leader's numbers (renewal interval, TTL of a claim, adoption grace), which workers read from the ledger."""

    renew_seconds: float = 5.0
    ttl_seconds: float = 20.0
    grace_seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """The answer to a worker's one renewal of everything that it holds."""

    #: held claims that somebody wants cancelled: run id → how, and why
    cancelled: Mapping[str, CancelAsked] = field(default_factory=dict)
    #: held claims that no longer belong to this worker (handed back, judged, replaced by another claim): run id → why
    fenced: Mapping[str, Refusal] = field(default_factory=dict)
    #: claims that the ledger had lost, or was behind with, and that this renewal wrote again
    reasserted: frozenset[str] = frozenset()
    #: what this host is asked to answer for
    missed: tuple[Missed, ...] = ()
    gate_open: bool = False
    #: False: the ledger has no row of this process (lost, forgotten, or another has the name), so it must sign on again
    signed_on: bool = True
    #: what the operator wants of this identity: active, paused or draining
    wanted: str = "active"
    lease: Lease = Lease()
    #: every known route of the fleet (the worker serves those that it can)
    routes: tuple[Route, ...] = ()
    #: the ids by which the ledger is known, its own first
    ledgers: tuple[str, ...] = ()


def pairs(flat: Sequence[str]) -> dict[str, str]:
    """A dict of the fields whose names and values Redis answers in turn."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def read_outcome(answer: Sequence[Any]) -> Outcome:
    """Read the answer of a script: moved or not, the refusal, and the fields of the claim."""
    done, why, flat = answer
    return Outcome(moved=bool(done), refusal=Refusal(why) if why else None, claim=read_claim(pairs(flat)))


def read_claim(fields: Mapping[str, str]) -> Claim | None:
    """Read a claim from its fields; None for no fields, or for a version that this flowfleet cannot read."""
    if not fields or fields.get("v") != str(VERSION):
        return None
    return Claim(
        run_id=fields["run_id"],
        claim=fields["claim"],
        call=fields["call"],
        route=Route.parse(fields["route"]),
        state=State(fields["state"]),
        name=fields["name"],
        due=datetime.fromisoformat(fields["due"]),
        flow=fields.get("flow", ""),
        deployment=fields.get("deployment", ""),
        attempt=int(fields["attempt"]),
        policy=fields["policy"],
        worker=fields.get("worker") or None,
        cancel=CancelHow(int(fields.get("cancel") or 0)),
        cancel_why=fields.get("cancel_why", ""),
        handle=json.loads(fields["handle"]) if fields.get("handle") else None,
        exit=json.loads(fields["exit"]) if fields.get("exit") else None,
        reason=fields.get("reason") or None,
        never_began=fields.get("never_began") == "1",
        since=float(fields.get("since", 0)),
        began_at=float(fields.get("began_at") or 0),
        lingers=fields.get("lingers") or None,
        lingers_since=float(fields.get("lingers_since", 0)),
        moves=int(fields.get("moves", 0)),
        process=fields.get("process", ""),
        switch=fields.get("switch") == "1",
        ttl=float(fields.get("ttl") or 0),
        boot_id=fields.get("boot_id", ""),
        machine=fields.get("machine", ""),
        was=State(fields["was"]) if fields.get("was") else None,
        missed_at=float(fields.get("missed_at") or 0),
        proof=fields.get("proof") or None,
    )


def read_tomb(text: str) -> Tomb:
    """Read a tombstone from its JSON, whose values are text."""
    fields = json.loads(text)
    return Tomb(
        run_id=fields["run_id"],
        claim=fields["claim"],
        route=Route.parse(fields["route"]),
        name=fields["name"],
        worker=fields["worker"],
        attempt=int(fields["attempt"] or 1),
        policy=fields["policy"],
        boot_id=fields["boot_id"],
        machine=fields["machine"],
        missed_at=float(fields["missed_at"] or 0),
        buried_at=float(fields["buried_at"]),
    )


def read_cancelled(flat: Sequence[str]) -> dict[str, CancelAsked]:
    """Read the cancels of a renewal's answer: run id, how, why and whether it was found, in turn."""
    each = zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    return {run: CancelAsked(how=CancelHow(int(how)), why=why, found=found == "1") for run, how, why, found in each}


def read_record(fields: dict[str, Any]) -> Mapping[str, Any]:
    """Read the record of a claim that is gone; `fields` is its decoded JSON and is changed in place."""
    for name in ("handle", "exit"):
        fields[name] = json.loads(fields[name]) if fields.get(name) else None
    for name, kind in (("attempt", int), ("moves", int), ("since", float), ("began_at", float), ("gone_at", float)):
        fields[name] = kind(fields.get(name, 0))
    fields.pop("nonce", None)
    return fields


def read_lease(numbers: Sequence[str]) -> Lease:
    """Read the leader's numbers (renewal, TTL, grace); where the leader has written none, the defaults hold."""
    standard = Lease()
    values = [float(text) if text else None for text in numbers]
    return Lease(
        renew_seconds=values[0] or standard.renew_seconds,
        ttl_seconds=values[1] or standard.ttl_seconds,
        grace_seconds=values[2] or standard.grace_seconds,
    )


def read_routes(texts: Iterable[str]) -> list[Route]:
    """The routes among these texts, in their order; texts that are no route are left out."""
    routes = []
    for text in texts:
        try:
            routes.append(Route.parse(text))
        except BadMessage:
            continue  # a route of a later version, which no worker of this version can serve
    return routes
