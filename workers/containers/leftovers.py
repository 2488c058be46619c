"""Leftovers: containers that nobody looks after any more, found by their labels, and taken up or removed.

A worker that was killed between two steps, or whose disk was lost, leaves containers behind. Only those of our own
fleet on this host are looked at. What runs is never removed; what has ended is, once its end was told.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowfleet.errors import EngineError
from flowfleet.guard import guarded
from workers.containers.container import Listed, listed
from workers.containers.engine import Engine
from workers.containers.request import CLAIM, FACTS, FLEET, HOST, PART, RUN, WORKER
from workers.deployment import CONTAINERS
from workers.shim import atomic_files
from workers.state.run_folders import RunFolder, RunFolders

logger = logging.getLogger(__name__)

EACH_SECONDS = 300.0
#: a container that was created and not started is left alone for so long where nothing tells whose it is
YOUNG_SECONDS = 3600.0


@dataclass(kw_only=True)
class Leftovers:
    """The reaper of one host's containers."""

    engine: Engine
    fleet: str
    host: str
    each_seconds: float = EACH_SECONDS
    #: unix seconds
    clock: Callable[[], float] = time.time
    _closed: threading.Event = field(default_factory=threading.Event, init=False)

    def start(self, runs: RunFolders) -> None:
        """Start the thread, which sweeps every few minutes."""
        threading.Thread(target=self._run, args=(runs,), name="leftovers", daemon=True).start()

    def close(self) -> None:
        """Let the thread end."""
        self._closed.set()

    def _run(self, runs: RunFolders) -> None:
        while not self._closed.wait(self.each_seconds):
            with guarded(logger, "leftover containers could not be looked at"):  # tried again at the next turn
                self.sweep(runs)

    def recover(self, runs: RunFolders, worker: str) -> int:
        """Make the run folders again that the disk has lost, of containers of this worker that have begun; how many."""
        made = 0
        for one in self._all({WORKER: worker}):
            if one.labels.get(PART, "run") != "run" or one.status == "created":
                continue
            if not self._folder(runs, one.labels).path.exists():
                made += _recover(runs, one)
        return made

    def sweep(self, runs: RunFolders) -> int:
        """Remove what has ended and was told, and what was created and can never begin; returns how many."""
        removed = 0
        for one in self._all({}):
            folder = self._folder(runs, one.labels)
            if one.status in ("running", "paused", "restarting") or not self._is_done(folder, one):
                continue
            try:
                removed += one.container.remove()
            except EngineError as exc:
                logger.info("leftover container is not removed", extra={**folder.fields, "error": str(exc)})
        if removed:
            logger.info("leftover containers removed", extra={"containers": removed})
        return removed

    def _is_done(self, folder: RunFolder, one: Listed) -> bool:
        """Whether nobody needs this container any more, which does not run."""
        created = one.status == "created"
        if not folder.path.exists():
            # Nobody has told of it, or its folder was pruned: what has begun is left to `recover` at the next start. A
            # worker of the same host whose folders we do not see may be about to start what was created lately.
            return created and self.clock() - one.created_at > YOUNG_SECONDS
        if created:
            return (folder.start() or {}).get("by") == "abandoned" or folder.exit_record() is not None
        return folder.settled() or folder.exit_record() is not None

    def _all(self, labels: Mapping[str, str]) -> list[Listed]:
        try:
            return listed(self.engine, {FLEET: self.fleet, HOST: self.host, **labels})
        except EngineError as exc:
            logger.info("leftover containers are not looked at now", extra={"error": str(exc)})
            return []

    def _folder(self, runs: RunFolders, labels: Any) -> RunFolder:
        run_id, claim = str(labels.get(RUN)), str(labels.get(CLAIM))
        if labels.get(PART) == "hooks":
            run = runs.find(run_id, claim.removesuffix("-hooks"))
            return RunFolders(run.path / "hooks").get(run_id, claim)
        return runs.find(run_id, claim)


def _recover(runs: RunFolders, one: Listed) -> bool:
    try:
        facts = json.loads(one.labels.get(FACTS) or "{}")
    except ValueError:
        facts = {}
    run_id, claim = str(one.labels.get(RUN)), str(one.labels.get(CLAIM))
    if "call" not in facts:
        return False
    intent = {name: value for name, value in facts.items() if name not in ("v", "handle")}
    folder = runs.create(run_id, claim, intent)
    if folder is None:
        return False
    start = {"v": 1, "by": "container", "id": one.container.id}
    fd = atomic_files.create_once(folder.path / "start", start)
    if fd is not None:
        os.close(fd)
    handle = {"v": 1, **facts.get("handle", {}), "kind": CONTAINERS, "id": one.container.id}
    atomic_files.write_json(folder.path / "started.json", handle)
    logger.warning("run folder was lost, and is made again from its container", extra=folder.fields)
    return True
