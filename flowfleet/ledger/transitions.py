"""Transitions: the table that says how claims may move, who moves them, and what a crash leaves.

The Lua scripts get sources and targets from `TRANSITIONS`, docs/protocol.md is printed from it, and the model test
counts that each row and each of its refusals is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial


class State(StrEnum):
    """The state of a claim."""

    CLAIMING = "claiming"
    QUEUED = "queued"
    TAKEN = "taken"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    RETURNING = "returning"
    MISSING = "missing"
    JUDGED = "judged"


class Refusal(StrEnum):
    """The reason why a transition was refused; nothing was changed."""

    KNOWN = "known"  # claim: the run has a claim already, or this claim id has been used up
    NO_SLOT = "no-slot"  # claim: no free slot for the route, or none in all
    GATE = "gate"  # the gate is shut, or the claim was queued before it shut
    TERM = "term"  # another leader has been elected since
    UNKNOWN = "unknown"  # no claim for this run
    OTHER_CLAIM = "other-claim"  # the run has another claim id now
    OWNER = "owner"  # the claim belongs to another worker, or another process has this worker's name now
    STATE = "state"  # the claim is not in a state from which this goes
    CANCELLED = "cancelled"  # start: a cancel came first
    SERVED = "served"  # yield: another worker takes what waits on this route
    VERSION = "version"  # written by a newer flowfleet
    BURIED = "buried"  # the run was told as lost; a tombstone keeps its claims out while its process may live
    FORGOTTEN = "forgotten"  # `worker forget` has given the claim up


#: each refusal in words, for docs/protocol.md
REFUSALS: Mapping[Refusal, str] = {
    Refusal.TERM: "another leader has been elected since",
    Refusal.GATE: "the gate is shut, or the claim was queued before it shut",
    Refusal.KNOWN: "the run has a claim already, or this claim id has been used up",
    Refusal.NO_SLOT: "no slot is free for the route, or none in all",
    Refusal.UNKNOWN: "the run has no claim",
    Refusal.OTHER_CLAIM: "the run has another claim id now",
    Refusal.VERSION: "the claim was written by a newer flowfleet",
    Refusal.OWNER: "the claim is another worker's, or another process has this worker's name now",
    Refusal.STATE: "the claim is not in a state from which this goes",
    Refusal.CANCELLED: "somebody wants the run cancelled",
    Refusal.SERVED: "another live, active worker takes what waits on this route",
    Refusal.BURIED: "a claim of the run was told as lost, and its process may live",
    Refusal.FORGOTTEN: "`worker forget` has given the claim up",
}


class Mover(StrEnum):
    """The part that may ask for a move."""

    LEADER = "the leader"
    WORKER = "any worker"
    OPERATOR = "a person"
    OWNER = "its worker"
    ANYBODY = "anybody"


#: the refusals that every move of a named claim can meet
_FOUND = (Refusal.UNKNOWN, Refusal.OTHER_CLAIM, Refusal.VERSION)
_OF_OWNER = (*_FOUND, Refusal.OWNER, Refusal.FORGOTTEN, Refusal.STATE)
_OF_LEADER = (Refusal.TERM, *_FOUND, Refusal.STATE)
_OF_JUDGE = (Refusal.TERM, *_FOUND, Refusal.STATE, Refusal.GATE)


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One row of the table: empty `sources`: there was no claim before; `target` None: there is none after."""

    name: str
    script: str
    mover: Mover
    sources: tuple[State, ...] = ()
    target: State | None = None
    refusals: tuple[Refusal, ...]
    sentence: str
    #: what a crash right after the move leaves, and who heals that
    crash: str
    #: False: the place is kept for a later version, no script moves it yet
    built: bool = True
    #: True: the state stays as it was (whatever `target` says), and something else of the claim changes
    stays: bool = False


_by_leader = partial(Transition, mover=Mover.LEADER, refusals=_OF_LEADER)
_by_owner = partial(Transition, mover=Mover.OWNER, refusals=_OF_OWNER)

TRANSITIONS: tuple[Transition, ...] = (
    _by_leader(
        name="claim",
        script="claim",
        target=State.CLAIMING,
        refusals=(Refusal.TERM, Refusal.GATE, Refusal.KNOWN, Refusal.BURIED, Refusal.NO_SLOT),
        sentence="We want this run: it has no claim and no tombstone, the gate is open and a slot is free for it.",
        crash="The API may or may not have been asked. The leader, or the next one, reads the run: "
        "claimed by this very call → accept, else refuse.",
    ),
    _by_leader(
        name="accept",
        script="accept",
        sources=(State.CLAIMING,),
        target=State.QUEUED,
        sentence="The API has said yes; the message may be published now.",
        crash="The message may never have been published. Nobody takes it, so the leader hands it back after 60 s.",
    ),
    _by_leader(
        name="refuse",
        script="refuse",
        sources=(State.CLAIMING,),
        sentence="The API has said no.",
        crash="Nothing is left to heal.",
    ),
    Transition(
        name="take",
        script="take",
        mover=Mover.WORKER,
        sources=(State.QUEUED,),
        target=State.TAKEN,
        refusals=(Refusal.GATE, *_OF_OWNER),
        sentence="A worker has the message and a free slot.",
        crash="The message is gone and nobody renews. The worker's next process hands it back, or the leader after "
        "60 s without renewal.",
    ),
    _by_owner(
        name="start",
        script="start",
        sources=(State.TAKEN,),
        target=State.STARTING,
        refusals=(Refusal.GATE, *_OF_OWNER, Refusal.CANCELLED),
        sentence="User code may begin from now on, by this process of this worker and by no other.",
        crash="User code may or may not run. Only the host knows: its next worker process looks at the run's folder "
        "and goes on (run, end) or proves that it never began (give back with proof).",
    ),
    _by_owner(
        name="run",
        script="run",
        sources=(State.STARTING,),
        target=State.RUNNING,
        sentence="The started run exists and has a handle.",
        crash="The run goes on. The next worker process on the host adopts it by the handle on disk.",
    ),
    _by_owner(
        name="end",
        script="end",
        sources=(State.STARTING, State.RUNNING),
        target=State.ENDED,
        sentence="The started run has ended, or could not be started, and its exit is on the worker's disk.",
        crash="The report is undelivered. It lies in the outbox of the host, whose next worker process sends it.",
    ),
    _by_owner(
        name="release",
        script="release",
        sources=(State.ENDED,),
        sentence="The API has the report, or needed none.",
        crash="Nothing is left to heal; the record stays a day.",
    ),
    _by_leader(
        name="give back (leader)",
        script="give_back",
        sources=(State.QUEUED, State.TAKEN),
        target=State.RETURNING,
        refusals=(Refusal.TERM, Refusal.GATE, *_FOUND, Refusal.STATE),
        sentence="Nobody took it, or its worker fell silent before user code could begin: back to the API.",
        crash="The API may still show Submitted. The leader repeats the hand-back, then drops.",
    ),
    _by_owner(
        name="give back (worker)",
        script="give_back",
        sources=(State.QUEUED, State.TAKEN),
        target=State.RETURNING,
        refusals=(Refusal.GATE, *_OF_OWNER),
        sentence="The worker cannot or must not run it, and user code has not begun.",
        crash="As above: the leader finishes it when its owner has fallen silent.",
    ),
    _by_owner(
        name="give back (with proof)",
        script="give_back",
        sources=(State.QUEUED, State.TAKEN, State.STARTING),
        target=State.RETURNING,
        refusals=(Refusal.GATE, *_OF_OWNER),
        sentence="The owner proves that user code never began and never will (its start file says abandoned).",
        crash="As above: the leader finishes it when its owner has fallen silent.",
    ),
    Transition(
        name="yield",
        script="yield",
        mover=Mover.WORKER,
        sources=(State.QUEUED,),
        target=State.RETURNING,
        refusals=(Refusal.GATE, Refusal.SERVED, Refusal.OWNER, Refusal.VERSION),
        sentence="A worker stops, or takes no new runs: what waits on routes that no other live, active worker serves "
        "is the worker's to hand back from now on, and its message leaves the queue. A stopping worker is marked in "
        "the same step, so that nothing is claimed for it any more.",
        crash="As above: the leader finishes it when the worker has fallen silent, and so does any worker that looks "
        "for what dead ones were handing back.",
    ),
    _by_leader(
        name="drop (leader)",
        script="drop",
        sources=(State.RETURNING,),
        sentence="The API has the run as Scheduled again, or it is no longer ours.",
        crash="Nothing is left to heal; the run is due again at the API.",
    ),
    _by_owner(
        name="drop (worker)",
        script="drop",
        sources=(State.RETURNING,),
        sentence="The same, by the worker that gave it back.",
        crash="Nothing is left to heal; the run is due again at the API.",
    ),
    _by_owner(
        name="assert",
        script="renew",
        refusals=(
            *(Refusal.UNKNOWN, Refusal.OTHER_CLAIM, Refusal.OWNER, Refusal.STATE, Refusal.VERSION),
            *(Refusal.BURIED, Refusal.FORGOTTEN),
        ),
        sentence="Each renewal keeps the claims that a worker holds, and writes again (taken, starting, running, "
        "ended) what Redis has lost of them. What was handed back, released, buried or forgotten stays gone.",
        crash="Nothing is left to heal; the next renewal says the same.",
    ),
    Transition(
        name="adopt",
        script="adopt",
        mover=Mover.WORKER,
        sources=(State.TAKEN, State.STARTING, State.RUNNING, State.ENDED),
        stays=True,
        refusals=(*_FOUND, Refusal.OWNER, Refusal.FORGOTTEN, Refusal.STATE),
        sentence="Another worker of the same host looks after the run from now on: its owner is dead, since the new "
        "one has held the lock of that one's state folder. A host whose name has changed is the same one by its "
        "machine and boot. Claim id and state stay.",
        crash="The run's folder names its new keeper before the ledger does. That one asks again when it starts, or, "
        "if it does not come back, the next worker of the host that starts. Where the ledger has it as another host's, "
        "the folder names its first keeper again.",
    ),
    Transition(
        name="cancel",
        script="cancel",
        mover=Mover.ANYBODY,
        stays=True,
        refusals=_FOUND,
        sentence="Somebody wants the run cancelled: the claim says how (1 in order, 2 at once), and who asked and why. "
        "2 is never lowered to 1. What the leader has found at the API gives way to the word of who asks. No start is "
        "allowed any more, and each renewal tells its worker.",
        crash="Nothing is left to heal. A worker that writes its claim again after a loss of Redis loses what was "
        "said; the leader finds the run at the API and says it again.",
    ),
    _by_leader(
        name="miss",
        script="miss",
        sources=(State.STARTING, State.RUNNING),
        target=State.MISSING,
        refusals=_OF_JUDGE,
        sentence="No renewal for a TTL of the leader's clock. A renewal of its worker moves it back to where it was.",
        crash="The leader, or the next one, goes on watching it, from the beginning of the grace.",
    ),
    Transition(
        name="restore",
        script="restore",
        mover=Mover.LEADER,
        target=State.MISSING,
        refusals=(Refusal.TERM, Refusal.KNOWN, Refusal.BURIED, Refusal.GATE),
        sentence="The API shows a run as launched under this claim, of which no worker has told the ledger in the time "
        "that the gate gave: Redis has lost it, and its host is away. From here on it is like one that was missed. The "
        "leader asks so only of what was claimed through this ledger.",
        crash="As after miss.",
    ),
    Transition(
        name="prove",
        script="prove",
        mover=Mover.WORKER,
        sources=(State.MISSING, State.JUDGED),
        stays=True,
        refusals=(*_FOUND, Refusal.OWNER, Refusal.STATE),
        sentence="The run's host says that no process of the claim is left: its proof is noted, for the leader judges "
        "and buries it without waiting. Of a claim that is buried it takes the tombstone away.",
        crash="The worker says so again with its next renewal, as long as it is asked.",
    ),
    Transition(
        name="forget",
        script="forget",
        mover=Mover.OPERATOR,
        sources=(State.STARTING, State.RUNNING, State.MISSING, State.JUDGED),
        stays=True,
        refusals=(),
        sentence="`worker forget`: a person says that the worker is gone for good. Everything that it has started is "
        "proved dead by that, its tombstones go, and whatever it says of these claims later is refused.",
        crash="The leader judges, tells and buries what was given up.",
    ),
    _by_leader(
        name="judge",
        script="judge",
        sources=(State.MISSING,),
        target=State.JUDGED,
        refusals=_OF_JUDGE,
        sentence="No sign of life in the grace either, or a proof that its process has ended: the run is held for "
        "lost. The claim keeps the words that the API is told, so that a repeat is the same write.",
        crash="The report to the API may be missing. The leader, or the next one, repeats it.",
    ),
    _by_leader(
        name="bury",
        script="bury",
        sources=(State.JUDGED,),
        sentence="The API has been told that the run is lost, or has it as Scheduled again. Without proof that its "
        "process has ended a tombstone is left.",
        crash="Nothing is left to heal. The tombstone stands until its host has answered, has another boot id, or was "
        "forgotten.",
    ),
    Transition(
        name="clear",
        script="clear",
        mover=Mover.LEADER,
        refusals=(Refusal.TERM, Refusal.UNKNOWN, Refusal.OTHER_CLAIM),
        sentence="The host of a tombstone has another boot id: what ran there has ended, and the tombstone goes.",
        crash="Nothing is left to heal.",
    ),
    _by_leader(
        name="inherit",
        script="inherit",
        sources=(State.ENDED,),
        sentence="The run has ended, and nobody has renewed its claim since, before the API had its end: its host is "
        "away, or has lost its disk. The leader has told it, by the short exit in the ledger and under the transition "
        "id that the worker would use.",
        crash="Nothing is left to heal. Its owner, back, finds it told.",
    ),
)


def lua_table(transitions: Sequence[Transition] = TRANSITIONS) -> str:
    """The table as Lua, for the head of each script: `MOVES[name].sources[state]`, `MOVES[name].target`."""
    rows = []
    for row in transitions:
        sources = ", ".join(f"['{state}'] = true" for state in row.sources)
        rows.append(f"['{row.name}'] = {{sources = {{{sources}}}, target = '{row.target or ''}'}}")
    return "local MOVES = {\n  " + ",\n  ".join(rows) + "\n}\n"
