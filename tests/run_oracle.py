"""Run oracle: what must be true of every run when all trouble is over, whatever broke meanwhile.

assert wrong(run_id, world.notes(run_id), api.history(run_id)) == []
"""

from collections import Counter
from collections.abc import Sequence

#: the names of the states in which a run has ended, of either Prefect
ENDS = frozenset({"Completed", "Success", "Failed", "Crashed", "Cancelled", "TimedOut"})
CLAIMED = "Submitted"


def wrong(run_id: str, notes: Sequence[Sequence[str]], history: Sequence[str]) -> list[str]:
    """What is wrong about a run, by its own notes and by the names of its states at the API; empty if nothing is.

    One true end, no more starts than claims, at most one start for each claim, and no two at the same time (no test
    with this oracle freezes a host, so there is no exception). Notes are the lines of `note`: word, pid, time, who,
    claim.
    """
    ends = [name for name in history if name in ENDS]
    starts = [note for note in notes if note[0] == "ran"]
    per_claim = Counter(note[4] for note in starts if len(note) > 4)
    found = []
    if len(ends) != 1 or history[-1] not in ENDS:
        found.append(f"{len(ends)} ends: {' '.join(history)}")
    if len(starts) > history.count(CLAIMED):
        found.append(f"{len(starts)} starts for {history.count(CLAIMED)} claims")
    found += [f"{times} starts for the claim {claim}" for claim, times in per_claim.items() if times > 1]
    if "Crashed" in ends and any(note[0] == "done" for note in notes) and "Completed" in ends:
        found.append("Crashed was told of an attempt that completed")
    found += ["two attempts at the same time"] if _overlap(notes) else []
    return [f"run {run_id}: {sentence}" for sentence in found]


def _overlap(notes: Sequence[Sequence[str]]) -> bool:
    """Whether an attempt began before the one before it had ended, by their own marks."""
    alive: set[str] = set()
    for word, pid, *_ in sorted(notes, key=lambda note: float(note[2])):
        if word == "ran" and alive - {pid}:
            return True
        if word == "ran":
            alive.add(pid)
        elif word == "done":
            alive.discard(pid)
    return False
