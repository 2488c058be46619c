"""Plug-in edge: what a deployer is asked to start, the started run that it returns, and `Exit`, how that run ended.

The two Protocols are the edge between the supervisor, which knows claims and the ledger, and the deployers, which
know processes and containers. A handle is plain JSON: it goes to disk and back, so that the runs of a plugged-in
deployer can be adopted as well. A deployer of another package is an entry point in the group `flowfleet.deployers`:
each worker calls it once, with its `DeployerContext`, and gets an object with the methods of `Deployer`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from flowfleet.api.container_ask import ContainerAsk
from flowfleet.errors import StartFailed
from flowfleet.settings.values import size
from workers.exit import Exit as Exit  # noqa: PLC0414 - a deployer of another package finds both here
from workers.exit import StopReason as StopReason  # noqa: PLC0414

Handle = Mapping[str, Any]

#: the least priority that a process can have
MOST_NICE = 19
#: a run cannot hold up the stop of its host for longer than a day
LONGEST_GRACE_SECONDS = 86400
#: the kind of the runs that a callable gives to another system; they need no interpreter of this host
EXTERNAL = "external"
#: that of runs as containers
CONTAINERS = "docker"


def _raised_nice(own: int, where: str, asked: object) -> int:
    try:
        number = int(str(asked))
    except ValueError:
        number = -1
    if not 0 <= number <= MOST_NICE:
        raise StartFailed(f"{where} is {str(asked)[:100]!r}: give a whole number from 0 to {MOST_NICE}")
    return max(own, number)


def _own_grace(_own: float, where: str, asked: object) -> float:
    try:
        seconds = float(str(asked))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_GRACE_SECONDS:
        raise StartFailed(
            f"{where} is {str(asked)[:100]!r}: give a number of seconds from 0 to {LONGEST_GRACE_SECONDS}"
        )
    return seconds


def _own_memory(own: int | None, where: str, asked: object) -> int:
    try:
        number = size(str(asked))
    except ValueError:
        number = 0
    if number <= 0:
        raise StartFailed(f"{where} is {str(asked)[:100]!r}: give a size such as 512m")
    return number if own is None else min(own, number)


def _own_cpus(own: float | None, where: str, asked: object) -> float:
    try:
        number = float(str(asked))
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise StartFailed(f"{where} is {str(asked)[:100]!r}: give a number of processors above 0")
    return number if own is None else min(own, number)


@dataclass(frozen=True, kw_only=True)
class RunLimits:
    """The limits of one run, which travel whole from the worker's settings and the run's job variables to the shim.

    Each field is a setting of the worker by the same name. A run asks for another value where its field says which it
    may have: by the job variable of that name, or by FLOWFLEET_ and the name in capitals among its own variables.
    """

    #: seconds that a stop waits for the run, and again between TERM and KILL; a run may have its own
    stop_grace: float = field(metadata={"asked": _own_grace})
    #: soft cap of the output file (`log` in the run's folder) in bytes; 0 = no cap
    log_limit: int
    #: added to the niceness of the worker, up to 19; a run may raise it
    nice: int = field(default=0, metadata={"asked": _raised_nice})
    #: bytes that all processes of the run may use together; None = no limit; a run may have less
    memory: int | None = field(default=None, metadata={"asked": _own_memory})
    #: processors that it may use, fractions too; None = no limit; a run may have less
    cpus: float | None = field(default=None, metadata={"asked": _own_cpus})

    @classmethod
    def of(cls, settings: object, variables: Mapping[str, Any], env: Mapping[str, str | None]) -> RunLimits:
        """The limits of a run with these job variables and variables of its own, in a worker with these settings.

        Raises `StartFailed` for a value that the run asks for and that cannot be used.
        """
        values = {}
        for limit in fields(cls):
            values[limit.name] = getattr(settings, limit.name)
            asked = _asked(limit.name, variables, env)
            if asked is not None and "asked" in limit.metadata:
                values[limit.name] = limit.metadata["asked"](values[limit.name], *asked)
        return cls(**values)


def _asked(name: str, variables: Mapping[str, Any], env: Mapping[str, str | None]) -> tuple[str, Any] | None:
    """What the run asks for, after the words for where it does; None when it does not."""
    variable = f"FLOWFLEET_{name.upper()}"
    given = {f"the job variable {name}": variables.get(name), f"the run's variable {variable}": env.get(variable)}
    return next(((where, value) for where, value in given.items() if value not in (None, "")), None)


@dataclass(frozen=True, kw_only=True)
class DeployerContext:
    """The facts of the worker that a deployer is made with."""

    #: the host's name, for handles
    host: str
    #: the worker's environment as its runs may see it, without flowfleet's own variables
    environment: Mapping[str, str] = field(repr=False)
    #: the limits of a run that asks for none of its own
    limits: RunLimits
    #: the worker's own folder on this host, which outlives it
    state_folder: Path


@dataclass(frozen=True, kw_only=True)
class StartSpec:
    """The finished command, environment, folder and limits of one attempt at a run, as a deployer gets them."""

    #: the run's id at the Prefect API
    run_id: str
    #: the claim id
    claim: str
    #: the command and its arguments; a command without a slash is looked for on the PATH of `env`
    argv: Sequence[str]
    #: the whole environment of a process on this host; never written to disk
    env: Mapping[str, str] = field(repr=False)
    #: the folder to start in, a relative one begins where the worker was started; None = an empty folder of its own,
    #: `work` in the run's folder, which the deployer makes and the worker removes at the end
    cwd: str | None
    #: the run's folder STATE/runs/RUN.CLAIM, which exists already
    folder: Path
    #: boot-time clock (CLOCK_BOOTTIME) in seconds after which user code must not begin any more; None = no limit
    not_after: float | None
    limits: RunLimits
    #: the run has to end by itself when its lease runs out (workers/shim/switch.py); only with deployers that say that
    #: their runs can, by an attribute `has_switch` that is true
    switch: bool = False
    #: the command is an engine that takes a control session (Prefect 3): its shim keeps one with it
    control: bool = False
    #: what `env` has that does not come from this host: of the engine, of `--env` and of the run, for deployers whose
    #: runs are elsewhere (a container)
    carried_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: all job variables of the run (image, networks, …), as pool, deployment and run set them; at Prefect 1
    #: `run_config`, `storage` and `core_version`
    variables: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: what the run asks of its container; None unless the worker starts runs as containers
    container: ContainerAsk | None = None


def process_of(handle: Handle) -> int | str:
    """The process of a started run, by which people find it on its host, or the short id of its container."""
    if handle.get("kind") == CONTAINERS:
        return str(handle.get("id"))[:12]
    return int(handle.get("command_pid") or handle.get("pid") or 0)


class StartedRun(Protocol):
    """One started run as its worker sees it, fresh or adopted.

    One supervisor thread watches all runs of a worker by these methods, and the threads of launch and adoption call
    them too. So no method may wait for a network or for the end of a process: the other runs would go unwatched
    meanwhile. Whatever `poll` raises is logged, and `poll` is called again after a second; the other methods should not
    raise.
    """

    @property
    def handle(self) -> Handle:
        """The facts by which people and tools find the run: `{"kind", "host", "id", ...}`, plain JSON.

        `kind` is that of the deployer, `host` the host's name, `id` a short text. Where there is a process id, it is
        `pid`, or `command_pid` if `pid` is that of a process above the command; the API is told of it. The ledger takes
        at most 4096 bytes of JSON, and of a larger handle only kind, host, id and pid. Adoption gets the run's folder
        and no handle, so a deployer writes the whole handle there, as `started.json`. It is still readable after
        `close`.
        """

    def fileno(self) -> int | None:
        """A descriptor that turns readable when `poll` should be called, for example a pidfd at the end of its process.

        None = there is no such descriptor: `poll` is then called each second. The descriptor is asked for once, when
        the supervisor begins to watch the run, and stays open until `close`. If it is readable and the run has not
        ended, `poll` is called each tenth of a second; after 50 such wakeups the descriptor is not watched any more.
        """

    def poll(self) -> Exit | None:
        """None while anything of the run is alive; its Exit once its whole group is gone, and the same Exit ever after.

        The slot of the run is free then. An Exit with `unknown` is right for a run that is gone and whose end nobody
        saw, and one with `let_go` for a run that cannot be watched any more.
        """

    def stop(self) -> None:
        """Send TERM to the run, and KILL after the grace of its start spec; returns at once.

        The end is seen by `poll`. A run that cannot be signalled is let go: `poll` gives an Exit with `let_go`. May be
        called more than once, and after the end, when there is nothing left to do.
        """

    def kill(self) -> None:
        """Send KILL to the whole tree of the run now; returns at once.

        Called for cancelled runs, and like `stop` in all else.
        """

    def close(self) -> None:
        """Close descriptors and watch the run no longer; a run that is alive goes on."""


class Deployer(Protocol):
    """A deployer starts runs of one kind and finds them again.

    `start` and `adopt` are called by several threads at once, one for each launch. What keeps a run from being started
    twice is the start file, `start` in the run's folder, which only one process can create. A deployer creates it
    before user code can begin (`workers.shim.atomic_files.create_once`), and `RunFolder.abandon` creates it in the name
    of whoever gives the run back. A worker may be killed between any two steps.
    """

    #: the kind in the handles of this deployer's runs; for a plugged-in deployer the name of its entry point
    kind: str

    def start(self, spec: StartSpec) -> StartedRun:
        """Start the run of this spec.

        Raises `StartFailed` (or another `DeployError`) with a sentence when user code certainly did not begin; the run
        is then reported as failed. If `spec.not_after` had passed, and `exit.json` in the run's folder says
        `{"begun": false, "late": true}`, the run is handed back instead. After any other exception the run is handed
        back if nobody has created its start file, else `adopt` decides.
        """

    def adopt(self, folder: Path) -> StartedRun | None:
        """Find the started run of a run folder again, alive or ended; its `poll` then tells which.

        Called when a worker starts, for each folder that a worker before it has left, and when a start went wrong.
        None = user code never began and never will: the start file is now "abandoned" (`RunFolder.abandon`), or
        `exit.json` tells of a start that failed or came too late. The run is then handed back, or reported with the
        failure.
        """

    def close(self) -> None:
        """End helper processes and threads when the worker ends; started runs go on. May be called more than once."""
