"""Oracle: what must be true of a fleet whose parts were killed, frozen and failed, once it has come to rest.

One true end for each run; at most one start for each claim, and of its hooks; no two processes of a run at once, by
their own marks; nobody is told of an end that the run's own contradicts; and nothing is left.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from flowfleet.ledger import connect
from tests import folders
from tests.chaos.arena import ENDS, Arena

#: what a run is expected to come to → the states that say so
TRUE_ENDS = {
    "ok": {"COMPLETED", "Success"},
    "code 3": {"CRASHED", "Failed"},
    "cancelled": {"CANCELLED", "Cancelled"},
    "lost": {"CRASHED", "Failed"},
}
CRASHES = TRUE_ENDS["code 3"]


@dataclass
class Verdicts:
    """What was found, by kind; empty = all is well."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        for kind in ("lost", "doubled", "false", "left"):
            yield from (f"{kind}: {line}" for line in getattr(self, kind))

    def add(self, other: "Verdicts") -> None:
        for kind in ("lost", "doubled", "false", "left"):
            getattr(self, kind).extend(getattr(other, kind))


def judge(arena: Arena, run_id: str, expected: str, *, unsure: bool = False) -> Verdicts:
    """One run that has come to rest; `unsure`: its shim was met by a fault, so its exit may be unknown."""
    found = Verdicts()
    states, marks = arena.states(run_id), arena.marks(run_id)
    ends = [state for state in states if state["type"] in ENDS]
    kinds = [state["type"] for state in ends]
    words = Counter(mark[0] for mark in marks)
    what = f"run {run_id} ({expected}): {[state['name'] for state in states]}, marks {marks}"
    if not ends or states[-1]["type"] not in ENDS:
        found.lost.append(what)
        return found
    if len(set(kinds)) > 1:
        found.false.append(f"several ends: {what}")
    starts = Counter(mark[1] for mark in marks if mark[0] == "start")
    if any(number > 1 for number in starts.values()) or words["overlap"] or words["hooks"] > 1:
        found.doubled.append(what)
    end, message = states[-1]["type"], str(states[-1].get("message"))
    if words["told"] and end in CRASHES:
        found.false.append(f"told as {end} though it completed: {what}")
    good = end in TRUE_ENDS[expected]
    if unsure and not words["told"] and expected != "cancelled":
        good = good or end in CRASHES
    if not good:
        found.false.append(f"told as {end} ({message}): {what}")
    if expected == "ok" and end in TRUE_ENDS["ok"] and not words["told"]:
        found.false.append(f"{end}, and it never told so: {what}")
    if expected == "code 3" and not unsure and "code 3" not in message:
        found.false.append(f"the message is {message!r}: {what}")
    if expected == "code 3" and not unsure and words["end"] != 1:
        found.doubled.append(f"it did not end once: {what}")
    return found


def claims_of_starts(arena: Arena) -> Verdicts:
    """Starts by claims that the ledger has never had."""
    known = {str(record["claim"]) for record in arena.records()}
    found = Verdicts()
    for run_id in arena.runs:
        strange = {mark[1] for mark in arena.marks(run_id) if mark[0] == "start"} - known
        if strange:
            found.doubled.append(f"run {run_id} was started by claims {strange} that have no record")
    return found


def leftovers(arena: Arena) -> list[str]:
    """What is left of the fleet's runs: claims, messages, unacked entries, reports, processes, folders."""
    left = []
    ledger = connect(arena.redis_url, arena.fleet, socket_timeout=60)
    try:
        client, prefix = ledger.store.client, ledger.store.key("")
        claims = [f"{claim.run_id} is {claim.state}" for claim in ledger.claims.live()]
        left += [f"claim {claim}" for claim in claims]
        tombs = client.hlen(ledger.store.key("tombs"))
        left += [f"{tombs} tombstones"] if tombs else []
        for key in client.scan_iter(f"*{arena.fleet}*", count=1000):
            name = key if isinstance(key, str) else key.decode()
            kind = client.type(key)
            kind = kind if isinstance(kind, str) else kind.decode()
            if kind == "list" and client.llen(key) and "hints" not in name:
                left.append(f"{client.llen(key)} messages in {name.removeprefix(prefix)}")
            if "unacked" in name and kind in ("hash", "zset"):
                left.append(f"unacked entries in {name}")
    finally:
        ledger.close()
    left += [f"report {path.name}" for path in folders.found(arena.folder, "state/**/outbox/*.json")]
    left += [f"process {pid}: {what}" for pid, what in arena.members().items() if "stub_engine" in what]
    left += [f"shim {pid}" for pid in arena.shims()]
    for folder in folders.found(arena.folder, "state/**/runs/*.*"):
        if folder.is_dir() and not (folder / "settled").exists():
            left.append(f"folder {folder.name} is not settled: {folders.names(folder)}")
        if (folder / "work").exists():
            left.append(f"working folder of {folder.name}")
    return left


def describe(arena: Arena) -> str:
    """For a failed cell: each run, the ledger, the last lines of each part."""
    said = []
    for run_id in arena.runs:
        said.append(f"run {run_id}: {[(one['name'], one.get('message')) for one in arena.states(run_id)]}")
        said.append(f"  marks: {arena.marks(run_id)}")
    for folder in folders.found(arena.folder, "state/**/runs/*.*"):
        record = folder / "exit.json"
        said.append(f"folder {folder.name}: {folders.names(folder)}")
        said += [f"  exit {json.loads(record.read_text() or '{}')}"] if record.exists() else []
    for part in arena.parts:
        said += [f"-- {part.name} (exit {part.process.poll()}) --", part.tail(40)]
    return "\n".join(said)
