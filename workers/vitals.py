"""Vitals: how a worker is, for its page: alive, ready, its numbers, and where the output of a run lies."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from workers.attempts import Attempts
from workers.meters import Meters
from workers.outbox import Outbox
from workers.records import RunFolder, RunRecords
from workers.renewal import WATCH_SECONDS, Watcher
from workers.slots import Slots
from workers.standing import Standing


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
