"""The ledger: all claims, the roster and the gate, moved only by named, atomic transitions."""

from __future__ import annotations

from dataclasses import dataclass

from flowfleet.ledger.claims import Claims
from flowfleet.ledger.gate import Gate
from flowfleet.ledger.hints import Hints
from flowfleet.ledger.login import Login
from flowfleet.ledger.roster import Roster
from flowfleet.ledger.store import Server, Store, open_store

__all__ = ["Ledger", "connect"]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The doors of one fleet's ledger."""

    claims: Claims
    roster: Roster
    gate: Gate
    hints: Hints
    store: Store

    def check(self) -> Server:
        """Ask the server who it is: `LedgerUnusable` is what waiting cannot cure, `LedgerUnavailable` no answer."""
        return self.store.check()

    def close(self) -> None:
        """Let go of all connections."""
        self.store.close()


def connect(url: str, fleet: str, *, socket_timeout: float = 5.0, login: Login | None = None) -> Ledger:
    """The ledger of a fleet at `redis://…` or `redis+socket://…`; no server need be there yet (see `Ledger.check`).

    `login` is asked by each connection that is opened, since a password may change; without it the address has it.
    """
    store = open_store(url, fleet, socket_timeout=socket_timeout, login=login)
    return Ledger(claims=Claims(store), roster=Roster(store), gate=Gate(store), hints=Hints(store), store=store)
