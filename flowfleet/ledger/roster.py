"""Roster: the workers of the fleet, what they offer, and what the operator wants of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flowfleet.errors import LedgerUnusable
from flowfleet.flow_run import VERSION, Offer, Route
from flowfleet.ledger.claim import read_routes
from flowfleet.ledger.store import Store

WANTED = ("active", "paused", "draining")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One worker, as it describes itself; `wanted` is the operator's, `live` the leader's."""

    worker: str  # NAME@HOST
    nonce: str
    offer: Offer
    #: the routes whose queues it consumes now: only these count when slots are counted
    routes: tuple[Route, ...]
    slots: int
    version: str
    address: str | None = None
    deploy: str = "process"
    facts: Mapping[str, Any] | None = None
    wanted: str = "active"  # active | paused | draining
    live: bool = True
    beat: int = 0
    seen: float = 0.0  # unix seconds by the Redis clock; for display only
    note: str = ""
    v: int = 1


@dataclass(frozen=True, kw_only=True)
class Due:
    """What the leader last saw waiting at the API for one route."""

    route: Route
    due: int
    at_least: bool
    oldest: float | None  # unix seconds of the oldest scheduled time
    at: float


class Roster:
    """The workers, the known routes and what is due on them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def sign_on(self, row: Row, over: Row | None = None) -> Row | None:
        """Write the row (wanted and note are kept over restarts); None when it is done.

        Otherwise the answer is the row of a live worker of this name with another nonce. The caller watches for a TTL
        of its own clock whether its beat moves (or knows by the lock of the state folder that it is dead), then signs
        on `over` it: done only if that row has not moved meanwhile. One that signed off or lapsed needs no watching.
        """
        nonce, beat = (over.nonce, str(over.beat)) if over else ("", "")
        fields = {
            **_described(row),
            "worker": row.worker,
            "nonce": row.nonce,
            "wanted": row.wanted,
            "note": row.note,
            "beat": str(row.beat),
            "v": str(row.v),
        }
        flat = [text for item in fields.items() for text in item]
        standing = self._store.script("sign_on", row.worker, nonce, beat, *flat)
        if not standing:
            return None
        other = _row(standing)
        if other is None:
            raise LedgerUnusable(
                f"worker {row.worker} is signed on by a newer flowfleet; stop that one, or choose another --name"
            )
        return other

    def update(self, row: Row) -> bool:
        """Write what changed (offer, routes served, slots); False when another process has this name now."""
        flat = [text for item in _described(row).items() for text in item]
        return bool(self._store.script("update", row.worker, row.nonce, *flat))

    def sign_off(self, worker: str, nonce: str) -> None:
        """The worker ends in order: no longer live. Its row stays (its runs may go on)."""
        self._store.script("sign_off", worker, nonce)

    def rows(self) -> list[Row]:
        """All workers, lapsed ones too, by name; rows of another version are left out."""
        rows = (_row(flat) for flat in self._store.script("rows"))
        return sorted((row for row in rows if row), key=lambda row: row.worker)

    def lapse(self, term: int, worker: str, beat: int) -> None:
        """The leader saw no new beat for a TTL: not live any more, unless the beat has moved since."""
        self._store.script("lapse", term, worker, beat)

    def want(self, worker: str, state: str, note: str = "") -> bool:
        """The operator's word: active, paused or draining; False when the worker is unknown."""
        assert state in WANTED, state
        return bool(self._store.script("want", worker, state, note[:200]))

    def forget(self, worker: str) -> bool:
        """Remove a row; refused (False) while it is live."""
        return bool(self._store.script("forget", worker))

    def know(self, routes: Sequence[Route]) -> None:
        """Add routes to the known ones; hints workers when one is new."""
        if routes:
            self._store.script("know", *map(str, routes))

    def unlearn(self, routes: Sequence[Route]) -> None:
        """Take away routes that exist no more at the API; one that a claim is on stays for now."""
        if routes:
            self._store.script("unlearn", *map(str, routes))

    def routes(self) -> list[Route]:
        """All known routes."""
        found: Any = self._store.ask(lambda client: client.smembers(self._store.key("routes")))
        return sorted(read_routes(found))

    def note_due(self, term: int, due: Sequence[Due]) -> None:
        """Write what is due per route (all of it: routes left out are gone)."""
        flat: list[str] = []
        for item in due:
            body = {"due": item.due, "at_least": item.at_least, "oldest": item.oldest, "at": item.at}
            flat += [str(item.route), json.dumps(body)]
        self._store.script("note_due", term, *flat)

    def due(self) -> list[Due]:
        """What is due per route, as the leader last saw it."""
        found: Any = self._store.ask(lambda client: client.hgetall(self._store.key("due")))
        return [Due(route=route, **json.loads(found[text])) for text in sorted(found) for route in read_routes([text])]


def _described(row: Row) -> dict[str, str]:
    """What the worker says of itself, as fields."""
    return {
        "offer": json.dumps(asdict(row.offer)),
        "routes": json.dumps([str(route) for route in row.routes]),
        "slots": str(row.slots),
        "version": row.version,
        "address": row.address or "",
        "deploy": row.deploy,
        "facts": json.dumps(row.facts or {}),
    }


def _row(flat: Sequence[str]) -> Row | None:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if fields.get("v") != str(VERSION):
        return None
    offer: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(fields["offer"]).items()
    }
    return Row(
        worker=fields["worker"],
        nonce=fields["nonce"],
        offer=Offer(**offer),
        routes=tuple(read_routes(json.loads(fields["routes"]))),
        slots=int(fields["slots"]),
        version=fields["version"],
        address=fields["address"] or None,
        deploy=fields["deploy"],
        facts=json.loads(fields["facts"]),
        wanted=fields["wanted"],
        live=fields["live"] == "1",
        beat=int(fields["beat"]),
        seen=float(fields["seen"]),
        note=fields["note"],
    )
