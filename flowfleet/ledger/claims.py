"""Claims: all claims of a fleet, and the only methods that move a claim."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flowfleet.flow_run import FlowRun, claim_id
from flowfleet.ledger.claim import (
    Claim,
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

__all__ = ["TRANSITIONS", "Claim", "Claims", "Lease", "Mover", "Outcome", "Refusal", "Renewal", "State", "Transition"]

NAME_LIMIT = 200
REASON_LIMIT = 500
HANDLE_LIMIT = 4096

#: why a worker yields: it stops, the operator's word keeps it from taking runs, or it takes runs and only finishes what
#: dead workers were handing back
Yields = Literal["stopping", "idle", "finishing"]


class Claims:
    """All moves of claims. Each move is one Lua script, and its outcome says why a move was refused.

    Every method raises `LedgerUnavailable` when Redis does not answer. Then nobody knows whether the move was carried
    out, and repeating it with the same ids is safe (a repeat of a move that was done answers moved=True).
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # moves of the leader, each with the leader's term; `give_back` and `drop` are open to the owner too

    def claim(
        self, term: int, runs: Sequence[FlowRun], call: str, *, policy: str, attempts: Mapping[str, int]
    ) -> list[Outcome]:
        """Make a claim (claiming) for each run of one bulk call (≤ 10), in order; the script counts the slots."""
        flat: list[str | int] = []
        for run in runs:
            flat += [run.run_id, claim_id(call, run.run_id), str(run.route), run.name[:NAME_LIMIT]]
            flat += [run.due.isoformat(), attempts.get(run.run_id, 1)]
        answers = self._store.script("claim", term, call, policy, len(runs), *flat)
        return [read_outcome(answer) for answer in answers]

    def accept(self, term: int, run_id: str, claim: str) -> Outcome:
        """Move a claim from claiming to queued: the API has accepted the run as ours."""
        return self._move("accept", term, run_id, claim)

    def refuse(self, term: int, run_id: str, claim: str, reason: str) -> Outcome:
        """Drop a claiming claim: the API has refused the run."""
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
        """Move a claim from queued or taken to returning, by the leader (`term`) or the owner (`worker`).

        From starting only the owner may do so, with the proof `never_began`. Whoever gave the claim back hands the run
        back at the API, then drops the claim. A worker leaves a claim alone that the leader has given back.
        """
        _one_of(term, worker)
        proof = "1" if never_began else "0"
        return self._move("give_back", run_id, claim, reason[:REASON_LIMIT], _text(term), worker or "", proof)

    def drop(self, run_id: str, claim: str, *, term: int | None = None, worker: str | None = None) -> Outcome:
        """Drop a returning claim: the API has the run as Scheduled again (or the run is no longer ours)."""
        _one_of(term, worker)
        return self._move("drop", run_id, claim, _text(term), worker or "")

    # moves of a worker

    def take(self, run_id: str, claim: str, worker: str, nonce: str) -> Outcome:
        """Move a claim from queued to taken. Refused while the gate is shut.

        A repeat by the same nonce is answered with yes again: within its process a worker launches each claim id only
        once.
        """
        return self._move("take", run_id, claim, worker, nonce)

    def start(self, run_id: str, claim: str, worker: str, nonce: str) -> Outcome:
        """Move a claim from taken to starting, before the fork.

        Refused when the claim was cancelled or handed back, or while the gate is shut. A request without an answer may
        be repeated by the same process (same nonce) until it is answered; that process must not fork before. Another
        process of this worker is refused (state): only the run's folder tells that process what happened.
        """
        return self._move("start", run_id, claim, worker, nonce)

    def run(self, run_id: str, claim: str, worker: str, handle: Mapping[str, Any]) -> Outcome:
        """Move a claim from starting to running: the started run exists and has a handle."""
        return self._move("run", run_id, claim, worker, _handle(handle))

    def end(self, run_id: str, claim: str, worker: str, exit: Mapping[str, Any]) -> Outcome:  # noqa: A002 (its name on disk)
        """Move a claim from starting or running to ended: the exit is on the worker's disk."""
        return self._move("end", run_id, claim, worker, _exit(exit))

    def release(self, run_id: str, claim: str, worker: str, outcome: str) -> Outcome:
        """Drop an ended claim: the API has accepted the report, or needed none. `outcome` goes to the record."""
        return self._move("release", run_id, claim, worker, outcome[:REASON_LIMIT])

    def adopt(self, run_id: str, claim: str, worker: str, nonce: str) -> Outcome:
        """Give a dead worker's claim to another worker of the same host; any state from taken to ended stays as it is.

        Only a worker that holds, or has held since the owner died, the lock of the owner's state folder may do so.
        """
        return self._move("adopt", run_id, claim, worker, nonce)

    def yield_waiting(self, worker: str, nonce: str, how: Yields, reason: str) -> list[Claim]:
        """Move the queued claims that no other live, active worker can take to returning; their messages go too.

        The answer is all that this process is to hand back at the API and to drop: also what an earlier call without an
        answer has moved, and what workers that do not live any more were handing back.
        """
        _, flat = self._store.script("yield", worker, nonce, how, reason[:REASON_LIMIT])
        claims = (read_claim(pairs(fields)) for fields in flat)
        return sorted((claim for claim in claims if claim), key=lambda claim: (claim.due, claim.run_id))

    def renew(self, worker: str, nonce: str, beat: int, held: Sequence[Claim]) -> Renewal:
        """Renew all held claims in one call; moves missing ones back, and writes again those that Redis has lost.

        `beat` grows with each renewal of one nonce: one that a later one has overtaken on its way changes nothing.
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

    def linger(self, run_id: str, claim: str, worker: str, state: str) -> Outcome:
        """Note that the API shows this state, an end, though the run's process lives; "" takes the note away.

        The claim's own state stays, and a loss of Redis loses the note. Refused when the claim is not this worker's.
        """
        return self._move("linger", run_id, claim, worker, state[:NAME_LIMIT])

    # open to anybody

    def cancel(self, run_id: str) -> Outcome:
        """Set the cancel field of the run's claim, whatever its state, and hint workers."""
        return self._move("cancel", run_id)

    def get(self, run_id: str) -> Claim | None:
        """The live claim of a run; None when there is none, or one of a version that this flowfleet cannot read."""
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
        raise ValueError(f"a started run's handle has at most {HANDLE_LIMIT} bytes as JSON, this one has {len(text)}")
    return text


def _exit(record: Mapping[str, Any] | None) -> str:
    """The exit in short, and without what the run has printed: that may be secret, and stays on the worker's disk."""
    if not record:
        return ""
    short = {name: value for name, value in record.items() if name != "last_lines"}
    if isinstance(record.get("error"), str):
        short["error"] = record["error"][:REASON_LIMIT]
    return json.dumps(short)
