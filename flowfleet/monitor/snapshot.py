"""Snapshot: the fleet at one moment, read from the ledger, from which status, metrics and explanations are made."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from flowfleet.api import traits
from flowfleet.flow_run import NOTHING_HELD, Held, Route
from flowfleet.ledger import Ledger, api_troubles
from flowfleet.ledger.api_troubles import LEADER, STARTING, ApiTrouble
from flowfleet.ledger.claims import Claim, State, Tomb
from flowfleet.ledger.gate import Leader
from flowfleet.ledger.roster import LOST, RouteDue, WorkerRow
from flowfleet.logs import iso
from flowfleet.monitor.redis_server import QueueLength, RedisServer, version_of

#: version of the JSON form
SCHEMA = 1
#: what is due is older than this only when the API or the leader is away: a quiet fleet is asked for each 10 s
STALE_SECONDS = 15.0
#: states of claims that hold a slot: their process group may be alive
BUSY = frozenset({State.TAKEN, State.STARTING, State.RUNNING, State.MISSING, State.JUDGED})
#: states of claims whose user code may be running
RUNNING = frozenset({State.STARTING, State.RUNNING, State.MISSING})
#: for so long a worker that has stopped is listed
STOPPED_SECONDS = 86400.0
#: states of claims that wait for a worker
WAITING = frozenset({State.CLAIMING, State.QUEUED})


@dataclass(frozen=True, kw_only=True)
class RouteQueue:
    """The queue of one route: the runs that wait at the API, and the messages in Redis."""

    route: Route
    due: int
    at_least: bool  # True: the API lists no more than `due`
    oldest_due_seconds: float | None
    depth: int  # messages in Redis
    oldest_age_seconds: float | None  # since the oldest message was sent
    eligible_workers: int
    #: those that are held back: beside `due` by a pause or a limit, and of `due` those that no worker takes
    held: Held = NOTHING_HELD


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """One worker: its row in the roster, and how many of its slots are busy now."""

    row: WorkerRow
    busy: int
    seen_seconds_ago: float

    @property
    def name(self) -> str:
        """NAME of NAME@HOST."""
        return self.row.worker.rpartition("@")[0] or self.row.worker

    @property
    def host(self) -> str:
        """HOST of NAME@HOST."""
        return self.row.worker.rpartition("@")[2]

    @property
    def state(self) -> str:
        """What its operator wants of it; `draining` if it stops, `shut` if it can start none; `stopped` or `lost`."""
        if not self.row.live:
            return self.row.end
        if self.row.shut and self.row.wanted == "active" and not self.row.leaving:
            return "shut"
        return "draining" if self.row.leaving else self.row.wanted

    @property
    def serves(self) -> tuple[str, ...]:
        """What it offers to serve, as people name it: labels, or pools, or POOL/QUEUE where it takes single queues."""
        offer = self.row.offer
        return tuple(f"{pool}/{queue}" for pool in offer.pools for queue in offer.work_queues) or (
            offer.pools or offer.labels
        )

    @property
    def listed(self) -> bool:
        """Whether people look for it: one that stopped in order is of the past after a day, unless runs of it go on."""
        return self.row.live or self.row.end == LOST or self.busy > 0 or self.seen_seconds_ago < STOPPED_SECONDS

    @property
    def free(self) -> int:
        """The number of slots that can take a run now."""
        return max(0, self.row.slots - self.busy) if self.state == "active" else 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The fleet at one moment."""

    at: float  # unix seconds by the Redis clock
    fleet: str
    redis_version: str
    gate_open: bool
    leader: Leader | None
    queues: tuple[RouteQueue, ...]
    workers: tuple[WorkerStatus, ...]
    claims: tuple[Claim, ...]
    api_troubles: tuple[ApiTrouble, ...] = ()
    tombs: tuple[Tomb, ...] = ()
    #: when the leader last asked the API what is due, in unix seconds; None: never yet, or it is not known
    due_at: float | None = None

    @property
    def listed(self) -> tuple[WorkerStatus, ...]:
        """The workers that people look for; `workers` are all that the roster has."""
        return tuple(worker for worker in self.workers if worker.listed)

    @property
    def counts(self) -> dict[str, int]:
        """The five numbers of the status page."""
        waiting = self._in(WAITING)
        return {
            "due": sum(queue.due for queue in self.queues),
            "outstanding": waiting + self._in({State.TAKEN}),
            "running": self._in(RUNNING),
            "free_slots": max(0, sum(worker.free for worker in self.workers) - waiting),
            "outbox": self._in({State.ENDED}),
        }

    @property
    def stale_seconds(self) -> float | None:
        """How old the numbers of what is due are; None while they are as new as they can be."""
        age = None if self.due_at is None else max(0.0, self.at - self.due_at)
        return age if age is not None and age >= STALE_SECONDS else None

    @property
    def held(self) -> Held:
        """How many runs are held back in all queues, by what holds them."""
        parts = [queue.held for queue in self.queues]
        return Held(
            paused=sum(part.paused for part in parts),
            limit=sum(part.limit for part in parts),
            unserved=sum(part.unserved for part in parts),
        )

    def _in(self, states: Iterable[State]) -> int:
        return sum(claim.state in states for claim in self.claims)

    def route_name(self, route: Route) -> str:
        """The route as people name it, POOL/QUEUE, where a worker has told the pool's name."""
        return route_name(route, self.pool_names)

    @property
    def pool_names(self) -> dict[str, str]:
        """Pool uuid → pool name, as the workers tell them."""
        rows = [worker.row.offer for worker in self.workers]
        return {uuid: name for offer in rows for uuid, name in zip(offer.pool_ids, offer.pools, strict=False)}

    def to_json(self) -> dict[str, Any]:
        """The stable form of `flowfleet status --json`."""
        leader = self.leader
        return {
            "schema": SCHEMA,
            "at": iso(self.at),
            "fleet": self.fleet,
            "redis": {"ok": True, "version": self.redis_version},
            "gate": "open" if self.gate_open else "shut",
            "leader": leader and {"name": leader.name, "host": leader.host, "term": leader.term},
            "queues": [_queue_json(queue) for queue in self.queues],
            "workers": [worker_json(worker) for worker in self.listed],
            "runs": [claim_json(claim) for claim in self.claims],
            "counts": self.counts,
            "lost": [_tomb_json(tomb) for tomb in self.tombs],
            "api_troubles": [{"part": one.part, "trouble": one.trouble} for one in self.api_troubles],
            "due_at": None if self.due_at is None else iso(self.due_at),
        }


def take_snapshot(ledger: Ledger) -> Snapshot:
    """Read the fleet. The parts are read one after the other, so they may differ by what happened meanwhile."""
    server = RedisServer(ledger.store)
    info, now = server.info(), server.now()
    rows, claims, due = ledger.roster.rows(), ledger.claims.live(), ledger.roster.due()
    tombs = tuple(ledger.claims.tombs())
    routes = sorted({*ledger.roster.routes(), *(one.route for one in due)})
    waiting = server.waiting(routes)
    return Snapshot(
        at=now,
        fleet=ledger.store.fleet,
        redis_version=version_of(info),
        gate_open=ledger.gate.is_open(),
        leader=ledger.gate.leader(),
        queues=tuple(_queues(routes, due, waiting, rows, now)),
        workers=tuple(
            WorkerStatus(
                row=row,
                busy=sum(claim.worker == row.worker and claim.state in BUSY for claim in claims)
                + sum(tomb.worker == row.worker for tomb in tombs),
                seen_seconds_ago=max(0.0, now - row.seen),
            )
            for row in sorted(rows, key=lambda row: row.worker)
        ),
        claims=tuple(sorted(claims, key=lambda claim: (claim.since, claim.run_id))),
        tombs=tombs,
        api_troubles=api_troubles.read(ledger.store, [LEADER, STARTING, *(row.worker for row in rows if row.live)]),
        due_at=ledger.roster.due_at(),
    )


def _queues(
    routes: Sequence[Route],
    due: Sequence[RouteDue],
    waiting: Sequence[QueueLength],
    rows: Sequence[WorkerRow],
    now: float,
) -> Iterable[RouteQueue]:
    by_route = {one.route: one for one in due}
    for route, lying in zip(routes, waiting, strict=True):
        known = by_route.get(route)
        eligible = sum(row.takes_runs and row.offer.serves(route) for row in rows)
        held = known.held if known else NOTHING_HELD
        yield RouteQueue(
            route=route,
            due=known.due if known else 0,
            at_least=bool(known and known.at_least),
            oldest_due_seconds=_since(known.oldest if known else None, now),
            depth=lying.length,
            oldest_age_seconds=_since(lying.oldest, now),
            eligible_workers=eligible,
            held=held if eligible or known is None else replace(held, unserved=known.due),
        )


def _since(moment: float | None, now: float) -> float | None:
    return None if moment is None else round(max(0.0, now - moment), 3)


def bracketed(labels: Iterable[str]) -> str:
    """Labels as people read them: [x, y]."""
    return f"[{', '.join(labels)}]"


def route_name(route: Route, pool_names: Mapping[str, str]) -> str:
    """The labels of a Prefect 1 route, else POOL/QUEUE; a pool whose name is unknown appears as its id, cut short."""
    if traits.of(route.backend).by_labels:
        return ",".join(route.labels) or "(no labels)"
    return f"{pool_names.get(route.scope, route.scope[:8])}/{route.name}"


def _queue_json(queue: RouteQueue) -> dict[str, Any]:
    return {
        "route": str(queue.route),
        "due": queue.due,
        "at_least": queue.at_least,
        "held": asdict(queue.held),
        "oldest_due_seconds": queue.oldest_due_seconds,
        "depth": queue.depth,
        "oldest_age_seconds": queue.oldest_age_seconds,
        "eligible_workers": queue.eligible_workers,
    }


def worker_json(worker: WorkerStatus) -> dict[str, Any]:
    """A worker as one item of `workers` in `flowfleet status --json`."""
    row = worker.row
    return {
        "name": worker.name,
        "host": worker.host,
        "state": worker.state,
        "wanted": row.wanted,
        "routes": [str(route) for route in row.routes],
        "labels": list(row.offer.labels),
        "pools": list(row.offer.pools),
        "work_queues": list(row.offer.work_queues),
        "slots": row.slots,
        "busy": worker.busy,
        "version": row.version,
        "shut": row.shut or None,
        "note": row.note or None,
        "seen_seconds_ago": round(worker.seen_seconds_ago, 3),
    }


def _tomb_json(tomb: Tomb) -> dict[str, Any]:
    """A run that was told as lost, and whose process may live: one item of `lost` in `flowfleet status --json`."""
    return {
        "run_id": tomb.run_id,
        "name": tomb.name,
        "claim": tomb.claim,
        "worker": tomb.worker,
        "host": tomb.host,
        "missing_since": iso(tomb.missed_at),
        "told_at": iso(tomb.buried_at),
    }


def claim_json(claim: Claim) -> dict[str, Any]:
    """A live claim as one item of `runs` in `flowfleet status --json`."""
    handle = claim.handle
    return {
        "run_id": claim.run_id,
        "name": claim.name,
        "flow": claim.flow or None,
        "deployment": claim.deployment or None,
        "route": str(claim.route),
        "state": str(claim.state),
        "claim": claim.claim,
        "attempt": claim.attempt,
        "worker": claim.worker,
        "handle": handle and {name: handle.get(name) for name in ("kind", "host", "id")},
        "since": iso(claim.since),
        "started": iso(claim.began_at) if claim.began_at else None,
        "missing_since": iso(claim.missed_at) if claim.missed_at else None,
        "lingers": {"state": claim.lingers, "since": iso(claim.lingers_since)} if claim.lingers else None,
    }
