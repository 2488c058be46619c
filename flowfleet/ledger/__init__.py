"""Ledger: all claims, the roster and the gate, moved only by named, atomic transitions."""

from dataclasses import dataclass

from flowfleet.ledger.claims import Claims
from flowfleet.ledger.gate import Gate
from flowfleet.ledger.hints import Hints
from flowfleet.ledger.login import Login
from flowfleet.ledger.roster import Roster
from flowfleet.ledger.store import ServerFacts, Store, open_store

__all__ = ["Ledger", "connect"]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The ledger of one fleet: its claims, roster, gate and hints, over one store."""

    claims: Claims
    roster: Roster
    gate: Gate
    hints: Hints
    store: Store

    def check(self) -> ServerFacts:
        """Check the server: `LedgerUnusable` means what waiting cannot cure, `LedgerUnavailable` means no answer."""
        return self.store.check()

    def close(self) -> None:
        """Close all connections."""
        self.store.close()


def connect(url: str, fleet: str, *, socket_timeout: float = 5.0, login: Login | None = None) -> Ledger:
    """The ledger of a fleet at `redis://…` or `redis+socket://…`; no server need be there yet (see `Ledger.check`).

    Each connection that is opened asks `login` for user and password, since a password may change. Without `login` the
    address has them.
    """
    store = open_store(url, fleet, socket_timeout=socket_timeout, login=login)
    return Ledger(claims=Claims(store), roster=Roster(store), gate=Gate(store), hints=Hints(store), store=store)
