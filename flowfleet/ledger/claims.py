"""Claims: all claims of a fleet, and the only methods that move a claim."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flowfleet.flow_run import FlowRun, claim_id
from flowfleet.ledger.claim import (
    UNKNOWN_WORKER,
    CancelAsked,
    CancelHow,
    Claim,
    Lease,
    Missed,
    Outcome,
    Renewal,
    Tomb,
    pairs,
    read_cancelled,
    read_claim,
    read_lease,
    read_outcome,
    read_record,
    read_routes,
    read_tomb,
)
from flowfleet.ledger.store import Store
from flowfleet.ledger.transitions import TRANSITIONS, Mover, Refusal, State, Transition
from flowfleet.logs import redact

__all__ = [
    "AGAIN",
    "TRANSITIONS",
    "UNKNOWN_WORKER",
    "CancelAsked",
    "CancelHow",
    "Claim",
    "Claims",
    "Lease",
    "Missed",
    "Mover",
    "Outcome",
    "Refusal",
    "Renewal",
    "State",
    "Tomb",
    "Transition",
]

NAME_LIMIT = 200
REASON_LIMIT = 500
HANDLE_LIMIT = 4096
WHY_LIMIT = 200
#: the outcome of a released or buried claim whose run is Scheduled once more, by us: its next claim is one more attempt
AGAIN = "again"

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
        self, term: int, runs: Sequence[FlowRun], call: str, *, policy: str, max_attempts: int = 0
    ) -> list[Outcome]:
        """Make a claim (claiming) for each run of one bulk call (≤ 10), in order; the script counts the slots.

        It counts the attempts: a run that we have started again `max_attempts` times is only reported if it is lost.
        """
        flat: list[str | int] = []
        for run in runs:
            flat += [run.run_id, claim_id(call, run.run_id), str(run.route), run.name[:NAME_LIMIT]]
            flat += [run.due.isoformat()]
        answers = self._store.script("claim", term, call, policy, max_attempts, len(runs), *flat)
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

    def miss(self, term: int, run_id: str, claim: str, moves: int | None = None) -> Outcome:
        """Move a claim from starting or running to missing, unless it has moved on from `moves`: nobody renews it."""
        return self._move("miss", term, run_id, claim, _text(moves))

    def restore(self, term: int, run: FlowRun, claim: str, call: str, worker: str) -> Outcome:
        """Make a missing claim of a run that the API shows as launched by us, and that Redis has lost altogether.

        `worker` is the one that the API names, or `UNKNOWN_WORKER`. Whoever holds the claim corrects all of it with the
        next renewal. Refused while the gate is shut: until then workers have time to say themselves what they hold.
        """
        names = (str(run.route), run.name[:NAME_LIMIT], run.due.isoformat(), worker)
        return self._move("restore", term, run.run_id, claim, call, *names)

    def judge(
        self, term: int, run_id: str, claim: str, moves: int | None = None, *, proof: str = "", reason: str
    ) -> Outcome:
        """Move a claim from missing to judged, unless it has moved on: it is held for lost.

        `reason` is what the API is told, kept for whoever repeats the report. `proof` is why no process of it can live;
        what the host or a person has said already is kept.
        """
        return self._move("judge", term, run_id, claim, _text(moves), proof[:REASON_LIMIT], reason[:REASON_LIMIT])

    def bury(self, term: int, run_id: str, claim: str, outcome: str) -> Outcome:
        """Drop a judged claim: the API has been told. A claim without proof leaves a tombstone.

        The outcome `AGAIN` says that the API has the run as Scheduled once more.
        """
        again = "1" if outcome == AGAIN else "0"
        return self._move("bury", term, run_id, claim, outcome[:REASON_LIMIT], again)

    def clear(self, term: int, run_id: str, claim: str) -> Outcome:
        """Take a tombstone away: its host has another boot id. A repeat is refused (unknown)."""
        return self._move("clear", term, run_id, claim)

    def inherit(self, term: int, run_id: str, claim: str, moves: int | None = None, *, outcome: str) -> Outcome:
        """Drop an ended claim that its host does not renew, unless it has moved on: the leader has told its end.

        The outcome `AGAIN` says that the API has the run as Scheduled once more, by its worker's word.
        """
        return self._move("inherit", term, run_id, claim, _text(moves), outcome[:REASON_LIMIT])

    # moves of a worker

    def take(self, run_id: str, claim: str, worker: str, nonce: str) -> Outcome:
        """Move a claim from queued to taken. Refused while the gate is shut.

        A repeat by the same nonce is answered with yes again: within its process a worker launches each claim id only
        once.
        """
        return self._move("take", run_id, claim, worker, nonce)

    def start(
        self,
        run_id: str,
        claim: str,
        worker: str,
        nonce: str,
        *,
        policy: str = "",
        switch: bool = False,
        ttl: float = 0.0,
        flow: str = "",
        deployment: str = "",
    ) -> Outcome:
        """Move a claim from taken to starting, before the fork.

        `policy` is what the run itself asks for if it is lost (report or requeue; "" = what the poller was told). The
        answer's claim has the one that holds: attempts are counted. `switch` says that the run ends by itself when its
        lease runs out, and `ttl` which lease the worker has heard. `flow` and `deployment` are names for people.

        Refused when the claim was cancelled or handed back, or while the gate is shut. A request without an answer may
        be repeated by the same process (same nonce) until it is answered; that process must not fork before. Another
        process of this worker is refused (state): only the run's folder tells that process what happened.
        """
        names = (flow[:NAME_LIMIT], deployment[:NAME_LIMIT])
        return self._move("start", run_id, claim, worker, nonce, policy, "1" if switch else "0", str(ttl), *names)

    def run(self, run_id: str, claim: str, worker: str, handle: Mapping[str, Any]) -> Outcome:
        """Move a claim from starting to running: the started run exists and has a handle."""
        return self._move("run", run_id, claim, worker, _handle(handle))

    def end(self, run_id: str, claim: str, worker: str, exit: Mapping[str, Any]) -> Outcome:  # noqa: A002 (its name on disk)
        """Move a claim from starting or running to ended: the exit is on the worker's disk."""
        return self._move("end", run_id, claim, worker, _exit(exit))

    def release(self, run_id: str, claim: str, worker: str, outcome: str) -> Outcome:
        """Drop an ended claim: the API has accepted the report, or needed none. `outcome` goes to the record."""
        return self._move("release", run_id, claim, worker, outcome[:REASON_LIMIT])

    def prove(self, run_id: str, claim: str, worker: str, nonce: str, why: str) -> Outcome:
        """Say for this host that no process of a missing, judged or buried claim is left; a tombstone goes.

        Only a worker that holds, or has held since the owner died, the lock of the owner's state folder may do so.
        """
        return self._move("prove", run_id, claim, worker, nonce, why[:REASON_LIMIT])

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
            flat += ["1" if item.switch else "0", item.flow[:NAME_LIMIT], item.deployment[:NAME_LIMIT], str(item.ttl)]
        answer = self._store.script("renew", worker, nonce, beat, len(held), *flat)
        signed_on, gate_open, wanted, lease, routes, cancelled, fenced, reasserted, missed, ledgers = answer
        return Renewal(
            cancelled=read_cancelled(cancelled),
            fenced={run: Refusal(why) for run, why in zip(fenced[::2], fenced[1::2], strict=True)},
            reasserted=frozenset(reasserted),
            missed=tuple(
                Missed(run_id=run_id, claim=claim, worker=owner)
                for run_id, claim, owner in zip(missed[::3], missed[1::3], missed[2::3], strict=True)
            ),
            gate_open=bool(gate_open),
            signed_on=bool(signed_on),
            wanted=wanted,
            lease=read_lease(lease),
            routes=tuple(sorted(read_routes(routes))),
            ledgers=tuple(ledgers),
        )

    def linger(self, run_id: str, claim: str, worker: str, state: str) -> Outcome:
        """Note that the API shows this state, an end, though the run's process lives; "" takes the note away.

        The claim's own state stays, and a loss of Redis loses the note. Refused when the claim is not this worker's.
        """
        return self._move("linger", run_id, claim, worker, state[:NAME_LIMIT])

    # open to anybody

    def cancel(
        self,
        run_id: str,
        claim: str | None = None,
        how: CancelHow = CancelHow.ASKED,
        why: str = "",
        *,
        found: bool = False,
    ) -> Outcome:
        """Say on the run's claim, whatever its state, that the run is to be cancelled, and hint its worker.

        `claim` None = whichever claim the run has. `why` says who asked, and why; what was only `found` at the API
        gives way to that. OVER is never lowered to ASKED. A worker that writes its claim again after a loss of Redis
        loses what was said, so it is said again and again.
        """
        words = redact(why)[:WHY_LIMIT]
        return self._move("cancel", run_id, claim or "", how.value, words, "1" if found else "")

    def get(self, run_id: str) -> Claim | None:
        """The live claim of a run; None when there is none, or one of a version that this flowfleet cannot read."""
        found: Any = self._store.ask(lambda client: client.hgetall(self._store.key(f"claim:{run_id}")))
        return read_claim(found)

    def live(self) -> list[Claim]:
        """All live claims (`ended` ones with an undelivered report among them), oldest due first."""
        claims = (read_claim(pairs(flat)) for flat in self._store.script("live"))
        return sorted((claim for claim in claims if claim), key=lambda claim: (claim.due, claim.run_id))

    def tombs(self) -> list[Tomb]:
        """All tombstones, oldest first."""
        return sorted(map(read_tomb, self._store.script("tombs")), key=lambda tomb: (tomb.buried_at, tomb.run_id))

    def tomb(self, run_id: str) -> Tomb | None:
        """The tombstone of a run; None when there is none."""
        found: Any = self._store.ask(lambda client: client.hget(self._store.key("tombs"), run_id))
        return read_tomb(found) if found else None

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
