"""Claims: our rights to one attempt at a run each, and the only doors through which a claim moves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flowfleet.flow_run import FlowRun, claim_id
from flowfleet.ledger.claim import (
    Claim,
    Held,
    Lease,
    Outcome,
    Renewal,
    pairs,
    read_claim,
    read_lease,
    read_outcome,
    read_record,
    read_routes,
)
from flowfleet.ledger.store import Store
from flowfleet.ledger.transitions import TRANSITIONS, Mover, Refusal, State, Transition

__all__ = [
    "TRANSITIONS",
    "Claim",
    "Claims",
    "Held",
    "Lease",
    "Mover",
    "Outcome",
    "Refusal",
    "Renewal",
    "State",
    "Transition",
]

NAME_LIMIT = 200
REASON_LIMIT = 500
HANDLE_LIMIT = 4096


class Claims:
    """All moves of claims. Each is one Lua script; each says what it refused.

    Every method raises `LedgerUnavailable` when Redis does not answer; then nobody knows whether it was carried out,
    and repeating it with the same ids is safe (a repeat of a move that was done answers moved=True).
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # the leader's (each carries its term)

    def claim(
        self, term: int, runs: Sequence[FlowRun], call: str, *, policy: str, attempts: Mapping[str, int]
    ) -> list[Outcome]:
        """Nothing → claiming, for each run of one bulk call (≤ 10), slots counted in the script, in order."""
        flat: list[str | int] = []
        for run in runs:
            flat += [run.run_id, claim_id(call, run.run_id), str(run.route), run.name[:NAME_LIMIT]]
            flat += [run.due.isoformat(), attempts.get(run.run_id, 1)]
        answers = self._store.script("claim", term, call, policy, len(runs), *flat)
        return [read_outcome(answer) for answer in answers]

    def accept(self, term: int, run_id: str, claim: str) -> Outcome:
        """Claiming → queued: the API has said yes."""
        return self._move("accept", term, run_id, claim)

    def refuse(self, term: int, run_id: str, claim: str, reason: str) -> Outcome:
        """Claiming → dropped: the API has said no."""
        return self._move("refuse", term, run_id, claim, reason[:REASON_LIMIT])

    def give_back(
        self,
        run_id: str,
        claim: str,
        reason: str,
        *,
        term: int | None = None,
        worker: str | None = None,
        never_began: bool = False,
    ) -> Outcome:
        """Queued or taken → returning, by leader (term) or owner (worker).

        Starting → returning only by the owner with `never_began` proof. Who gave it back tells the API, then drops.
        A worker that finds it returning by the leader leaves it to the leader.
        """
        _one_of(term, worker)
        proof = "1" if never_began else "0"
        return self._move("give_back", run_id, claim, reason[:REASON_LIMIT], _text(term), worker or "", proof)

    def drop(self, run_id: str, claim: str, *, term: int | None = None, worker: str | None = None) -> Outcome:
        """Returning → dropped: the API has the run as Scheduled again (or it is no longer ours)."""
        _one_of(term, worker)
        return self._move("drop", run_id, claim, _text(term), worker or "")

    # the worker's

    def take(self, run_id: str, claim: str, worker: str, nonce: str) -> Outcome:
        """Queued → taken. Refused while the gate is shut.

        The same nonce taking twice is told yes twice: within its process a worker launches each claim id only once.
        """
        return self._move("take", run_id, claim, worker, nonce)

    def start(self, run_id: str, claim: str, worker: str, nonce: str) -> Outcome:
        """Taken → starting, before the fork. Refused when cancelled, handed back, or while the gate is shut.

        A question without an answer may be repeated by the same process (same nonce) until it is answered; it must not
        fork before. Another process of this worker is refused (state): only the run's folder tells it what happened.
        """
        return self._move("start", run_id, claim, worker, nonce)

    def run(self, run_id: str, claim: str, worker: str, handle: Mapping[str, Any]) -> Outcome:
        """Starting → running: the deployment exists."""
        return self._move("run", run_id, claim, worker, _handle(handle))

    def end(self, run_id: str, claim: str, worker: str, exit: Mapping[str, Any]) -> Outcome:  # noqa: A002 (its name on disk)
        """Starting or running → ended: the exit is on the worker's disk."""
        return self._move("end", run_id, claim, worker, _exit(exit))

    def release(self, run_id: str, claim: str, worker: str, outcome: str) -> Outcome:
        """Ended → dropped: the API has accepted the report, or needed none. `outcome` goes to the record."""
        return self._move("release", run_id, claim, worker, outcome[:REASON_LIMIT])

    def adopt(self, run_id: str, claim: str, worker: str, nonce: str) -> Outcome:
        """A dead worker's claim becomes that of another worker of its host, whatever its state from taken to ended.

        Only for whoever holds, or has held since that worker died, the lock of its state folder.
        """
        return self._move("adopt", run_id, claim, worker, nonce)

    def renew(self, worker: str, nonce: str, beat: int, held: Sequence[Held]) -> Renewal:
        """One renewal for all; also moves a missing claim of this worker back, and writes again what Redis has lost.

        `beat` grows with each renewal of one nonce: one that was overtaken on its way changes nothing.
        """
        flat: list[str | int] = []
        for item in held:
            flat += [item.run_id, item.claim, item.call, str(item.route), item.name[:NAME_LIMIT], item.due.isoformat()]
            flat += [item.state, item.attempt, item.policy, _handle(item.handle), _exit(item.exit)]
        answer = self._store.script("renew", worker, nonce, beat, len(held), *flat)
        signed_on, gate_open, wanted, lease, routes, cancelled, fenced, reasserted = answer
        return Renewal(
            cancelled=frozenset(cancelled),
            fenced={run: Refusal(why) for run, why in zip(fenced[::2], fenced[1::2], strict=True)},
            reasserted=frozenset(reasserted),
            gate_open=bool(gate_open),
            signed_on=bool(signed_on),
            wanted=wanted,
            lease=read_lease(lease),
            routes=tuple(sorted(read_routes(routes))),
        )

    # anybody's

    def cancel(self, run_id: str) -> Outcome:
        """Set the cancel field."""
        return self._move("cancel", run_id)

    def get(self, run_id: str) -> Claim | None:
        """The live claim of a run."""
        found: Any = self._store.ask(lambda client: client.hgetall(self._store.key(f"claim:{run_id}")))
        return read_claim(found)

    def live(self) -> list[Claim]:
        """All live claims (`ended` ones with an undelivered report among them), oldest due first."""
        claims = (read_claim(pairs(flat)) for flat in self._store.script("live"))
        return sorted((claim for claim in claims if claim), key=lambda claim: (claim.due, claim.run_id))

    def records(self, *, limit: int = 100) -> list[Mapping[str, Any]]:
        """Claims that are gone, newest first, for `explain` and `runs`: kept a day, at most 10,000.

        Each has the fields of the claim, and `move` (what removed it), `by`, `reason`, `gone_at` (unix seconds).
        """
        return [read_record(json.loads(text)) for text in self._store.script("records", limit)]

    def count(self, name: str) -> None:
        """Add one to a counter of the fleet, such as refused messages by kind."""
        self._store.count(name)

    def counts(self) -> dict[str, int]:
        """All counters of the fleet."""
        return self._store.counts()

    def _move(self, script: str, *args: str | int) -> Outcome:
        return read_outcome(self._store.script(script, *args))


def _one_of(term: int | None, worker: str | None) -> None:
    if (term is None) == (worker is None):
        raise TypeError("give the leader's term or the worker, one of them")


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _handle(handle: Mapping[str, Any] | None) -> str:
    text = json.dumps(handle) if handle else ""
    if len(text) > HANDLE_LIMIT:
        raise ValueError(f"a deployment's handle has at most {HANDLE_LIMIT} bytes as JSON, this one has {len(text)}")
    return text


def _exit(record: Mapping[str, Any] | None) -> str:
    """The exit in short, and without what the run has printed: that may be secret, and stays on the worker's disk."""
    if not record:
        return ""
    short = {name: value for name, value in record.items() if name != "last_lines"}
    if isinstance(record.get("error"), str):
        short["error"] = record["error"][:REASON_LIMIT]
    return json.dumps(short)
