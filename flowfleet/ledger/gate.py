"""Gate: the election of the leader, and the gate, shut while Redis is not the process that the leader has accepted."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from flowfleet.ledger.claim import Lease, read_lease
from flowfleet.ledger.ledger_id import new_id
from flowfleet.ledger.store import Store


@dataclass(frozen=True, kw_only=True)
class Leader:
    """The leading poller, as the ledger has it: the nonce of its process, its term, and a beat that grows."""

    name: str
    host: str
    nonce: str
    term: int
    beat: int


class Gate:
    """Election, gate and the leader's numbers. Scripts compare the gate with the id of the server process.

    It is the run id of INFO server, and after a promotion also the replication id that the server had before.
    """

    def __init__(self, store: Store, *, gap: random.Random | None = None) -> None:
        self._store = store
        self._gap = gap or random.Random()

    def is_open(self) -> bool:
        """True when the server process is the accepted one."""
        return bool(self._store.script("gate")[0])

    def empty(self) -> bool:
        """True when the ledger has no claim at all."""
        return int(self._store.script("gate")[2]) == 0

    def open(self, term: int, server: str) -> bool:
        """Accept this server process (its id as read when the sweep began); False if it or the term has changed."""
        return bool(self._store.script("open", term, server))

    def server(self) -> str:
        """The id of the Redis process that answers now."""
        return str(self._store.script("gate")[1])

    def leader(self) -> Leader | None:
        """The leader, as the ledger has it; None when nobody leads."""
        found: Any = self._store.ask(lambda client: client.hgetall(self._store.key("leader")))
        if not found.get("nonce"):
            return None
        return Leader(
            name=found["name"],
            host=found["host"],
            nonce=found["nonce"],
            term=int(found["term"]),
            beat=int(found["beat"]),
        )

    def elect(
        self, name: str, host: str, nonce: str, seen: Leader | None, lease: Lease, *, ledgers: Sequence[str] = ()
    ) -> int | None:
        """Become leader if the leader in the ledger is still exactly `seen` (term and beat); the new term, or None.

        The leader's numbers are written with it: a run that starts before the leader's first beat has a deadline that
        the leader will count by.

        The caller has watched `seen` for the leader's time by its own clock; one that resigned need not be watched.
        Terms grow by random gaps, so that two leaders around a loss of Redis's last writes never share a term.

        `ledgers` are the ledger ids that the caller remembers, that of its ledger first: an emptied Redis gets it back.
        """
        beat: tuple[str | int, str | int] = (seen.term, seen.beat) if seen else ("", "")
        who = (name[:200], host[:200], nonce)
        ids = (new_id(self._gap), ",".join(ledgers))
        term = self._store.script("elect", *who, *beat, self._gap.randrange(10_000), *_numbers(lease), *ids)
        return int(term) if term else None

    def lead(self, term: int, nonce: str, lease: Lease) -> bool:
        """Move the leader's beat and write its numbers; False when another leader has been elected."""
        return bool(self._store.script("lead", term, nonce, *_numbers(lease)))

    def lease(self) -> Lease:
        """The leader's numbers, or the defaults where no leader has written any."""
        names = ("renew_seconds", "ttl_seconds", "grace_seconds")
        found: Any = self._store.ask(lambda client: client.hmget(self._store.key("lease"), names))
        return read_lease(found)

    def resign(self, term: int, to: Collection[str] = ()) -> bool:
        """Give up the lead, so that a standby need not wait. The term stays, so the next one is higher.

        With nonces of pollers that stand by, only while one of them is still listed; False when none is, and then
        nothing is done.
        """
        return bool(self._store.script("resign", term, *to))

    def ledgers(self) -> tuple[str, ...]:
        """The ids of this ledger: its own first, then earlier ones that its pollers and workers remember."""
        found: Any = self._store.ask(lambda client: client.zrange(self._store.key("ledgers"), 0, -1))
        return tuple(found)

    def stand_by(self, nonce: str, ledgers: Sequence[str] = ()) -> None:
        """Move the counter of a poller that stands by, and give the ledger the ids that it remembers."""
        self._store.script("stand_by", nonce, ",".join(ledgers))

    def stand_down(self, nonce: str) -> bool:
        """Take a poller off those that stand by, since it ends; whether another one leads."""
        return bool(self._store.script("stand_down", nonce))

    def standbys(self) -> dict[str, int]:
        """The counters of the pollers that stand by, by nonce; one that was killed stays until it is forgotten."""
        found: Any = self._store.ask(lambda client: client.hgetall(self._store.key("standbys")))
        return {nonce: int(counter) for nonce, counter in found.items()}

    def forget_standbys(self, nonces: Collection[str]) -> None:
        """Forget pollers whose counters do not move; one that lives after all is back with its next move."""
        if nonces:
            self._store.ask(lambda client: client.hdel(self._store.key("standbys"), *nonces))

    def order_leave(self) -> None:
        """Say the word that lets all pollers claim nothing, give back and end."""
        self._store.script("leave", 1)

    def withdraw_leave(self) -> None:
        """Take the word back: a poller is started on purpose."""
        self._store.script("leave", 0)

    def leave_ordered(self) -> bool:
        """Whether the word stands."""
        found: Any = self._store.ask(lambda client: client.exists(self._store.key("leave")))
        return bool(found)


def _numbers(lease: Lease) -> tuple[float, float, float]:
    return (lease.renew_seconds, lease.ttl_seconds, lease.grace_seconds)
