"""External: the deployer of runs that a Python callable gives to another system; their end is watched for at the API.

The folder of such a run tells how far it went, so that a worker killed at any moment deploys none twice:

    deploying.json            the callable was about to be called, and what it did is not known
    start, by "external"      the callable has returned: the run is in another system, and only the API knows its end
    started.json              the answer of the callable (the handle)
    exit.json                 the end as it was seen at the API
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowfleet import logs
from flowfleet.api.client import RunState, StateType
from flowfleet.errors import ApiError, DeployError, UserCodeFailed
from flowfleet.guard import guarded
from flowfleet.retry import Outage
from workers.deployment import EXTERNAL, Deployer, Exit, Handle, StartedRun, StartSpec, StopReason
from workers.shim import atomic_files
from workers.state.run_folders import RunFolder, RunFolders

logger = logging.getLogger(__name__)

#: pause between two requests; one request asks about all runs
ASK_SECONDS = 5.0
#: a retry of ten minutes or less is waited for in the run's own process (Prefect 1); a run that waits longer has left
#: its process, and the API hands it out again when it is due
COMES_BACK_SECONDS = 630.0
#: a run that may never have been deployed is given this long to be seen running
DOUBT_SECONDS = 600.0
_TEXT_LIMIT = 500
_WORDS_LIMIT = 4000

_GOES_ON = "where it was deployed it may go on"
_TOLD = {
    StopReason.TIMEOUT: "it took longer than --run-timeout allows",
    StopReason.WORKER: "its worker {by} was stopped",
    StopReason.FENCE: "it is not its worker's any more",
}
_CANCELLED = "it was cancelled; where it was deployed it ends by itself"
_KILLED = "its worker was killed while it was deployed"


class NotAsked(Exception):
    """The callable could not even ask the user's code to deploy the run; its cause, an `ApiError`, says why."""


@dataclass(frozen=True, kw_only=True)
class InDoubt:
    """The answer of a callable that cannot tell whether the run is deployed."""

    #: a part of a sentence for people
    why: str


#: deploys a run; returns a few words about what it has made, or a run that another deployer has started on its behalf
Deploy = Callable[[StartSpec], "StartedRun | InDoubt | str"]
States = Callable[[Sequence[str]], Mapping[str, RunState]]


@dataclass
class ExternalRun:
    """One run in another system; its end is what the API says."""

    folder: RunFolder
    handle: Handle
    forget: Callable[[ExternalRun], None]
    #: while nobody knows whether the callable has deployed the run: why that is so
    doubt: str = ""

    def __post_init__(self) -> None:
        #: since when the run has been seen waiting, by the watch's clock
        self._waits_since: float | None = None
        self._end = self.folder.exit()

    def fileno(self) -> int | None:
        # no descriptor tells the end of an external run, so `poll` is called each second
        return None

    def poll(self) -> Exit | None:
        # the watch has seen the end at the API, or the run was let go
        return self._end

    def stop(self) -> None:
        # there is no process to signal: the run is let go
        stop = self.folder.stop_record() or {}
        told = {str(reason): words for reason, words in _TOLD.items()}.get(
            str(stop.get("reason")), "it was told to end"
        )
        self._let_go(f"{told.format(by=stop.get('by'))}; {_GOES_ON}", "term")

    def kill(self) -> None:
        # there is no process to signal: the run was cancelled and is let go
        self._let_go(_CANCELLED, "kill")

    def _let_go(self, why: str, by: str) -> None:
        self.end(self.folder.with_reason(Exit(let_go=why, stopped_by=by)))

    def close(self) -> None:
        self.forget(self)

    def seen(self, state: RunState | None, now: float) -> None:
        """Act on what the API says of the run (None: it is not there), asked at `now` by the watch's clock."""
        if state is None or state.kind.terminal:
            self.end(Exit(code=0, ended_at=time.time()))
            return
        if state.kind is StateType.RUNNING:
            self.doubt = ""
        returns = state.comes_back or state.waits
        if not returns and not (self.doubt and state.kind is StateType.PENDING):
            self._waits_since = None
            return
        if self._waits_since is None:
            self._waits_since = now
        waited = now - self._waits_since
        if returns and waited >= COMES_BACK_SECONDS:
            self.end(Exit(code=0, ended_at=time.time()))
        elif not returns and waited >= DOUBT_SECONDS:
            self.end(Exit(let_go=f"{self.doubt}, and it has not begun since", ended_at=time.time()))

    def end(self, end: Exit) -> None:
        """Note the end of the run, on disk first; a second end is ignored."""
        if self._end is not None:
            return
        try:
            self.folder.write_exit(end, begun=True)
        except OSError as exc:  # the next worker would ask the API once more
            logger.warning("end not written", extra={"run_id": self.folder.run_id, "error": str(exc)})
        self._end = end


class ExternalWatch:
    """Asks the API about all external runs of this worker, in a thread that starts with the first of them."""

    def __init__(
        self,
        states: States,
        outage: Outage,
        *,
        seconds: float = ASK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`outage` is that of the API, as this part meets it."""
        self._states = states
        self._outage = outage
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[str, ExternalRun] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, run: ExternalRun) -> None:
        """Watch this run from now on."""
        with self._lock:
            self._runs[run.folder.key] = run
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="external-runs", daemon=True)
                self._thread.start()

    def forget(self, run: ExternalRun) -> None:
        """Stop watching this run."""
        with self._lock:
            self._runs.pop(run.folder.key, None)

    def close(self) -> None:
        """End the thread; the runs go on."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._seconds):
            with guarded(logger, "external runs could not be looked at"):  # one answer must not leave all unwatched
                self.look()

    def look(self) -> None:
        """Ask the API once about all runs; an error of the API is logged, and the runs stay watched."""
        with self._lock:
            runs = list(self._runs.values())
        if not runs:
            self._outage.left()
            return
        try:
            states = self._states([run.folder.run_id for run in runs])
        except ApiError as exc:
            self._outage.failed(exc, next_try=self._seconds)
            return
        self._outage.passed()
        for run in runs:
            run.seen(states.get(run.folder.run_id), self._clock())


class ExternalDeployer:
    """Gives runs to a callable, and leaves every run that is a process of this host to the deployer below.

    Without a callable all runs are started by the deployer below, and external runs are only adopted: for a worker that
    looks after what a Python agent of its host has left.
    """

    kind = EXTERNAL

    def __init__(self, deploy: Deploy | None, *, below: Deployer, watch: ExternalWatch, host: str) -> None:
        self._deploy = deploy
        self._below = below
        self._watch = watch
        self._host = host

    @property
    def has_switch(self) -> bool:
        """Whether runs end by themselves when their lease runs out: what a callable has deployed does not."""
        return self._deploy is None and bool(getattr(self._below, "has_switch", False))

    @property
    def shut(self) -> str:
        """Why no run can be started now; empty where one can."""
        return str(getattr(self._below, "shut", ""))

    def prepare(self, spec: StartSpec, wanted: Callable[[], bool]) -> None:
        """Let the deployer below bring what the run needs, where it starts runs itself."""
        if self._deploy is None and hasattr(self._below, "prepare"):
            self._below.prepare(spec, wanted)

    def recover(self, runs: RunFolders) -> int:
        """Let the deployer below make run folders again that the disk has lost; returns how many."""
        return int(self._below.recover(runs)) if hasattr(self._below, "recover") else 0

    def start(self, spec: StartSpec) -> StartedRun:
        # a DeployError of the callable is raised as it is, anything else that it raises becomes UserCodeFailed
        if self._deploy is None:
            return self._below.start(spec)
        folder = RunFolder(spec.folder)
        atomic_files.write_json(_marker(folder), {"v": 1, "host": self._host})
        try:
            answer = self._deploy(spec)
        except NotAsked as exc:
            _marker(folder).unlink(missing_ok=True)
            raise exc.__cause__ or exc from exc
        except DeployError:
            raise
        except (Exception, SystemExit) as exc:  # guards the worker from the user's code
            logger.exception("a run could not be deployed", extra=folder.fields)
            raise UserCodeFailed(logs.redact(str(exc))[:_WORDS_LIMIT] or type(exc).__name__) from exc
        if isinstance(answer, InDoubt):
            return self._given_away(folder, "an unknown place", doubt=answer.why)
        if not isinstance(answer, str) and hasattr(answer, "handle"):
            return answer
        return self._given_away(folder, "" if answer is None else str(answer))

    def start_below(self, spec: StartSpec) -> StartedRun:
        """For the callable: start the run as a process of this host after all, which is then exactly watched."""
        _marker(RunFolder(spec.folder)).unlink(missing_ok=True)
        return self._below.start(spec)

    def adopt(self, folder: Path) -> StartedRun | None:
        # a run that is not external is found by the deployer below
        run = RunFolder(folder)
        if run.start() is None and _marker(run).exists():
            _win(run, doubt=_KILLED)
        start = run.start() or {}
        if start.get("by") != self.kind:
            return self._below.adopt(folder)
        doubt = str(start.get("doubt") or _KILLED) if start.get("doubtful") else ""
        handle = run.started() or self._handle("an unknown place", doubt=doubt)
        return self._follow(ExternalRun(run, handle, self._watch.forget, doubt=doubt))

    def close(self) -> None:
        self._watch.close()
        self._below.close()

    def _given_away(self, folder: RunFolder, text: str, *, doubt: str = "") -> StartedRun:
        handle = self._handle(text, doubt=doubt)
        try:
            _win(folder, doubt=doubt)
            atomic_files.write_json(folder.path / "started.json", handle)
        except OSError as exc:  # the run is deployed all the same; whoever adopts it knows less of it
            logger.error("handle of a run not written down", extra={"run_id": folder.run_id, "error": str(exc)})
        return self._follow(ExternalRun(folder, handle, self._watch.forget, doubt=doubt))

    def _follow(self, run: ExternalRun) -> StartedRun:
        if run.poll() is None:
            self._watch.follow(run)
        return run

    def _handle(self, text: str, *, doubt: str = "") -> dict[str, Any]:
        handle = {"v": 1, "kind": self.kind, "host": self._host, "id": text[:_TEXT_LIMIT]}
        return {**handle, "doubtful": True} if doubt else handle


def _marker(folder: RunFolder) -> Path:
    return folder.path / "deploying.json"


def _win(folder: RunFolder, *, doubt: str) -> None:
    record = {"v": 1, "by": ExternalDeployer.kind, "doubtful": bool(doubt), "doubt": doubt}
    fd = atomic_files.create_once(folder.path / "start", record)
    if fd is not None:
        os.close(fd)
