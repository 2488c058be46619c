"""WorkerPage: what a worker serves under `--agent-address`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flowfleet.monitor.run_output import read_local
from flowfleet.page.server import Answer, Handler, Request
from workers.lifecycle.consumer import Slots
from workers.lifecycle.heartbeat import WATCH_SECONDS, Watcher
from workers.metrics import Meters
from workers.reporting.outbox import Outbox
from workers.state.attempts import Attempts
from workers.state.ledger_view import Standing
from workers.state.run_folders import RunFolder, RunRecords

_RUN_LOG = re.compile(r"/api/runs/([0-9a-f-]{36})/log")


def handlers(vitals: Vitals) -> Mapping[str, Handler]:
    """The paths and what they answer."""

    def health(_: Request) -> Answer:
        alive = vitals.alive()
        return Answer.json({"ok": alive, **vitals.facts()}, 200 if alive else 503)

    def ready(_: Request) -> Answer:
        is_ready = vitals.ready()
        return Answer.json({"ok": is_ready, **vitals.facts()}, 200 if is_ready else 503)

    def metrics(_: Request) -> Answer:
        return Answer(body=vitals.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    def run_log(request: Request) -> Answer:
        found = _RUN_LOG.fullmatch(request.path)
        if found is None:
            return Answer.json({"error": "the path is /api/runs/RUN/log"}, 404)
        for folder in vitals.folders_of(found[1]):
            if folder.log.exists():
                follow = request.query.get("follow") == "1"
                return Answer(body=read_local(folder.log, follow=follow, ended=partial(_over, folder)))
        return Answer.json({"error": f"this worker has no output of run {found[1]}"}, 404)

    return {"/api/health": health, "/api/ready": ready, "/metrics": metrics, "/api/runs/": run_log}


def _over(folder: RunFolder) -> bool:
    """Nothing more will be written to its output."""
    # the record alone is not enough: its shim writes it before it ends what the run has left behind
    return folder.settled() or (folder.exit_record() is not None and not folder.shim_alive())


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """Reads only, from any thread."""

    worker: str
    watcher: Watcher
    standing: Standing
    attempts: Attempts
    slots: Slots
    outbox: Outbox
    meters: Meters
    runs: RunRecords

    def alive(self) -> bool:
        """Whether the one thread that watches goes round."""
        return time.monotonic() - self.watcher.seen < WATCH_SECONDS

    def ready(self) -> bool:
        """Adopted, in touch with Redis, and not stopping."""
        return self.alive() and self.standing.ready and self.standing.connected and not self.slots.stopping

    def facts(self) -> dict[str, Any]:
        """For health and ready."""
        return {
            "worker": self.worker,
            "slots": self.slots.slots,
            "busy": len(self.attempts.occupying()),
            "wanted": self.standing.wanted,
            "gate": "open" if self.standing.gate_open else "shut",
            "routes": sorted(map(str, self.standing.served)),
        }

    def metrics(self) -> bytes:
        """The metrics page, its gauges as they are now."""
        self.meters.outbox.set(self.outbox.pending())
        self.meters.redis_up.set(1.0 if self.standing.connected else 0.0)
        return self.meters.page()

    def folders_of(self, run_id: str) -> list[RunFolder]:
        """The folders of a run here, newest first."""
        found = [folder for folder in self.runs.scan() if folder.run_id == run_id]
        # what a dead sibling has made stays where it was made
        kept = [attempt.folder for attempt in self.attempts.all() if attempt.held.run_id == run_id]
        found += [folder for folder in kept if folder not in found and folder.path.is_dir()]
        return sorted(found, key=lambda folder: folder.path.stat().st_mtime, reverse=True)
