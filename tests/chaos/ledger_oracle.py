"""Oracle: what each move must answer, told by the transition table alone, and the tally of what has been taken."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from flowfleet.ledger.claims import TRANSITIONS, UNKNOWN_WORKER, Mover, Refusal, State

TABLE = {row.name: row for row in TRANSITIONS if row.built}
#: claim, assert, yield and forget have shapes of their own
NAMED = tuple(name for name in TABLE if name not in ("claim", "assert", "yield", "forget"))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question to the ledger."""

    move: str
    run: str
    claim: str
    term: int = 0
    worker: str = ""
    nonce: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What Redis holds at that moment."""

    claim: Mapping[str, str]
    record: Mapping[str, str]
    gate_open: bool
    process: str
    term: int
    row_nonce: str
    tomb: Mapping[str, str]
    forgotten: bool


def expected(asked: Asked, facts: Facts) -> Refusal | None:
    """The refusal, or None for a move (or the repeat of one)."""
    row, claim = TABLE[asked.move], facts.claim
    if asked.move == "restore":
        return _expected_of_restore(asked, facts)
    if asked.move in ("prove", "clear") and (asked.move == "clear" or facts.tomb.get("claim") == asked.claim):
        return _expected_of_tombs(asked, facts)
    if row.mover is Mover.LEADER and asked.term != facts.term:
        return Refusal.TERM
    if not claim or claim["claim"] != asked.claim:
        if row.target is None and not row.stays and facts.record.get("move") == asked.move:
            return None
        if asked.move in ("end", "release") and facts.record.get("move") == "inherit":
            return None
        return Refusal.OTHER_CLAIM if claim else Refusal.UNKNOWN
    if claim["v"] != "1":
        return Refusal.VERSION
    if asked.move == "cancel":
        return None
    if asked.move == "adopt":
        return _expected_of_adopt(asked, facts)
    if asked.move == "prove":
        return _expected_of_prove(asked, facts)
    by_leader = row.mover is Mover.LEADER
    hearsay = claim.get("restored") == "1" and asked.move in ("run", "end")
    if not by_leader and claim["worker"] not in ("", asked.worker) and not hearsay:
        return Refusal.OWNER
    if not by_leader and facts.forgotten:
        return Refusal.FORGOTTEN
    if asked.move in ("take", "start") and facts.row_nonce != asked.nonce:
        return Refusal.OWNER
    state = State(claim["state"]) if by_leader else _as_its_worker_knows(claim)
    again = state is row.target
    if asked.move in ("take", "start"):
        again = again and claim["nonce"] == asked.nonce
    if row.target is State.RETURNING:
        again = again and (by_leader or claim.get("by") == asked.worker)
    if again and asked.move != "start":
        return None
    if not again and state not in row.sources:
        return Refusal.STATE
    stale = not facts.gate_open or claim["process"] != facts.process
    if asked.move == "take" and stale:
        return Refusal.GATE
    if asked.move in ("start", "give back (leader)", "miss", "judge") and not facts.gate_open:
        return Refusal.GATE
    if row.target is State.RETURNING and not by_leader and state is State.QUEUED and stale:
        return Refusal.GATE
    if asked.move == "start" and claim["cancel"] != "0":
        return Refusal.CANCELLED
    if asked.move == "drop (worker)" and claim.get("by") != asked.worker:
        return Refusal.OWNER
    return None


def _expected_of_adopt(asked: Asked, facts: Facts) -> Refusal | None:
    claim = facts.claim
    if facts.row_nonce != asked.nonce:
        return Refusal.OWNER
    if facts.forgotten:
        return Refusal.FORGOTTEN
    if _as_its_worker_knows(claim) not in TABLE["adopt"].sources:
        return Refusal.STATE
    return None if _of_host(claim["worker"], asked.worker) else Refusal.OWNER


def _as_its_worker_knows(claim: Mapping[str, str]) -> State:
    """The state of the claim for its worker's moves: a missing one whose worker speaks is where it was."""
    state = State(claim["state"])
    return State(claim["was"]) if state is State.MISSING else state


def _expected_of_prove(asked: Asked, facts: Facts) -> Refusal | None:
    if facts.row_nonce != asked.nonce or not _of_host(facts.claim["worker"], asked.worker):
        return Refusal.OWNER
    return None if State(facts.claim["state"]) in TABLE["prove"].sources else Refusal.STATE


def _expected_of_tombs(asked: Asked, facts: Facts) -> Refusal | None:
    if asked.move == "prove":
        same = facts.row_nonce == asked.nonce and _of_host(facts.tomb["worker"], asked.worker)
        return None if same else Refusal.OWNER
    if asked.term != facts.term:
        return Refusal.TERM
    if not facts.tomb:
        return Refusal.UNKNOWN
    return None if facts.tomb["claim"] == asked.claim else Refusal.OTHER_CLAIM


def _expected_of_restore(asked: Asked, facts: Facts) -> Refusal | None:
    claim, record = facts.claim, facts.record
    if asked.term != facts.term:
        return Refusal.TERM
    if claim.get("claim") == asked.claim and claim["state"] == "missing" and claim.get("restored") == "1":
        return None
    if claim or (record and (record["move"], record["by"]) != ("drop (leader)", "leader")):
        return Refusal.KNOWN
    if facts.tomb:
        return Refusal.BURIED
    return None if facts.gate_open else Refusal.GATE


def _of_host(owner: str, worker: str) -> bool:
    return owner == UNKNOWN_WORKER or owner.rpartition("@")[2] == worker.rpartition("@")[2]


def expected_of_yield(
    claim: Mapping[str, str], *, named: bool, gate_open: bool, process: str, served: bool
) -> Refusal | None:
    """What becomes of one claim: `named` is whether who asks has its name, `served` whether another one takes runs."""
    if not named:
        return Refusal.OWNER
    if claim["v"] != "1":
        return Refusal.VERSION
    if State(claim["state"]) not in TABLE["yield"].sources:
        return Refusal.STATE
    if not gate_open or claim["process"] != process:
        return Refusal.GATE
    return Refusal.SERVED if served else None


@dataclass
class Tally:
    """Which rows of the table were taken, and which of their refusals."""

    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    states: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, move: str, refusal: Refusal | None, source: str = "") -> None:
        self.taken[move, str(refusal or "moved")] += 1
        if refusal is None:
            self.states[move, source] += 1

    def missing(self) -> list[tuple[str, str]]:
        """What the table promises and nothing has taken yet."""
        answers, sources = self._promises()
        return sorted(answers - set(self.taken)) + sorted(sources - set(self.states))

    def _promises(self) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        answers = {(row.name, str(why)) for row in TABLE.values() for why in (*row.refusals, "moved")}
        return answers, {(row.name, str(state)) for row in TABLE.values() for state in row.sources}
