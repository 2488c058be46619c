"""Protocol: the text of docs/protocol.md, printed from the transition table so that page and code cannot differ."""

from collections.abc import Sequence

from flowfleet.ledger.transitions import REFUSALS, TRANSITIONS, State, Transition

_HEAD = """\
# The ledger's protocol

This page is printed from the transition table (`flowfleet/ledger/transitions.py`), which also drives the Lua scripts
and the model test. Do not edit it: change the table or `flowfleet/ledger/protocol.py`, then run `python -c "from
flowfleet.ledger.protocol import render; print(render(), end='')" > docs/protocol.md`.

A **claim** is our right to one attempt at a run. It lives in Redis under the run's id, one claim per run, and carries
a **claim id** that is never used twice. Each move below is one Lua script: it happens whole or not at all, and it
says why not. A move that got no answer may be repeated with the same ids: one that was carried out is answered as
moved again.

    claiming → queued → taken → starting → running → ended → gone
                  └───────┴─────────┴→ returning → gone
                                    starting, running → missing → judged → gone
                       lost with Redis, and its host away ──┘
"""

_TAIL = """\
## What renewals repair

A worker renews everything that it holds in one script. For each held claim the worker's disk is believed:

- The ledger has the claim, less far than the worker: it is moved on to where the worker has it.
- The ledger has lost the claim: it is written again, if user code may have begun; one that was only taken is written
  again while the gate is shut, and later no more, since the sweep that opened the gate has handed it back.
- The claim is gone in order (there is a record of it): it stays gone, and the worker is told so. The one exception is
  a claim whose user code has begun and which a leader has dropped: only a loss of Redis can have led to that.
- The run has another claim: the worker is told so, unless that other one is a leftover from before the loss and user
  code of this one has begun, which could only be after the other one was gone.
- The claim is buried, or was forgotten: it stays gone, see below. One that the leader has inherited is left alone: its
  owner looks at the API, and finds its end there.
- Another process has the worker's name: nothing is kept; that process speaks for the worker now.

A renewal that a later one has overtaken on its way changes nothing (its beat is lower).

The answer also names what this host has not answered for: claims of its workers that are missing, judged or buried,
and that the renewal does not hold. The worker looks at its disk, and says so (prove) where no process of theirs is
left.

## What is lost

A claim that nobody renews for a TTL is missing, and judged after the grace, or at once with a proof: its host says so
(prove), the roster's row of its worker has another boot id on the same machine (a container names none), a person
says so (forget), or the policy is `requeue`, the worker has said that the run ends by itself without a lease
(`switch`), and that time is over: by the longest lease that its host may have heard (`ttl`), since a leader before may
have had another one.

A buried claim without proof leaves a **tombstone** under the run's id: a process of it may live, on a host that nobody
hears of. The tombstone keeps its claim from being written again, refuses every new claim of the run, and takes a slot
of its worker while that one lives. It goes by the host's word, by another boot id (clear), or by forget, and by nothing
else: no time takes it away. What was forgotten is kept by claim id (the last 10,000), and is refused whatever its host
says when it is back.

A run that we start again ourselves (after proof, or because its worker's stop has ended it) counts its attempts:
`claim` gives the policy `requeue` only as often as the leader allows. Any other end begins the count anew.

**A loss of Redis loses tombstones too.** What then keeps a run from being started beside its old process:

- The gate is shut until each host had a TTL to renew. A host that comes back in that time writes its claim again, and
  that refuses a second one as before. `miss`, `judge` and the rest wait for the gate, and the leader's watch begins
  anew, so that nothing is held for lost because Redis was away.
- What is launched at the API by then, and known to nobody, has lost both its host and Redis: the leader restores its
  claim as missing, with what the API tells of it, if it was claimed through this ledger (see its id below). Anything
  else may be another fleet's of the same name, and is left alone.
  The grace begins then, so a host that is only late is still heard of: its renewal brings the claim back as it has it.
  If it stays away the run is told as lost, and has a tombstone again.
- A host that is still away after that has been cut off from Redis for longer than a lease. Runs with a switch have
  ended. Its worker, if it lives, asks the API about each of its runs at every renewal interval, and stops what is
  handed out anew: the new attempt's Submitted comes before its start. If it cannot reach the API either, its run can
  run beside a new attempt, and that only after somebody has restarted by hand, while Redis lost its data and the host
  was away, a run that was told as lost. That is what the docs name.
- A tombstone that an older copy of Redis brings back is asked of its host with the next renewal, and goes. If the run
  has a newer claim whose code has begun, that one replaces it: it could only begin after the tombstone had gone.

## The gate

Each script that lets something begin compares the server's own run id (`INFO server`) with the one that the leader
has accepted. A restart, an empty server and a promoted replica have another, and so has a primary that was a replica
for a while, since it may have lost its last writes (`master_replid2` of `INFO replication` is added to the id). Then
the gate is shut until the leader has given workers a TTL to renew and has compared the API with the ledger once.
`claim`, `take`, `start`, `miss`, `judge` and the leader's hand-back wait for that. A claim that was
queued under an earlier server process is not taken any more, since its message may have been acted on without Redis
knowing: the leader hands it back, and does so at the API only from Submitted, never from Launching or Running.

## The id of a ledger

Fleets of one name may share an API, each with a Redis of its own. So a ledger has an id, eight hex digits of chance,
made at the first election where nobody remembers one. The id of each call that claims, a version-4 uuid, begins with
it, and stands in the history of the run (Prefect 3: transition id of Submitted; Prefect 1: the stamp's call).

Pollers and workers remember, in memory, the ids that they have heard: the leader and those that stand by with each
beat, workers with each renewal. They offer them in turn: a poller with its election and while it stands by, a worker
when it signs on. So an emptied Redis gets its id back from the first of its pollers that is elected. What others
remember is added behind it (`ledgers`, at most 16), and what was claimed under any of these ids is the ledger's own.
Where pollers and workers were all started anew, an emptied Redis is another ledger than before.

## The leader

The leader's record holds a nonce, a term and a beat. A standby watches the beat by its own clock and takes over, with
a higher term, only if term and beat are still the ones that it saw. Terms have gaps of chance, so that two leaders
elected around a loss of the last writes never share one. No key of the ledger expires, and no script decides by a
clock: the clock of the Redis host is written down for display and for clearing away old records.

A poller that stands by moves a counter of its own. A leader that stops gives the lead up to a poller whose counter it
has seen move; where there is none it first gives back everything that has not begun. Of two pollers that stop at once,
one finds the other gone, and gives back.

## Slots

A claim needs a free slot in all, and on its route. Free in all: the slots of live, active workers that do not stop,
less the claims that they own (`ended` ones have given their slot back), less their tombstones, less everything
claiming or queued. Free on a route: the same over the workers that consume this route, less what is claiming or queued
on any route that one of these workers consumes.

## Keys

All under `flowfleet:FLEET:`

| key | holds |
|---|---|
| `claims`, `claim:RUN` | the run ids with a claim; one hash each |
| `gone`, `records` | claims that are gone, by claim id: a day, at most 10,000; they keep a claim from coming back |
| `workers`, `worker:NAME@HOST` | the roster; one hash each |
| `tombs` | the tombstones: run id → JSON (claim, worker, boot id, since when, policy) |
| `lost` | which claims are missing or judged, and whose |
| `forgotten` | claim ids that `worker forget` has given up: the last 10,000 |
| `attempts`, `attempted` | how often runs were started again by us: the last 10,000, of a week |
| `routes`, `due` | known routes; what waits at the API on each |
| `leader`, `lease`, `gate` | who leads; the leader's numbers; the accepted server process |
| `standbys` | the counters of the pollers that stand by |
| `ledger`, `ledgers` | the id of this ledger; it and the earlier ones that its parts remember, in order, at most 16 |
| `leave` | there: all pollers claim nothing, give back and end (`flowfleet leave`); gone with the next `poller start` |
| `counters` | what must be counted beyond one process |
| `hints` | a channel, not a key: "look now"; nothing depends on it |
"""


def render(transitions: Sequence[Transition] = TRANSITIONS) -> str:
    """The whole text of docs/protocol.md."""
    built = [row for row in transitions if row.built]
    later = [row for row in transitions if not row.built]
    parts = [_HEAD, "## The moves\n", _table(built), "## Crashes\n", _crashes(built)]
    if later:
        parts += ["## Places kept for later\n", _table(later)]
    parts += ["## Refusals\n", _refusals(), _TAIL]
    return "\n".join(parts)


def _table(rows: Sequence[Transition]) -> str:
    lines = ["| move | by | from | to | what it says | refused |", "|---|---|---|---|---|---|"]
    for row in rows:
        why = ", ".join(row.refusals)
        lines.append(f"| {row.name} | {row.mover} | {_sources(row)} | {_target(row)} | {row.sentence} | {why} |")
    return "\n".join(lines) + "\n"


def _sources(row: Transition) -> str:
    if row.script == "renew":
        return "held by it"
    return ", ".join(row.sources) or ("any" if row.stays else "no claim")


def _target(row: Transition) -> str:
    if row.script == "renew":
        return "as held"
    if row.stays:
        return "as it was"
    return row.target or "gone"


def _crashes(rows: Sequence[Transition]) -> str:
    lines = ["| right after | what is left, and who heals it |", "|---|---|"]
    lines += [f"| {row.name} | {row.crash} |" for row in rows]
    return "\n".join(lines) + "\n"


def _refusals() -> str:
    lines = ["| refusal | because |", "|---|---|"]
    lines += [f"| {refusal} | {text} |" for refusal, text in REFUSALS.items()]
    states = ", ".join(State)
    return "\n".join(lines) + f"\n\nStates: {states}.\n"
