"""Oracle: what must be true of a fleet whose parts were killed, frozen and failed, once it has come to rest.

One true end for each run; at most one start for each claim, and of its hooks; no two processes of a run at once, by
their own marks; nobody is told of an end that the run's own contradicts; and nothing is left.

One overlap is no fault: a host that was frozen for longer than its lease still has the process, while the run is
started again elsewhere. It is counted apart, for claims that a story has declared frozen, and only if no mark of the
process is later than a moment after the thaw.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flowfleet.ledger import connect
from tests import folders
from tests.chaos.arena import ENDS, Arena
from tests.waiting import SCALE

#: what a run is expected to come to → the states that say so
TRUE_ENDS = {
    "ok": {"COMPLETED", "Success"},
    "code 3": {"CRASHED", "Failed"},
    "cancelled": {"CANCELLED", "Cancelled"},
    "lost": {"CRASHED", "Failed"},
    #: its host was lost, and it has completed where it was started again
    "again": {"COMPLETED", "Success"},
}
CRASHES = TRUE_ENDS["code 3"]
#: a process of a frozen host may go on for so long after the thaw, times the test scale: its shim looks each second,
#: and may stall
THAW_SECONDS = 6.0
#: what a run writes to say that it is still there
PULSE = "lives"


@dataclass
class Verdicts:
    """What was found, by kind; empty = all is well."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    #: overlap after a thaw: no fault, and told apart
    thawed: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[str]:
        for kind in ("lost", "doubled", "false", "left"):
            yield from (f"{kind}: {line}" for line in getattr(self, kind))

    def add(self, other: "Verdicts") -> None:
        for kind in ("lost", "doubled", "false", "left", "thawed"):
            getattr(self, kind).extend(getattr(other, kind))


def judge(
    arena: Arena,
    run_id: str,
    expected: str,
    *,
    unsure: bool = False,
    again: bool = False,
    frozen: Mapping[str, float] | None = None,
) -> Verdicts:
    """One run that has come to rest; `unsure`: its shim was met by a fault, so its exit may be unknown.

    `again`: it may have been started again by us, also when it had ended and its host could not say so. `frozen` has
    its claims whose host was frozen: claim → when that one thawed, by the boot clock.
    """
    found = Verdicts()
    states, marks = arena.states(run_id), arena.marks(run_id)
    ends = [state for state in states if state["type"] in ENDS]
    kinds = [state["type"] for state in ends]
    words = Counter(mark[0] for mark in marks)
    what = f"run {run_id} ({expected}): {[state['name'] for state in states]}, marks {shortened(marks)}"
    if not ends or states[-1]["type"] not in ENDS:
        found.lost.append(what)
        return found
    if len(set(kinds)) > 1:
        found.false.append(f"several ends: {what}")
    starts = Counter(mark[1] for mark in marks if mark[0] == "start")
    if any(number > 1 for number in starts.values()) or words["hooks"] > 1:
        found.doubled.append(what)
    _judge_overlaps(found, marks, frozen or {}, what)
    end, message = states[-1]["type"], str(states[-1].get("message"))
    if words["told"] and end in CRASHES:
        found.false.append(f"told as {end} though it completed: {what}")
    good = end in TRUE_ENDS[expected]
    if unsure and not words["told"] and expected != "cancelled":
        good = good or end in CRASHES
    if not good:
        found.false.append(f"told as {end} ({message}): {what}")
    if expected in ("ok", "again") and end in TRUE_ENDS["ok"] and not words["told"]:
        found.false.append(f"{end}, and it never told so: {what}")
    tellers = {mark[1] for mark in marks if mark[0] == "told"}
    if expected == "again" and (len(starts) < 2 or tellers != {last(marks)}):
        found.false.append(f"its end is not that of its last start: {what}")
    if expected == "code 3" and not unsure and "code 3" not in message:
        found.false.append(f"the message is {message!r}: {what}")
    ended = Counter(mark[1] for mark in marks if mark[0] == "end")
    once = max(ended.values(), default=0) == 1 and (again or len(ended) == 1)
    if expected == "code 3" and not unsure and not once:
        found.doubled.append(f"it did not end once: {what}")
    return found


def last(marks: Sequence[Sequence[str]]) -> str:
    """The claim of the last start; "" = none."""
    return next((mark[1] for mark in reversed(marks) if mark[0] == "start"), "")


def shortened(marks: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The marks, and of the signs that a process lives only its last one."""
    pulses = {mark[1]: mark for mark in marks if mark[0] == PULSE}
    return [mark for mark in marks if mark[0] != PULSE or mark is pulses[mark[1]]]


def overlaps(marks: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
    """The claims whose processes were there at once, the earlier one first.

    By what the later one has seen when it began, and by marks of the earlier one after that.
    """
    found = {(mark[4], mark[1]) for mark in marks if mark[0] == "overlap"}
    started = [(float(mark[3]), mark[1]) for mark in marks if mark[0] == "start"]
    for begun, claim in started:
        before = {other for at, other in started if at < begun and other != claim}
        found |= {(mark[1], claim) for mark in marks if mark[1] in before and float(mark[3]) > begun}
    return found


def _judge_overlaps(found: Verdicts, marks: Sequence[Sequence[str]], frozen: Mapping[str, float], what: str) -> None:
    for earlier, later in sorted(overlaps(marks)):
        beyond = max(float(mark[3]) for mark in marks if mark[1] == earlier) - frozen.get(earlier, float("-inf"))
        if beyond <= THAW_SECONDS * SCALE:
            found.thawed.append(f"the process of {earlier} was frozen while {later} began: {what}")
        else:
            thaw = f", its last mark {beyond:.1f} s after the thaw" if earlier in frozen else ""
            found.doubled.append(f"the process of {earlier} lived when {later} began{thaw}: {what}")


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
            # the ids that the ledger has had are its own list, and no queue
            queue = kind == "list" and "hints" not in name and name != ledger.store.key("ledgers")
            if queue and client.llen(key):
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
    return left + arena.left()


def describe(arena: Arena) -> str:
    """For a failed cell: each run, the ledger, the last lines of each part."""
    said = []
    for run_id in arena.runs:
        said.append(f"run {run_id}: {[(one['name'], one.get('message')) for one in arena.states(run_id)]}")
        said.append(f"  marks: {shortened(arena.marks(run_id))}")
    for folder in folders.found(arena.folder, "state/**/runs/*.*"):
        record = folder / "exit.json"
        said.append(f"folder {folder.name}: {folders.names(folder)}")
        said += [f"  exit {json.loads(record.read_text() or '{}')}"] if record.exists() else []
    for part in arena.parts:
        said += [f"-- {part.name} (exit {part.process.poll()}) --", part.tail(40)]
    return "\n".join(said)
