"""Container: the deployer of runs as containers of this host's engine, which outlive the worker.

A run's folder and its container together tell how far a start went, so that a worker killed at any moment starts none
twice:

    container.json            the container was created, and nothing of it has begun
    start, by "container"     won before the one start call that there ever is; whoever comes later never starts it
    started.json              the engine has taken the start call (the handle)
    exit.json                 how it ended; only then the container is removed

What is found as `created` behind a start file is removed, without force: if the engine lets it go it has never begun
and no late start call can begin it any more. If it runs meanwhile the engine refuses, and the run is watched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowfleet.api.container_ask import ContainerAsk
from flowfleet.errors import DeployError, EngineAway, EngineRefused, NotReady, StartFailed
from flowfleet.failpoints import Failpoints
from workers.containers.container import Container, listed
from workers.containers.container_run import ContainerRun
from workers.containers.engine import Engine, refused_text
from workers.containers.events import Events
from workers.containers.images import Images
from workers.containers.leftovers import Leftovers
from workers.containers.reach import trouble
from workers.containers.request import (
    CLAIM,
    FLEET,
    HOST,
    RUN,
    ContainerOptions,
    CreateRequest,
    Identity,
    create_request,
)
from workers.deployment import CONTAINERS, Exit, StartedRun, StartSpec
from workers.shim import atomic_files
from workers.shim.syscalls import boot_clock
from workers.state.run_folders import RunFolder, RunFolders

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
#: in the spelling of `--pull`
_POLICIES = {"Always": "always", "IfNotPresent": "if-not-present", "Never": "never"}


@dataclass(kw_only=True)
class ContainerDeployer:
    """Starts runs as containers, and finds them again by their folders."""

    kind = CONTAINERS

    engine: Engine
    images: Images
    options: ContainerOptions
    #: the fleet, and NAME@HOST of the worker
    fleet: str
    worker: str
    #: the host's name for handles, and what tells it from others that use the same engine
    host: str
    host_key: str
    boot_id: str
    #: whether the head of a log can be given back to the disk
    holes: bool = False
    failpoints: Failpoints = field(default_factory=Failpoints)
    wait: Callable[[float], None] = time.sleep
    _runs: dict[str, ContainerRun] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.events = Events(engine=self.engine, fleet=self.fleet, host=self.host_key, on_die=self._died)
        self.leftovers = Leftovers(engine=self.engine, fleet=self.fleet, host=self.host_key)

    @property
    def shut(self) -> str:
        """Why no run can be started now: the engine is away; empty where it answers."""
        return self.events.away

    def greet(self, *, require: bool, api: str = "") -> bool:
        """Ask the engine who it is, and tell; one that is away is waited for, or with `require` raises `EngineAway`.

        Returns whether it has answered. `api` is the address of the Prefect API, which containers are to reach.
        """
        answered = False
        try:
            facts = self.engine.ping()
        except (EngineAway, EngineRefused) as exc:
            if require:
                raise EngineAway(f"{exc}: start it, or name another by --base-url") from exc
            # `events` says so, and asks again
        else:
            answered = True
            logger.info(
                "container engine",
                extra={"engine": facts.product, "version": facts.version, "address": self.engine.address},
            )
            unreachable = trouble(self.engine, api, self.options)
            if unreachable:
                logger.warning("runs will not reach the Prefect API", extra={"why": unreachable})
        self.events.start()
        return answered

    def recover(self, runs: RunFolders) -> int:
        """Make run folders again that the disk has lost, of containers that have begun; returns how many."""
        self.leftovers.start(runs)
        return 0 if self.shut else self.leftovers.recover(runs, self.worker)

    # -- start

    def prepare(self, spec: StartSpec, wanted: Callable[[], bool]) -> None:
        """Bring the run's image here while nothing is promised yet.

        Raises `NotReady` where the image or the engine needs longer than a run may wait, and other `DeployError`s.
        """
        ask = _ask(spec)
        self._request(spec, ask)  # what cannot run is not pulled either
        policy = _POLICIES.get(ask.pull or "")
        try:
            self.images.bring(ask.image, policy=policy, credentials=ask.credentials, wanted=wanted)
        except EngineAway as exc:
            raise NotReady(str(exc)) from exc

    def start(self, spec: StartSpec) -> StartedRun:
        folder, ask = RunFolder(spec.folder), _ask(spec)
        # a worker that has prepared it and was stopped, or whose operator has changed his mind
        self.images.check(ask.image)
        request = self._request(spec, ask)
        for remark in request.remarks:
            logger.info("a setting of a run is not used", extra={**folder.fields, "remark": remark})
        try:
            container, name = Container.create(self.engine, request)
        except EngineAway as exc:
            raise NotReady(str(exc)) from exc
        except EngineRefused as exc:
            raise StartFailed(f"its container cannot be created: {refused_text(exc)}") from exc
        handle = {
            "v": 1,
            "kind": self.kind,
            "id": container.id,
            "name": name,
            "image": ask.image,
            **self._handle_of(spec),
            "boot_clock": boot_clock(),
        }
        with contextlib.ExitStack() as undo:
            undo.push(lambda kind, *_: self._discard(folder, container) if kind else None)
            self.failpoints.hit("container.after_create")
            atomic_files.write_json(folder.path / "container.json", handle)
            if not self._win(folder, container):
                raise StartFailed("its start file is taken")
            undo.pop_all()  # from here on its folder tells what becomes of it
        self.failpoints.hit("container.after_start_file")
        if spec.not_after is not None and boot_clock() >= spec.not_after:
            return self._settled(folder, container, handle)
        return self._start_once(folder, container, handle)

    def _request(self, spec: StartSpec, ask: ContainerAsk) -> CreateRequest:
        """What the engine is to be asked; raises `NotReady` where it is away, and `UnsupportedRun`."""
        try:
            facts = self.engine.ping()
        except (EngineAway, EngineRefused) as exc:
            raise NotReady(str(exc)) from exc
        try:
            return create_request(ask, self._identity(spec), spec.limits, self.options, facts)
        except (TypeError, ValueError, KeyError, AttributeError) as exc:
            if isinstance(exc, DeployError):
                raise
            raise StartFailed(f"its settings cannot be used: {exc}") from exc

    def _handle_of(self, spec: StartSpec) -> dict[str, Any]:
        """The facts that the next worker needs, should it have nothing but the container."""
        return {
            "host": self.host,
            "boot_id": self.boot_id,
            "stop_grace": spec.limits.stop_grace,
            "log_limit": spec.limits.log_limit,
        }

    def _start_once(self, folder: RunFolder, container: Container, handle: Mapping[str, Any]) -> StartedRun:
        try:
            container.start()
        except EngineRefused as exc:
            # as a rule it has not begun; an engine may also fail after it has
            why = f"the engine refuses to start its container: {refused_text(exc)}"
            return self._settled(folder, container, handle, why)
        except EngineAway as exc:
            # nobody knows whether the engine carries the call out
            logger.warning("start of a container got no answer", extra={**folder.fields, "error": str(exc)})
            return self._settled(folder, container, handle)
        self.failpoints.hit("container.after_start")
        return self._started(folder, container, handle)

    def _settled(
        self, folder: RunFolder, container: Container, handle: Mapping[str, Any], refused: str | None = None
    ) -> StartedRun:
        """The run, if it has begun after all; raises `StartFailed` where it never will."""
        started = self._settle_start(folder, container, handle, refused)
        if started is None:
            raise StartFailed(refused or "it was too late to start its container")
        return started

    def _win(self, folder: RunFolder, container: Container) -> bool:
        record = {"v": 1, "by": "container", "id": container.id, "boot_id": self.boot_id}
        fd = atomic_files.create_once(folder.path / "start", record)
        if fd is None:
            return False
        os.close(fd)
        return True

    def _discard(self, folder: RunFolder, container: Container) -> None:
        """Remove what was created and is not to begin, if the engine answers; else its reaper does."""
        try:
            container.remove()
        except (EngineAway, EngineRefused) as exc:
            logger.info("container is removed later", extra={**folder.fields, "error": str(exc)})

    def _started(self, folder: RunFolder, container: Container, handle: Mapping[str, Any]) -> ContainerRun:
        run = self._run(folder, container, handle)
        run.note_start()
        return run

    # -- adoption

    def adopt(self, folder: Path) -> StartedRun | None:
        run = RunFolder(folder)
        if run.abandon("its worker ended before it was started"):
            self._drop_container_of(run)
            return None
        start, record = run.start() or {}, run.exit_record()
        if record is not None and not record.get("begun"):
            return None  # its start has failed, or came too late
        handle = run.started() or atomic_files.read_json(run.path / "container.json") or {}
        container = Container(self.engine, str(start.get("id") or handle.get("id")))
        unsettled = run.started() is None and record is None
        if unsettled and not self.shut:
            return self._settle_start(run, container, handle)
        # an engine that is away is not waited for here: the run is watched, and what has not begun is told as such
        return self._run(run, container, handle)

    def _settle_start(
        self, run: RunFolder, container: Container, handle: Mapping[str, Any], refused: str | None = None
    ) -> StartedRun | None:
        """Find out whether a container has begun whose start call has failed, or was perhaps never sent.

        None: it has not, and never will. That is told as too late, unless the start was `refused` with a sentence.
        """
        while True:
            try:
                state = container.state()
                if state is None or not state.never_began:
                    return self._started(run, container, handle)
                if container.remove():
                    break
            except (EngineAway, EngineRefused) as exc:
                logger.warning("waiting for the engine to learn of a start", extra={**run.fields, "error": str(exc)})
            self.wait(_AGAIN_SECONDS)
        end = Exit(error=refused or "its container was not started in time", ended_at=time.time())
        record = {"v": 1, "begun": False, **({} if refused else {"late": True})}
        atomic_files.write_json(run.path / "exit.json", {**end.to_record(), **record})
        return None

    def _drop_container_of(self, run: RunFolder) -> None:
        """Remove what an earlier worker has created for this attempt and not started, if the engine answers."""
        labels = {FLEET: self.fleet, HOST: self.host_key, RUN: run.run_id, CLAIM: run.claim}
        try:
            found = listed(self.engine, labels)
        except (EngineAway, EngineRefused) as exc:
            logger.info("container is removed later", extra={**run.fields, "error": str(exc)})
            return
        for one in found:
            self._discard(run, one.container)

    # -- the runs

    def _run(self, folder: RunFolder, container: Container, handle: Mapping[str, Any]) -> ContainerRun:
        known = self._runs.get(container.id)
        if known is not None and not known.closed:
            return known  # a second one would find that the first has removed it
        run = ContainerRun(
            folder=folder,
            container=container,
            started=handle,
            events=self.events,
            log_limit=int(handle.get("log_limit") or 0),
            holes=self.holes,
            on_over=self._over,
            hit=self.failpoints.hit,
        )
        self._runs[container.id] = run
        return run.watch()

    def _died(self, container: str) -> None:
        run = self._runs.get(container)
        if run is not None:
            run.died()

    def _over(self, run: ContainerRun) -> None:
        self._runs.pop(run.container.id, None)

    def _identity(self, spec: StartSpec) -> Identity:
        run = RunFolder(spec.folder)
        return Identity(
            fleet=self.fleet,
            host=self.host_key,
            worker=self.worker,
            run_id=spec.run_id,
            claim=spec.claim,
            facts={**(run.intent() or {}), "handle": self._handle_of(spec)},
            part="hooks" if "hooks" in spec.folder.parent.name else "run",
        )

    def close(self) -> None:
        self.events.close()
        self.leftovers.close()


def _ask(spec: StartSpec) -> ContainerAsk:
    if spec.container is None:
        raise StartFailed("nothing says in which image it is to run")
    return spec.container
