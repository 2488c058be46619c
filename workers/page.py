"""Page: what a worker serves under `--agent-address`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flowfleet.monitor.run_output import read_local
from flowfleet.page.server import Handler, PageAnswer, PageRequest
from flowfleet.retry import trouble_of
from workers.background import BackgroundJobs
from workers.lifecycle.consumer import Slots
from workers.lifecycle.heartbeat import WATCH_SECONDS
from workers.metrics import WorkerMetrics
from workers.reporting.outbox import Outbox
from workers.runs.supervisor import Supervisor
from workers.state.attempts import Attempts
from workers.state.ledger_view import LedgerView
from workers.state.run_folders import RunFolder, RunFolders

_RUN_LOG = re.compile(r"/api/runs/([0-9a-f-]{36})/log")


def handlers(health: WorkerHealth) -> Mapping[str, Handler]:
    """The handlers of the worker's page, by path."""

    def answer_log(request: PageRequest) -> PageAnswer:
        found = _RUN_LOG.fullmatch(request.path)
        if found is None:
            return PageAnswer.json({"error": "the path is /api/runs/RUN/log"}, 404)
        for folder in health.folders_of(found[1]):
            if folder.log.exists():
                follow = request.query.get("follow") == "1"
                return PageAnswer(body=read_local(folder.log, follow=follow, ended=partial(_over, folder)))
        return PageAnswer.json({"error": f"this worker has no output of run {found[1]}"}, 404)

    return {
        "/api/health": lambda _: PageAnswer.health(health.facts(), ok=health.alive()),
        "/api/ready": lambda _: PageAnswer.health(health.facts(), ok=health.ready()),
        "/metrics": lambda _: PageAnswer.metrics(health.metrics_text()),
        "/api/runs/": answer_log,
    }


def _over(folder: RunFolder) -> bool:
    """Whether nothing more will be written to the output in this run folder."""
    # the exit record alone is not enough: the shim writes it before it ends what the run has left behind
    return folder.settled() or (folder.exit_record() is not None and not folder.shim_alive())


@dataclass(frozen=True, kw_only=True)
class WorkerHealth:
    """The health of one worker, for its page. It only reads, and may be called from any thread."""

    worker: str
    supervisor: Supervisor
    ledger_view: LedgerView
    attempts: Attempts
    slots: Slots
    outbox: Outbox
    metrics: WorkerMetrics
    runs: RunFolders
    to_api: BackgroundJobs

    def alive(self) -> bool:
        """Whether the supervisor's loop, which watches all runs, still goes round."""
        return time.monotonic() - self.supervisor.seen < WATCH_SECONDS

    def ready(self) -> bool:
        """Whether the worker lives, has adopted its runs, is in touch with Redis, and is not stopping."""
        return (
            self.alive() and self.ledger_view.ready.is_set() and self.ledger_view.connected and not self.slots.stopping
        )

    def facts(self) -> dict[str, Any]:
        """The facts that the answers of health and ready carry."""
        return {
            "worker": self.worker,
            "slots": self.slots.slots,
            "busy": len(self.attempts.occupying()),
            "wanted": self.ledger_view.wanted,
            "gate": "open" if self.ledger_view.gate_open else "shut",
            "routes": sorted(map(str, self.ledger_view.served)),
            "api": trouble_of(error) if (error := self.to_api.error) else "ok",
            "unreported": self.outbox.count(),
        }

    def metrics_text(self) -> bytes:
        """The text of the metrics page, with the gauges as they are now."""
        self.metrics.outbox.set(self.outbox.count())
        self.metrics.redis_up.set(1.0 if self.ledger_view.connected else 0.0)
        return self.metrics.page()

    def folders_of(self, run_id: str) -> list[RunFolder]:
        """The folders of all attempts at this run that the worker has, newest first."""
        found = [folder for folder in self.runs.scan() if folder.run_id == run_id]
        # a folder that was taken over from a dead sibling worker stays where that worker made it
        kept = [attempt.folder for attempt in self.attempts.all() if attempt.held.run_id == run_id]
        found += [folder for folder in kept if folder not in found and folder.path.is_dir()]
        return sorted(found, key=lambda folder: folder.path.stat().st_mtime, reverse=True)
