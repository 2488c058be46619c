"""LedgerFleet: a real ledger, a truthful API, and pollers and workers cut into steps, each of which may be the last.

Every question to the ledger goes through `ask`, which compares its answer with the oracle and keeps a copy of it for
the network to deliver once more, later.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from flowfleet.flow_run import FlowRun, claim_id
from flowfleet.ledger.claims import (
    AGAIN,
    UNKNOWN_WORKER,
    CancelHow,
    Claim,
    Lease,
    Missed,
    Outcome,
    Refusal,
    State,
    Yields,
)
from tests.chaos.ledger_oracle import TABLE, Asked, Facts, Tally, expected, expected_of_yield
from tests.ledger_world import LedgerWorld, flow_run, held, row
from tests.valkey import Valkey

#: fixed ids, so that an example means the same in each session
RUNS = [replace(flow_run(), run_id=str(uuid.UUID(int=number, version=4))) for number in range(1, 5)]
SNAPSHOTS = 25


@dataclass
class ApiRun:
    """A run at the API: Scheduled → Submitted (call) → Launching (claim) → Running → ended."""

    state: str = "scheduled"
    call: str = ""
    claim: str = ""
    #: who has launched it, as far as the API tells
    worker: str = UNKNOWN_WORKER

    def submit(self, call: str) -> bool:
        if self.state == "submitted" and self.call == call:
            return True
        if self.state != "scheduled":
            return False
        self.state, self.call, self.claim = "submitted", call, ""
        return True

    def launch(self, call: str, claim: str, worker: str) -> bool:
        if self.state == "launching" and self.claim == claim:
            return True
        if self.state != "submitted" or self.call != call:
            return False
        self.state, self.claim = "launching", claim
        self.worker = worker if int(claim[-1], 16) % 4 else UNKNOWN_WORKER
        return True

    def lose(self, call: str, claim: str, *, again: bool) -> bool:
        """The leader's word of a lost run, over nothing that is not of this claim; True when it is Scheduled again."""
        ours = (self.state == "submitted" and self.call == call) or self.claim == claim
        if ours and self.state in ("submitted", "launching", "running"):
            self.state, self.call, self.claim = ("scheduled", "", "") if again else ("crashed", self.call, claim)
            return again
        return False

    def restart(self) -> None:
        """Somebody presses Retry in the UI."""
        if self.state in ("crashed", "ended"):
            self.state, self.call, self.claim = "scheduled", "", ""

    def hand_back(self, call: str, *, never_began: str = "") -> bool:
        """From Submitted; from Launching only with the proof of the claim that launched it."""
        proven = self.state == "launching" and never_began != "" and self.claim == never_began
        if self.call != call or not (self.state == "submitted" or proven):
            return False
        self.state, self.call, self.claim = "scheduled", "", ""
        return True


@dataclass
class Folder:
    """A run's folder on a worker's disk: it survives the worker."""

    held: Claim
    phase: str  # taken → starting → launched → forked → exited; or abandoned → given
    fenced: bool = False
    #: it has been another worker's of this host, so a loss of Redis may bring that owner back
    kept: bool = False


@dataclass
class WorkerModel:
    """One identity; its process has a nonce and what it only remembers, its disk has folders."""

    name: str
    nonce: str = ""
    beat: int = 0
    alive: bool = False
    folders: dict[str, Folder] = field(default_factory=dict)
    #: claim → server process of the last proof that it is ours: what the shim's not_after comes from
    permits: dict[str, str] = field(default_factory=dict)
    #: claim → the claim that this process hands back though it never took it, and whether the API has been told
    yielded: dict[str, tuple[Claim, bool]] = field(default_factory=dict)


@dataclass
class PollerModel:
    """One poller: the term that it believes in and the work in its hands."""

    name: str
    term: int = 0
    #: claim → (claim, step, verdict); the step is what comes next
    hands: dict[str, tuple[Claim, str, bool]] = field(default_factory=dict)


def _reads(asked: Asked, key: Callable[[str], str]) -> Iterator[tuple[str, ...]]:
    """The commands whose answers decide this question, in the order of `_facts`."""
    yield "HGETALL", key(f"claim:{asked.run}")
    yield "HGET", key("records"), asked.claim
    yield "HGET", key(f"worker:{asked.worker}"), "nonce"
    yield "HGET", key("tombs"), asked.run
    yield "ZSCORE", key("forgotten"), asked.claim


def _facts(common: Mapping[str, Any], claim: Any, record: Any, nonce: Any, tomb: Any, score: Any) -> Facts:
    return Facts(
        claim=claim,
        record=json.loads(record or "{}"),
        row_nonce=nonce or "",
        tomb=json.loads(tomb or "{}"),
        forgotten=score is not None,
        **common,
    )


class LedgerFleet:
    """Everything together, and what must always hold."""

    def __init__(self, server: Valkey, tally: Tally) -> None:
        self.server, self.tally = server, tally
        self.raw = redis.Redis(unix_socket_path=str(server.socket), socket_timeout=60)
        self.raw.flushall()
        self.world = LedgerWorld(server.socket_url)
        self.claims, self.gate, self.store = self.world.claims, self.world.gate, self.world.ledger.store
        self.api = {run.run_id: ApiRun() for run in RUNS}
        self.workers = [WorkerModel("w0@h0"), WorkerModel("w1@h0")]
        self.pollers = [PollerModel("p0"), PollerModel("p1")]
        self.messages: list[tuple[str, str]] = []
        self.echoes: list[Callable[[], Any]] = []
        self.snapshots: list[list[tuple[bytes, bytes]]] = []
        self.lost = 0
        #: claim → the processes that were told that they may start it
        self.granted: dict[str, set[tuple[str, str]]] = {}
        self.calls = 0
        #: run id → claims whose user code has begun, in order; and those that still run
        self.begun: dict[str, list[str]] = {run.run_id: [] for run in RUNS}
        self.running: dict[str, set[str]] = {run.run_id: set() for run in RUNS}
        #: run id → the lost claim that the API was told to start again
        self.again: dict[str, str] = {}

    # -- the ledger

    def hash(self, key: str) -> dict[str, str]:
        return dict(self.store.client.hgetall(self.store.key(key)))

    def facts(self, *questions: Asked) -> list[Facts]:
        """What Redis holds now, as far as each of these questions is concerned."""
        key, pipe = self.store.key, self.store.client.pipeline()
        reads: dict[tuple[str, ...], int] = {}  # a read → its place in the answer: many questions share theirs
        for asked in questions:
            for read in _reads(asked, key):
                if read not in reads:
                    reads[read] = len(reads)
                    pipe.execute_command(*read)
        pipe.hgetall(key("leader"))
        *found, leader = pipe.execute()
        open_, process, _ = self.store.script("gate")
        term = int(leader["term"]) if leader.get("nonce") else -1
        common = {"gate_open": bool(open_), "process": process, "term": term}
        return [_facts(common, *(found[reads[read]] for read in _reads(asked, key))) for asked in questions]

    def ask(self, asked: Asked, *, echo: bool = True) -> Outcome:
        """One move, compared with the oracle."""
        (facts,) = self.facts(asked)
        outcome = self._send(asked)
        predicted = expected(asked, facts)
        assert outcome.refusal is predicted, (asked, facts, outcome)
        assert outcome.moved == (predicted is None)
        if asked.move == "start" and outcome.moved:
            self.granted.setdefault(asked.claim, set()).add((asked.worker, asked.nonce))
        self.tally.add(asked.move, predicted, facts.claim.get("state", ""))
        if echo:
            self.echo(lambda: self.ask(asked, echo=False))
        return outcome

    def _send(self, a: Asked) -> Outcome:
        if a.move == "adopt":
            return self.claims.adopt(a.run, a.claim, a.worker, a.nonce)
        if a.move == "cancel":
            how = CancelHow.OVER if int(a.claim[-1], 16) % 2 else CancelHow.ASKED
            return self.claims.cancel(a.run, a.claim, how, "why")
        if a.move == "prove":
            return self.claims.prove(a.run, a.claim, a.worker, a.nonce, "no process of it is left")
        if a.move == "restore":
            return self.world.restore(a.run, a.claim, worker=a.worker, term=a.term)
        if a.move == "clear":
            return self.claims.clear(a.term, a.run, a.claim)
        if a.move == "bury" and self.again.get(a.run) == a.claim:
            return self.claims.bury(a.term, a.run, a.claim, AGAIN)
        return self.world.ask(a.move, a.run, a.claim, term=a.term, worker=a.worker, nonce=a.nonce)

    def echo(self, again: Callable[[], Any]) -> None:
        """Keep a question that the network may deliver once more."""
        self.echoes = [*self.echoes[-19:], again]

    @contextmanager
    def newer(self, claim: Claim) -> Iterator[None]:
        """As if a newer flowfleet had written the claim."""
        self.world.set(claim, v="2")
        yield
        self.world.set(claim, v="1")

    def snapshot(self) -> None:
        keys = sorted(self.raw.keys("*"))
        pipe = self.raw.pipeline()
        for key in keys:
            pipe.dump(key)
        self.snapshots = [*self.snapshots[1 - SNAPSHOTS :], list(zip(keys, pipe.execute(), strict=True))]

    def restart_redis(self, lose: int) -> None:
        """Another server process, with the data of `lose` steps ago."""
        data = self.snapshots[max(0, len(self.snapshots) - 1 - lose)]
        self.server.restart(kill=True)
        pipe = self.raw.pipeline()
        for key, value in data:
            pipe.restore(key, 0, value)
        pipe.execute()
        self.snapshots = []
        self.lost += lose

    def lose_claims(self, runs: list[FlowRun]) -> None:
        """Redis has lost the claims of these runs, as far as they are launched at the API, with its process."""
        for run in runs:
            if self.api[run.run_id].state in ("launching", "running"):
                self.store.client.delete(self.store.key(f"claim:{run.run_id}"))
                self.store.client.srem(self.store.key("claims"), run.run_id)
                self.store.client.hdel(self.store.key("lost"), run.run_id)
        self.snapshot()
        self.restart_redis(0)
        self.lost += 1

    # -- the leader's steps

    def elect(self, poller: PollerModel) -> None:
        term = self.gate.elect(poller.name, "h", uuid.uuid4().hex, self.gate.leader(), Lease())
        assert term is not None
        poller.term = term

    def claim(self, poller: PollerModel, runs: list[int], *, answered: bool) -> None:
        self.calls += 1
        call, chosen = str(uuid.UUID(int=self.calls << 16, version=4)), [RUNS[i] for i in runs]
        send = lambda: self.claims.claim(poller.term, chosen, call, policy="report")  # noqa: E731
        leader, open_ = self.gate.leader(), self.gate.is_open()
        known = {run.run_id for run in chosen if self.hash(f"claim:{run.run_id}")}
        buried = {tomb.run_id for tomb in self.claims.tombs()}
        for run, outcome in zip(chosen, send(), strict=True):
            if leader is None or leader.term != poller.term:
                assert outcome.refusal is Refusal.TERM
            elif run.run_id in known:
                assert outcome.refusal is Refusal.KNOWN
            elif run.run_id in buried:
                assert outcome.refusal is Refusal.BURIED
            elif not open_:
                assert outcome.refusal is Refusal.GATE
            else:
                assert outcome.refusal in (None, Refusal.NO_SLOT)
            self.tally.add("claim", outcome.refusal)
            if outcome.moved and answered and outcome.claim:
                assert outcome.claim.claim == claim_id(call, run.run_id)
                poller.hands[outcome.claim.claim] = (outcome.claim, "submit", False)
        self.echo(send)

    def pick_up(self, poller: PollerModel, claim: Claim) -> None:
        """What a claim that stands in the ledger calls for, whoever left it there."""
        if claim.state is State.CLAIMING:
            api = self.api[claim.run_id]
            poller.hands[claim.claim] = (claim, "settled", api.state != "scheduled" and api.call == claim.call)
        elif claim.state in (State.QUEUED, State.TAKEN):
            outcome = self._leader_asks(poller, "give back (leader)", claim)
            if outcome.moved and outcome.claim:
                poller.hands[claim.claim] = (outcome.claim, "hand back", False)
        elif claim.state is State.RETURNING:
            poller.hands[claim.claim] = (claim, "hand back", False)
        elif claim.state is State.MISSING:
            self._leader_asks(poller, "judge", claim)
        elif claim.state is State.JUDGED:
            poller.hands[claim.claim] = (claim, "tell", False)

    def miss(self, poller: PollerModel, claim: Claim) -> None:
        """Nobody was heard of for a TTL: by then nothing that has not begun may begin any more."""
        if self._leader_asks(poller, "miss", claim).moved:
            for worker in self.workers:
                worker.permits.pop(claim.claim, None)

    def inherit(self, poller: PollerModel, claim: Claim) -> None:
        """The leader tells the end of a run whose host is away."""
        api = self.api[claim.run_id]
        if api.claim == claim.claim and api.state in ("launching", "running"):
            api.state = "ended"
        self._leader_asks(poller, "inherit", claim)

    def go_on(self, poller: PollerModel, key: str, *, answered: bool = True) -> None:
        """The next step with a claim in hand."""
        claim, step, verdict = poller.hands[key]
        api = self.api[claim.run_id]
        if step == "submit":
            poller.hands[key] = (claim, "settled", api.submit(claim.call))
        elif step == "settled":
            outcome = self._leader_asks(poller, "accept" if verdict else "refuse", claim)
            if answered:
                del poller.hands[key]
                if verdict and outcome.moved:
                    self.messages.append((claim.run_id, claim.claim))
        elif step == "tell":
            if api.lose(claim.call, claim.claim, again=bool(claim.proof) and claim.moves % 2 == 0):
                self.again[claim.run_id] = claim.claim
            poller.hands[key] = (claim, "bury", False)
        elif step == "bury":
            self._leader_asks(poller, "bury", claim)
            if answered:
                del poller.hands[key]
        elif step == "hand back":
            api.hand_back(claim.call, never_began=claim.claim if claim.never_began else "")
            poller.hands[key] = (claim, "drop", False)
        else:
            self._leader_asks(poller, "drop (leader)", claim)
            if answered:
                del poller.hands[key]

    def _leader_asks(self, poller: PollerModel, move: str, claim: Claim) -> Outcome:
        return self.ask(Asked(move=move, run=claim.run_id, claim=claim.claim, term=poller.term))

    def sweep(self) -> None:
        for run_id, api in self.api.items():
            if api.state == "submitted" and self.claims.get(run_id) is None:
                api.hand_back(api.call)

    def restore(self, poller: PollerModel, *, late: bool = False) -> None:
        """What the API shows as launched and nobody knows; a leader that is `late` may ask when the run has ended."""
        shown = {"launching", "running", *(("ended",) if late else ())}
        for run_id, api in self.api.items():
            if api.state in shown and self.claims.get(run_id) is None:
                self.ask(Asked(move="restore", run=run_id, claim=api.claim, term=poller.term, worker=api.worker))

    def open_gate(self, poller: PollerModel) -> bool:
        """After a TTL: what has no proof under this server process may not begin any more. Then the sweep."""
        if self.gate.is_open():
            return True
        server = self.gate.server()
        for worker in self.workers:
            worker.permits = {claim: proof for claim, proof in worker.permits.items() if proof == server}
        self.sweep()
        return self.gate.open(poller.term, server)

    # -- the worker's steps

    def sign_on(self, worker: WorkerModel) -> None:
        """A new process of the identity, which holds the lock of its state folder: the one before is dead."""
        restarted: list[Folder] = []
        if not worker.alive:
            worker.nonce, worker.beat, worker.alive = uuid.uuid4().hex, 0, True
            worker.permits, worker.yielded = {}, {}
            for folder in worker.folders.values():
                if folder.phase in ("starting", "launched", "forked"):
                    restarted.append(folder)
                if folder.phase in ("taken", "starting", "launched"):
                    folder.phase = "abandoned"
        mine = replace(
            row(worker.name, nonce=worker.nonce, slots=2 if worker is self.workers[0] else 1), beat=worker.beat
        )
        standing = self.world.roster.sign_on(mine)
        if standing is not None:
            assert self.world.roster.sign_on(mine, over=standing) is None
        for folder in restarted:  # a process that asks before it looks at its disk gets no leave either
            self._worker_asks(worker, "start", folder.held.run_id, folder.held.claim)

    def crash(self, worker: WorkerModel) -> None:
        worker.alive, worker.permits, worker.yielded = False, {}, {}

    def reboot(self, poller: PollerModel) -> None:
        """The host restarts, with all that ran on it; the leader sees another boot id."""
        for worker in self.workers:
            self.crash(worker)
            self._all_end(worker)
        for tomb in self.claims.tombs():
            self.ask(Asked(move="clear", run=tomb.run_id, claim=tomb.claim, term=poller.term))

    def _all_end(self, worker: WorkerModel) -> None:
        for folder in worker.folders.values():
            if folder.phase == "forked":
                self.running[folder.held.run_id].discard(folder.held.claim)
                self._set(folder, State.ENDED, "exited")

    def forget(self, worker: WorkerModel, *, dead: bool) -> None:
        """The operator's word that a worker is gone for good, which is true here; refused where nobody watched it."""
        rows = {row.worker: row for row in self.world.roster.rows()}
        if not dead:
            if worker.name in rows and rows[worker.name].live:
                assert self.world.roster.forget(worker.name) is None
            return
        self.crash(worker)
        self._all_end(worker)
        before, tombs = self.claims.live(), self.claims.tombs()
        given_up = self.world.roster.forget(worker.name, rows.get(worker.name))
        silent = {State.MISSING, State.JUDGED}
        known = {tomb.run_id for tomb in tombs if tomb.worker == worker.name}
        known |= {claim.run_id for claim in before if claim.worker == worker.name and claim.state in silent}
        if worker.name not in rows and not known:
            assert given_up is None
            return
        assert given_up is not None
        for claim in before:
            gone = silent if worker.name not in rows else TABLE["forget"].sources
            if claim.worker == worker.name and claim.state in gone:
                assert claim.run_id in given_up
                self.tally.add("forget", None, str(claim.state))

    def take_over(self, worker: WorkerModel, dead: WorkerModel, *, answered: bool) -> None:
        """All folders of a dead worker of this host have a new keeper on disk, then in the ledger."""
        for claim, folder in sorted(dead.folders.items()):
            if folder.phase in ("taken", "starting", "launched"):
                folder.phase = "abandoned"
            folder.kept = True
            worker.folders[claim] = folder
            if answered:
                self._worker_asks(worker, "adopt", folder.held.run_id, claim)
        dead.folders = {}

    def deliver(self, worker: WorkerModel, message: tuple[str, str], *, answered: bool) -> None:
        run_id, claim = message
        if claim in worker.folders:
            return  # the folder is made exclusively: this host has had it
        outcome = self._worker_asks(worker, "take", run_id, claim)
        if answered and outcome.moved and outcome.claim:
            worker.folders[claim] = Folder(held=held(outcome.claim, State.TAKEN), phase="taken")

    def refuse_message(self, worker: WorkerModel, message: tuple[str, str], *, proof: bool) -> None:
        """A message that a worker cannot use goes back without being taken."""
        run_id, claim = message
        found = self.claims.get(run_id)
        if found is None or found.claim != claim or found.state is not State.QUEUED:
            return
        move = "give back (with proof)" if proof else "give back (worker)"
        outcome = self._worker_asks(worker, move, run_id, claim)
        if outcome.moved and outcome.claim:
            self.api[run_id].hand_back(outcome.claim.call, never_began=claim)
            self._worker_asks(worker, "drop (worker)", run_id, claim)

    def yield_waiting(self, worker: WorkerModel, how: Yields, *, answered: bool, nonce: str = "") -> None:
        """What waits for nobody else goes back, and what dead workers were handing back is this one's."""
        nonce = nonce or worker.nonce
        before = {run.run_id: self.hash(f"claim:{run.run_id}") for run in RUNS}
        open_, process, _ = self.store.script("gate")
        rows = self.world.roster.rows()
        facts = {
            "named": any(one.worker == worker.name and one.nonce == nonce for one in rows),
            "gate_open": bool(open_),
            "process": process,
            "served": any(one.takes_runs and one.worker != worker.name for one in rows),
        }
        send = lambda: self.claims.yield_waiting(worker.name, nonce, how, "idle")  # noqa: E731
        yielded = {claim.claim: claim for claim in send()}
        self.echo(send)
        for run_id, claim in before.items():
            if not claim:
                continue
            refusal = expected_of_yield(claim, **facts)
            moves = refusal is None and how != "finishing"
            if moves:
                assert yielded[claim["claim"]].state is State.RETURNING
            elif claim["state"] != "returning":
                assert claim["claim"] not in yielded
                assert self.hash(f"claim:{run_id}")["state"] == claim["state"]
            if refusal is not Refusal.STATE and how != "finishing":
                self.tally.add("yield", refusal, claim["state"])
        if answered:
            worker.yielded |= {claim: (found, False) for claim, found in yielded.items() if claim not in worker.yielded}

    def finish_yielded(self, worker: WorkerModel, key: str, *, answered: bool = True) -> None:
        """The next step with what was yielded: the API, then the ledger."""
        claim, told = worker.yielded[key]
        if not told:
            self.api[claim.run_id].hand_back(claim.call, never_began=claim.claim if claim.never_began else "")
            worker.yielded[key] = (claim, answered)
            return
        self._worker_asks(worker, "drop (worker)", claim.run_id, claim.claim)
        if answered:
            del worker.yielded[key]

    def work(self, worker: WorkerModel, claim: str, *, answered: bool = True) -> None:
        """The next step with a folder."""
        folder = worker.folders[claim]
        if folder.kept:  # before anything else: its question may have got no answer, or Redis may have lost it
            self._worker_asks(worker, "adopt", folder.held.run_id, claim)
        getattr(self, f"_when_{folder.phase}")(worker, folder, answered)

    def _when_taken(self, worker: WorkerModel, folder: Folder, answered: bool) -> None:
        api = self.api[folder.held.run_id]
        if folder.fenced or api.state != "submitted" or api.call != folder.held.call:
            folder.phase = "abandoned"
            return
        outcome = self._worker_asks(worker, "start", folder.held.run_id, folder.held.claim)
        if not answered:
            return
        if outcome.moved:
            self._set(folder, State.STARTING, "starting")
            worker.permits[folder.held.claim] = self.gate.server()
        elif outcome.refusal is not Refusal.GATE:
            folder.phase = "abandoned"

    def _when_starting(self, worker: WorkerModel, folder: Folder, answered: bool) -> None:
        launched = self.api[folder.held.run_id].launch(folder.held.call, folder.held.claim, worker.name)
        if answered:
            folder.phase = "launched" if launched else "abandoned"

    def _when_launched(self, worker: WorkerModel, folder: Folder, answered: bool) -> None:
        run_id, claim = folder.held.run_id, folder.held.claim
        if folder.fenced or claim not in worker.permits:
            folder.phase = "abandoned"  # past its not_after
            return
        self.begun[run_id].append(claim)
        self.running[run_id].add(claim)
        self.api[run_id].state = "running"
        self._set(folder, State.RUNNING, "forked")
        if int(claim[-1], 16) % 3 == 0:  # it ended before the ledger heard that it runs
            self.running[run_id].discard(claim)
            self._set(folder, State.ENDED, "exited")

    def _when_forked(self, worker: WorkerModel, folder: Folder, answered: bool) -> None:
        self._worker_asks(worker, "run", folder.held.run_id, folder.held.claim)
        if not answered:
            return
        self.running[folder.held.run_id].discard(folder.held.claim)
        self._set(folder, State.ENDED, "exited")

    def _when_exited(self, worker: WorkerModel, folder: Folder, answered: bool) -> None:
        api, run_id, claim = self.api[folder.held.run_id], folder.held.run_id, folder.held.claim
        ended = self._worker_asks(worker, "end", run_id, claim)
        if api.claim == claim and api.state in ("launching", "running"):
            api.state = "ended"
        if answered and (ended.moved or folder.fenced):
            self._worker_asks(worker, "release", run_id, claim)
            folder.phase = "done"

    def _when_done(self, worker: WorkerModel, folder: Folder, answered: bool) -> None:
        del worker.folders[folder.held.claim]

    def _when_abandoned(self, worker: WorkerModel, folder: Folder, answered: bool) -> None:
        """User code never began and never will: give it back in the ledger, then at the API, then drop it."""
        run_id, claim = folder.held.run_id, folder.held.claim
        plain = folder.held.state is State.TAKEN and int(claim[-1], 16) % 2 == 0
        proof = "give back (worker)" if plain else "give back (with proof)"
        found = self.claims.get(run_id)
        if found and found.state is State.STARTING:
            proof = "give back (with proof)"
        outcome = self._worker_asks(worker, proof, run_id, claim)
        if outcome.refusal is Refusal.GATE:
            return
        if outcome.refusal is Refusal.FORGOTTEN:
            folder.phase = "done"
            return
        self.api[run_id].hand_back(folder.held.call, never_began=claim)
        folder.phase = "given" if outcome.moved else "done"

    def _when_given(self, worker: WorkerModel, folder: Folder, answered: bool) -> None:
        self._worker_asks(worker, "drop (worker)", folder.held.run_id, folder.held.claim)
        if answered:
            folder.phase = "done"

    def _set(self, folder: Folder, state: State, phase: str) -> None:
        folder.held, folder.phase = replace(folder.held, state=state), phase

    def _worker_asks(self, worker: WorkerModel, move: str, run_id: str, claim: str) -> Outcome:
        return self.ask(Asked(move=move, run=run_id, claim=claim, worker=worker.name, nonce=worker.nonce))

    def renew(self, worker: WorkerModel, *, answered: bool = True) -> None:
        worker.beat += 1
        # "given" is still held: its drop may not have been carried out
        mine = [f.held for f in worker.folders.values() if not f.fenced and f.phase != "done"]
        name, nonce, beat = worker.name, worker.nonce, worker.beat
        before = {h.run_id: self.hash(f"claim:{h.run_id}").get("state", "") for h in mine}
        renewal = self.claims.renew(name, nonce, beat, mine)
        self.echo(lambda: self.claims.renew(name, nonce, beat, mine))
        for one in mine:
            self.tally.add("assert", renewal.fenced.get(one.run_id), before[one.run_id])
        if not answered:
            return
        server = self.gate.server()
        for one in mine:
            why = renewal.fenced.get(one.run_id)
            kept = worker.folders[one.claim].kept and why is Refusal.OWNER
            if kept and self._worker_asks(worker, "adopt", one.run_id, one.claim).moved:
                continue
            if one.run_id in renewal.fenced:
                worker.folders[one.claim].fenced = True
                worker.permits.pop(one.claim, None)
            elif one.claim in worker.permits:
                worker.permits[one.claim] = server
        for one in renewal.missed:
            self._answer(worker, one)
        if not renewal.signed_on:
            self.sign_on(worker)

    def _answer(self, worker: WorkerModel, missed: Missed) -> None:
        """The host is asked for a claim: no folder of it means that no process of it is left."""
        mine = all(one is worker or not one.alive for one in self.workers if one.name == missed.worker)
        if mine and not any(missed.claim in one.folders for one in self.workers):
            self._worker_asks(worker, "prove", missed.run_id, missed.claim)

    # -- what must always hold

    def check(self) -> None:
        for claim, processes in self.granted.items():
            assert self.lost or len(processes) == 1, f"two processes were told to start {claim}: {processes}"
        for run_id, begun in self.begun.items():
            assert len(begun) == len(set(begun)), f"user code of one claim began twice: {run_id} {begun}"
            assert len(self.running[run_id]) <= 1, f"two claims of a run began, and neither has ended: {run_id} {begun}"

    def settle(self) -> None:
        """Everything is well again for as long as it takes: nothing is lost."""
        poller = self.pollers[0]
        for other in self.pollers:
            other.hands = {}
        self.elect(poller)
        for _ in range(12):
            for worker in self.workers:
                self.sign_on(worker)
                self.renew(worker)
                for claim in list(worker.folders):
                    self.work(worker, claim)
                for claim in list(worker.yielded):
                    self.finish_yielded(worker, claim)
            assert self.open_gate(poller)
            for claim in self.claims.live():
                self.pick_up(poller, claim)
                self._end_what_nobody_holds(poller, claim)
            for key in list(poller.hands):
                for _ in range(3):
                    if key in poller.hands:
                        self.go_on(poller, key)
            self.sweep()
            self.restore(poller)
            self.check()
        assert not any(worker.folders for worker in self.workers), self.workers
        assert not self.claims.live()
        assert not self.claims.tombs()
        assert not self.hash("lost")
        states = {api.state for api in self.api.values()}
        assert states <= {"scheduled", "ended", "crashed"}, self.api

    def _end_what_nobody_holds(self, poller: PollerModel, claim: Claim) -> None:
        """A loss has brought it back under an owner that holds it no more: it is missed, or inherited."""
        if any(claim.claim in worker.folders for worker in self.workers):
            return
        if claim.state in (State.STARTING, State.RUNNING):
            self.miss(poller, claim)
        elif claim.state is State.ENDED:
            self.inherit(poller, claim)
