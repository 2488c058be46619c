"""Exit: how a started run ended, as its deployer saw it, with the reason where a worker has stopped it."""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from flowfleet.certificate import EndedBy
from flowfleet.logs import redact


class StopReason(StrEnum):
    """The reason for which a worker ends a run; its name stands in the run's folder before any signal goes."""

    WORKER = "worker-stopped"
    CANCEL = "cancelled"
    TIMEOUT = "run-timeout"
    FENCE = "fenced"
    LINGER = "linger"
    SWITCH = "dead-mans-switch"
    HOOK_TIMEOUT = "hook-timeout"


#: each reason as the end of "was stopped …"
_STOPPED = {
    StopReason.WORKER: "with its worker {worker}",
    StopReason.CANCEL: "since it was cancelled",
    StopReason.TIMEOUT: "since it took longer than --run-timeout",
    StopReason.FENCE: "since it was not its worker's any more",
    StopReason.LINGER: "since its run had ended before, and --linger was over",
    StopReason.SWITCH: "by its dead man's switch, since its worker had not renewed its claim in time",
    StopReason.HOOK_TIMEOUT: "since its hooks took too long",
}


_ENDED_BY = {
    StopReason.WORKER: EndedBy.DRAIN,
    StopReason.CANCEL: EndedBy.CANCEL,
    StopReason.TIMEOUT: EndedBy.TIMEOUT,
    StopReason.HOOK_TIMEOUT: EndedBy.TIMEOUT,
    StopReason.FENCE: EndedBy.FENCED,
    StopReason.LINGER: EndedBy.LINGER,
    StopReason.SWITCH: EndedBy.SWITCH,
}
#: signals by which a process ends through what it did itself; all others were sent by somebody
_FAULTS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGPIPE", "SIGXCPU"})
#: of a container whose process 1 was killed, by whomever
_CODE_OF_KILL = 128 + signals.SIGKILL
#: the ledger's record is bounded: each text in it has at most so many characters
_TEXT_LIMIT = 300


@dataclass(frozen=True, kw_only=True)
class Exit:
    """The end of a started run; None in a field means that the fact is not known.

    Exactly one of `code` and `signal` is set, unless `unknown` (nobody could see the end: the shim was killed),
    `error` (the run never began: no such interpreter, no permission) or `let_go` says why there is neither.
    """

    code: int | None = None
    signal: int | None = None
    unknown: bool = False
    error: str | None = None
    #: `error` is what the user's own code for deploying the run has said: people are told just that
    own_words: bool = False
    #: for `unknown`: why nobody could see the end, if it was not the shim's death
    why: str | None = None
    #: why an external run is not watched any more though it may go on
    let_go: str | None = None
    #: what an engine of containers means by this code
    meaning: str | None = None
    #: the container engine was started anew, and has ended the run with that
    engine_restarted: bool = False
    #: the host was started anew while the run was there
    rebooted: bool = False
    #: the kernel killed the run since memory had run out for it
    oom: bool = False
    #: the kernel killed something for memory on this host in the last seconds of the run
    oom_on_host: bool | None = None
    #: how many processes of the run the kernel has killed for memory, where the run had a control group of its own
    oom_kills: int | None = None
    #: who ended the run: None (the run itself), "term" or "kill" (the worker)
    stopped_by: str | None = None
    #: the `StopReason` of a stop by the worker, and NAME@HOST of that worker
    stop_reason: str | None = None
    stop_worker: str | None = None
    #: what the engine has said of its end over its control session, with the state that it has written, if any
    receipt: Mapping[str, str] | None = None
    #: seconds from the receipt to the end
    receipt_age: float | None = None
    #: whether the engine was told of a cancel over that session: None, "sent" or "acknowledged"
    intent: str | None = None
    #: name of a signal to the shim that was not its worker's, and was ignored → how often it came
    ignored: Mapping[str, int] = field(default_factory=dict)
    #: Unix time of start and end
    started_at: float | None = None
    ended_at: float | None = None
    #: seconds from start to end by a clock that nobody sets
    wall_seconds: float | None = None
    #: peak memory of the largest process, and CPU time of all processes
    max_rss_kib: int | None = None
    #: peak memory of all processes together with the files that they read and wrote, where the run had a control group
    tree_peak_kib: int | None = None
    cpu_seconds: float | None = None
    #: processes of the run that were still alive after its command and had to be killed
    leftovers: int = 0
    #: the end of the run's output; its last line goes into the sentence that the API is told
    last_lines: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True for exit code 0: the engine has reported its end by itself."""
        return self.code == 0 and self.error is None

    @property
    def ended_by(self) -> EndedBy:  # noqa: PLR0911 - one answer for each way to end
        """Who ended the run."""
        if self.error:
            return EndedBy.NOT_STARTED
        if self.oom:
            return EndedBy.OOM
        if self.stopped_by or self.stop_reason:
            # a shim or worker of before an upgrade tells no reason, one of after it perhaps another
            return {str(reason): by for reason, by in _ENDED_BY.items()}.get(self.stop_reason or "", EndedBy.UNKNOWN)
        if self.rebooted:
            return EndedBy.HOST_REBOOT
        if self.engine_restarted:
            return EndedBy.ENGINE_RESTART
        if self.unknown or self.let_go or (self.meaning and self.code == _CODE_OF_KILL):
            return EndedBy.UNKNOWN
        fault = self.signal is None or _signal_name(self.signal) in _FAULTS
        return EndedBy.ITSELF if fault else EndedBy.UNKNOWN

    def certificate(self) -> dict[str, Any]:
        """The end in short and bounded, for the ledger and for people.

        Of what the run has printed there is the last line, redacted, where the API is told of the end as well.
        """
        record = {name: _bounded(value) for name, value in self.to_record().items()}
        del record["last_lines"]
        wall = self.wall_seconds
        if wall is None and self.started_at and self.ended_at:
            wall = max(0.0, self.ended_at - self.started_at)
        return {
            **record,
            "ended_by": self.ended_by.value,
            "sentence": _bounded(str(self)),
            "wall_seconds": wall,
            "last_line": None if self.ok or self.error else self.last_line(limit=_TEXT_LIMIT),
        }

    def last_line(self, *, limit: int) -> str | None:
        """The last line that the run has printed, redacted: all who may read its states see it, and it knows our key.

        None where there is none.
        """
        lines = [line.strip() for line in self.last_lines if line.strip()]
        return _redacted(lines[-1], limit) if lines else None

    def redacted_lines(self) -> list[str]:
        """The last lines that the run has printed, redacted and cut."""
        return [_redacted(line, _TEXT_LIMIT) for line in self.last_lines]

    def to_record(self) -> dict[str, Any]:
        """The JSON form for the disk."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record["last_lines"] = list(self.last_lines)
        record["ignored"] = dict(self.ignored)
        record["receipt"] = dict(self.receipt) if self.receipt is not None else None
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Exit:
        """Read `to_record` back; unknown keys are ignored, so that an older reader survives a newer writer."""
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        known["last_lines"] = tuple(known.get("last_lines") or ())
        known["ignored"] = known.get("ignored") or {}
        return cls(**known)

    def __str__(self) -> str:  # noqa: PLR0911 - one sentence for each way to end
        if self.error:
            return f"could not be started: {self.error}"
        if self.let_go:
            return f"is not watched any more: {self.let_go}"
        if self.unknown:
            how = f"was stopped {self._why_stopped}" if self.stopped_by else "ended"
            return f"{how}, exit unknown ({self.why or 'its supervisor process was killed'})"
        if self.signal is not None:
            name = _signal_name(self.signal)
            if self.oom:
                return f"was killed by {name}: the kernel ran out of memory for it"
            if self.stopped_by:
                return f"was stopped {self._why_stopped} ({name})"
            return f"was killed by {name}{self._about_memory}"
        if self.stopped_by:
            return f"was stopped {self._why_stopped} and exited with code {self.code}"
        meaning = f" ({self.meaning})" if self.meaning else ""
        return f"exited with code {self.code}{meaning}{'' if self.ok else self._about_memory}"

    @property
    def _about_memory(self) -> str:
        if self.oom_kills:
            return f"; the kernel had killed {_processes(self.oom_kills)} of it for memory"
        if self.signal != signals.SIGKILL:
            return ""
        if self.oom_on_host is None:
            return " (often the kernel's out-of-memory killer)"
        return "; the kernel killed something for memory on this host then" if self.oom_on_host else ""

    @property
    def _why_stopped(self) -> str:
        # a shim or worker of before an upgrade tells no reason, one of after it perhaps another
        words = {str(reason): said for reason, said in _STOPPED.items()}.get(self.stop_reason or "", "by the worker")
        return words.format(worker=self.stop_worker)


def _redacted(line: str, limit: int) -> str:
    # before it is cut, since half an address would not be recognised
    return redact(line)[:limit]


def _bounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _bounded(each) for name, each in value.items()}
    return value[:_TEXT_LIMIT] if isinstance(value, str) else value


def _processes(count: int) -> str:
    return "a process" if count == 1 else f"{count} processes"


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
