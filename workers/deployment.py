"""Deployment: a started subprocess or container, and `Exit`, the way it ended.

The two Protocols are the edge between the supervisor, which knows claims and the ledger, and the deployers, which
know processes and containers. A handle is plain JSON: it goes to disk and back, so that the runs of a plugged-in
deployer can be adopted as well.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Handle = Mapping[str, Any]

#: the kind of runs that a callable gives to somebody else; they need no interpreter of this host
EXTERNAL = "external"


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a deployment ended.

    Exactly one of `code` and `signal` is set, unless `unknown` (nobody could see the end: the shim was killed),
    `error` (it never began: no such interpreter, no permission) or `let_go` says why there is neither.
    """

    code: int | None = None
    signal: int | None = None
    unknown: bool = False
    error: str | None = None
    #: for `unknown`: why nobody could see the end, if it was not the shim's death
    why: str | None = None
    #: an external run that is not watched any more though it may go on: why
    let_go: str | None = None
    oom: bool = False
    #: who ended it: None (by itself), "term" or "kill" (stopped on our word), "deadline" (dead man's switch)
    stopped_by: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    max_rss_kib: int | None = None
    cpu_seconds: float | None = None
    #: processes of the run that were still alive after its command and had to be killed
    leftovers: int = 0
    last_lines: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True for exit code 0: the engine has reported by itself."""
        return self.code == 0 and self.error is None

    def to_record(self) -> dict[str, Any]:
        """The JSON form for disk and ledger."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record["last_lines"] = list(self.last_lines)
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Exit:
        """Read `to_record` back; unknown keys are ignored, so that an older reader survives a newer writer."""
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        known["last_lines"] = tuple(known.get("last_lines") or ())
        return cls(**known)

    def __str__(self) -> str:  # noqa: PLR0911 - one sentence for each way to end
        if self.error:
            return f"could not be started: {self.error}"
        if self.let_go:
            return f"is not watched any more: {self.let_go}"
        if self.unknown:
            return f"ended, exit unknown ({self.why or 'its supervisor process was killed'})"
        if self.signal is not None:
            name = _signal_name(self.signal)
            if self.oom:
                return f"was killed by {name}: the kernel ran out of memory"
            if self.stopped_by:
                return f"was stopped by the worker ({name})"
            hint = " (often the kernel's out-of-memory killer)" if self.signal == signals.SIGKILL else ""
            return f"was killed by {name}{hint}"
        if self.stopped_by:
            return f"was stopped by the worker and exited with code {self.code}"
        return f"exited with code {self.code}"


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True, kw_only=True)
class StartSpec:
    """What a deployer is asked to start: the finished command, environment and place of one attempt at a run."""

    run_id: str
    claim: str
    argv: Sequence[str]
    #: the whole environment of the child; never written to disk
    env: Mapping[str, str]
    #: the folder to start in; None = an empty folder of its own, removed at the end
    cwd: str | None
    #: the run's folder STATE/runs/RUN.CLAIM, which exists already
    folder: Path
    #: boot-time clock (CLOCK_BOOTTIME) in seconds after which user code must not begin any more; None = no limit
    not_after: float | None
    #: soft cap of the output file in bytes
    log_limit: int
    #: seconds between TERM and KILL when it is stopped
    stop_grace: float


class StartedRun(Protocol):
    """One started deployment, watched by the supervisor's selector."""

    @property
    def handle(self) -> Handle:
        """JSON by which this deployment is found again; `{"kind", "host", "id", ...}`."""

    def fileno(self) -> int | None:
        """A descriptor that turns readable at the end (pidfd), or None: then `poll` is asked each second."""

    def poll(self) -> Exit | None:
        """None while anything of it is alive; its Exit once its whole group is gone."""

    def begun(self) -> bool:
        """Has user code begun, or may it still begin? False only with proof that it never will."""

    def stop(self) -> None:
        """TERM, the order's grace, then KILL; returns at once."""

    def kill(self) -> None:
        """KILL the whole tree now; returns at once."""

    def close(self) -> None:
        """Let go of descriptors; the deployment itself goes on."""


class Deployer(Protocol):
    """Starts deployments of one kind and finds them again."""

    kind: str

    def start(self, spec: StartSpec) -> StartedRun:
        """Start it. Raises `StartFailed` with a sentence when user code certainly did not begin."""

    def adopt(self, folder: Path) -> StartedRun | None:
        """Find the deployment of a run folder again, alive or ended.

        None = user code never began and never will (its start file is now "abandoned").
        """

    def close(self) -> None:
        """Let go of helper processes; deployments go on."""
