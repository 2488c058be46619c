"""Roster: the workers of the fleet, what they offer, and what the operator wants of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from flowfleet.errors import LedgerUnusable
from flowfleet.flow_run import NOTHING_HELD, VERSION, Held, Offer, Route
from flowfleet.ledger.claim import read_routes
from flowfleet.ledger.store import Store

WANTED = ("active", "paused", "draining")
#: how a worker went that does not live any more
STOPPED, LOST = "stopped", "lost"
_CAUSES = frozenset(field.name for field in fields(Held))
#: characters of a worker's reason to take no runs
SHUT_LIMIT = 300


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """The row of one worker, as it describes itself; the operator sets `wanted`, and the leader decides on `live`."""

    worker: str  # NAME@HOST
    nonce: str
    offer: Offer
    #: the routes whose queues the worker consumes now: only these count when slots are counted
    routes: tuple[Route, ...]
    slots: int
    version: str
    address: str | None = None
    deploy: str = "process"
    #: why it can start no run now, though it lives and its operator wants it to: its container engine is away
    shut: str = ""
    facts: Mapping[str, Any] | None = None
    wanted: str = "active"  # active | paused | draining
    live: bool = True
    leaving: bool = False  # it stops, and has yielded what waited for it
    gone: str = ""  # stopped | lost, of one that does not live; "" of a live one, and where an older version wrote it
    beat: int = 0
    seen: float = 0.0  # unix seconds by the Redis clock; for display only
    note: str = ""
    boot_id: str = ""  # of its host: another one proves that what ran under the earlier one has ended
    machine: str = ""  # tells its machine from others: a boot id proves that only on the same one; "" = not known
    v: int = 1

    @property
    def end(self) -> str:
        """How a worker that does not live any more went: `stopped` in order, or `lost`, since it fell silent.

        An older version has left no mark: there a worker gave its queues back before it signed off.
        """
        return self.gone or (STOPPED if self.leaving else LOST)

    @property
    def takes_runs(self) -> bool:
        """Whether runs may be sent to the worker, as the scripts decide it."""
        return self.live and self.wanted == "active" and not self.leaving and not self.shut


@dataclass(frozen=True, kw_only=True)
class RouteDue:
    """The runs that the leader last saw due at the API on one route."""

    route: Route
    due: int
    at_least: bool  # True: the API lists no more than `due`
    oldest: float | None  # unix seconds of the oldest scheduled time
    at: float  # unix seconds at which the leader saw them
    #: those that wait there and are not due, since something holds them back, and those that no worker can take
    held: Held = NOTHING_HELD

    @classmethod
    def read(cls, route: Route, text: str) -> "RouteDue":
        """Read the JSON of a route; what a later version has added to it is passed over."""
        body = json.loads(text)
        known = {name: body[name] for name in ("due", "at_least", "oldest", "at")}
        held = {name: int(value) for name, value in body.get("held", {}).items() if name in _CAUSES}
        return cls(route=route, **known, held=Held(**held))

    def to_json(self) -> str:
        """The JSON of the route, as `read` takes it."""
        facts = {"due": self.due, "at_least": self.at_least, "oldest": self.oldest, "at": self.at}
        return json.dumps({**facts, "held": asdict(self.held)})


class Roster:
    """The workers, the known routes and what is due on them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def sign_on(self, row: WorkerRow, over: WorkerRow | None = None, ledgers: Sequence[str] = ()) -> WorkerRow | None:
        """Write the worker's row (wanted and note are kept over restarts); None when that is done.

        Otherwise the answer is the row of a live worker of this name with another nonce. The caller watches for a TTL
        by its own clock whether that row's beat moves (or knows by the lock of the state folder that the other worker
        is dead), then signs on `over` it, which is done only if that row has not moved meanwhile. The row of a worker
        that signed off or lapsed needs no watching. Raises `LedgerUnusable` for a row of a newer flowfleet.

        `ledgers` are the ledger ids that the worker remembers, for a Redis that has lost them.
        """
        nonce, beat = (over.nonce, str(over.beat)) if over else ("", "")
        fields = {
            **_described(row),
            "worker": row.worker,
            "nonce": row.nonce,
            "wanted": row.wanted,
            "note": row.note,
            "beat": str(row.beat),
            "boot_id": row.boot_id,
            "machine": row.machine,
            "v": str(row.v),
        }
        flat = [text for item in fields.items() for text in item]
        blocking = self._store.script("sign_on", row.worker, nonce, beat, ",".join(ledgers), *flat)
        if not blocking:
            return None
        other = _row(blocking)
        if other is None:
            raise LedgerUnusable(
                f"worker {row.worker} is signed on by a newer flowfleet; stop that one, or choose another --name"
            )
        return other

    def update(self, row: WorkerRow) -> bool:
        """Write what changed (offer, routes served, slots); False when another process has this name now."""
        flat = [text for item in _described(row).items() for text in item]
        return bool(self._store.script("update", row.worker, row.nonce, *flat))

    def sign_off(self, worker: str, nonce: str) -> None:
        """Mark the worker as stopped, since it ends in order. Its row stays (its runs may go on)."""
        self._store.script("sign_off", worker, nonce)

    def rows(self) -> list[WorkerRow]:
        """All workers, lapsed ones too, by name; rows of another version are left out."""
        rows = (_row(flat) for flat in self._store.script("rows"))
        return sorted((row for row in rows if row), key=lambda row: row.worker)

    def lapse(self, term: int, worker: str, beat: int) -> None:
        """Mark a live worker as lost, unless its beat has moved since: the leader saw no new beat for a TTL."""
        self._store.script("lapse", term, worker, beat)

    def want(self, worker: str, state: str, note: str = "") -> bool:
        """Set what the operator wants of a worker: active, paused or draining; False when the worker is unknown."""
        assert state in WANTED, state
        return bool(self._store.script("want", worker, state, note[:200]))

    def forget(self, worker: str, seen: WorkerRow | None = None) -> list[str] | None:
        """Remove a worker's row and give up what it has started; the answer is the run ids of that.

        None (refused) when the worker is unknown, or live: then the caller watches for a TTL by its own clock whether
        its beat moves, and gives the row that was `seen`. One that has lost its row with Redis is known by its missing
        and judged claims and its tombstones.
        """
        done, given_up = self._store.script("forget", worker, *((seen.nonce, seen.beat) if seen else ("", "")))
        return sorted(given_up) if done else None

    def know(self, routes: Sequence[Route]) -> None:
        """Add routes to the known ones; a hint tells workers when one is new."""
        if routes:
            self._store.script("know", *map(str, routes))

    def unlearn(self, routes: Sequence[Route]) -> None:
        """Remove routes that exist no more at the API from the known ones; a route with a claim stays for now."""
        if routes:
            self._store.script("unlearn", *map(str, routes))

    def routes(self) -> list[Route]:
        """All known routes."""
        found: Any = self._store.ask(lambda client: client.smembers(self._store.key("routes")))
        return sorted(read_routes(found))

    def note_due(self, term: int, due: Sequence[RouteDue]) -> None:
        """Write how many runs are due per route; `due` replaces what stood there, so routes left out are gone."""
        flat: list[str] = []
        for item in due:
            flat += [str(item.route), item.to_json()]
        self._store.script("note_due", term, *flat)

    def due_at(self) -> float | None:
        """When the leader last wrote what is due, in unix seconds by the Redis clock; None when none ever has."""
        found: Any = self._store.ask(lambda client: client.get(self._store.key("due_at")))
        return None if found is None else float(found)

    def due(self) -> list[RouteDue]:
        """The due runs per route, as the leader last saw them."""
        found: Any = self._store.ask(lambda client: client.hgetall(self._store.key("due")))
        return [RouteDue.read(route, found[text]) for text in sorted(found) for route in read_routes([text])]


def _described(row: WorkerRow) -> dict[str, str]:
    """The worker's description of itself, as fields of its row."""
    return {
        "offer": json.dumps(asdict(row.offer)),
        "routes": json.dumps([str(route) for route in row.routes]),
        "slots": str(row.slots),
        "version": row.version,
        "address": row.address or "",
        "deploy": row.deploy,
        "shut": row.shut,
        "facts": json.dumps(row.facts or {}),
    }


def _row(flat: Sequence[str]) -> WorkerRow | None:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if fields.get("v") != str(VERSION):
        return None
    offer: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(fields["offer"]).items()
    }
    return WorkerRow(
        worker=fields["worker"],
        nonce=fields["nonce"],
        offer=Offer(**offer),
        routes=tuple(read_routes(json.loads(fields["routes"]))),
        slots=int(fields["slots"]),
        version=fields["version"],
        address=fields["address"] or None,
        deploy=fields["deploy"],
        shut=fields.get("shut", ""),
        facts=json.loads(fields["facts"]),
        wanted=fields["wanted"],
        live=fields["live"] == "1",
        leaving=fields.get("leaving") == "1",
        gone=fields.get("gone", ""),
        beat=int(fields["beat"]),
        seen=float(fields["seen"]),
        note=fields["note"],
        boot_id=fields.get("boot_id", ""),
        machine=fields.get("machine", ""),
    )
