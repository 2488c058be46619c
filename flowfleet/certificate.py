"""Certificate: how a run ended, who ended it and what it took, as the ledger's record has it and as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

#: the names under which `runs --json` and `explain --json` show an end; each is there, None where it is not known
NAMES = (
    "ended_by",
    "sentence",
    "code",
    "signal",
    "oom",
    "max_rss_kib",
    "tree_peak_kib",
    "cpu_seconds",
    "wall_seconds",
    "leftovers",
    "last_line",
)


class EndedBy(StrEnum):
    """Who ended a run."""

    ITSELF = "itself"
    CANCEL = "cancel"
    TIMEOUT = "timeout"
    #: its worker was stopped or drained, and could not leave it behind
    DRAIN = "drain"
    FENCED = "fenced"
    #: the dead man's switch: no renewal of its claim had been accepted for too long
    SWITCH = "switch"
    LINGER = "linger"
    #: the kernel, which ran out of memory for it
    OOM = "oom"
    HOST_REBOOT = "host-reboot"
    #: the container engine of its host, which was started anew
    ENGINE_RESTART = "engine-restart"
    #: somebody else on its host, or nobody knows who
    UNKNOWN = "unknown"
    #: nobody has seen an end: its host is away
    HOST_LOST = "host-lost"
    #: nobody: it could not be started
    NOT_STARTED = "not-started"

    @classmethod
    def of(cls, facts: Mapping[str, Any] | None) -> EndedBy:
        """Who ended a run by the facts in the ledger, where another version may name nobody that we know."""
        told = (facts or {}).get("ended_by")
        return cls(told) if told in list(cls) else cls.UNKNOWN


def shown(facts: Mapping[str, Any] | None, *, lost: bool = False) -> dict[str, Any] | None:
    """The facts of an end under their stable names; None where there is no end.

    A `lost` run is one whose host is away: nobody has seen its end.
    """
    if facts:
        return {name: facts.get(name) for name in NAMES}
    if lost:
        nothing: dict[str, Any] = dict.fromkeys(NAMES)
        return nothing | {"ended_by": EndedBy.HOST_LOST.value, "sentence": "none, host lost"}
    return None


def told(end: Mapping[str, Any] | None) -> str:
    """The end, as `shown` gives it, in one or two sentences; empty where there is none, or an earlier version's."""
    if not end or not end["sentence"]:
        return ""
    if end["ended_by"] == EndedBy.HOST_LOST:
        return "Nobody has seen its process end: its host is lost."
    took = usage(end)
    return f"Its process {end['sentence']}.{f' {took}' if took else ''}"


def usage(facts: Mapping[str, Any]) -> str:
    """What a run took, as one sentence; empty where nothing is known of it."""
    wall, cpu = facts.get("wall_seconds"), facts.get("cpu_seconds")
    parts = [duration(wall)] if wall is not None else []
    if cpu is not None:
        parts.append(f"{duration(cpu)} of CPU time")
    largest, tree = facts.get("max_rss_kib"), facts.get("tree_peak_kib")
    if largest:
        together = f" ({memory(tree)} with all its processes and files)" if tree and tree > largest else ""
        parts.append(f"up to {memory(largest)} of memory{together}")
    if not parts:
        return ""
    return f"It took {', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}."


def memory(kib: float) -> str:
    """An amount of memory for people: 900 KiB, 3.4 MiB, 512 MiB, 1.5 GiB."""
    if kib < 1024:
        return f"{kib:.0f} KiB"
    size, unit = (kib / 1024, "MiB") if kib < 1024 * 1024 else (kib / 1024 / 1024, "GiB")
    return f"{size:.1f} {unit}" if size < 10 else f"{size:.0f} {unit}"


def duration(seconds: float) -> str:
    """A time that something took, for people: 41 ms, 1.2 s, 41 s, 3 min 20 s, 5 h 10 min, 2 d 3 h."""
    if 0 < seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else "less than 1 ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit}{f' {rest} {small}' if rest else ''}"
    return f"{whole} s"
