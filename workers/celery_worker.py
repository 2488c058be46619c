"""CeleryWorker: Celery's worker without its signal handlers, its banner, its logging and its warning about root."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from celery import Celery
from celery.platforms import SecurityWarning

from flowfleet.settings.classes import WorkerSettings


def make(app: Celery, name: str, settings: WorkerSettings) -> Any:
    """A worker that reads no queue yet; `start` blocks, `exitcode` tells how it ended."""
    base: Any = app.Worker

    class QuietWorker(base):  # type: ignore[misc]
        """The signals are ours: Celery's handlers would wait for every run."""

        def install_platform_tweaks(self, worker: Any) -> None:
            """No handlers."""

        def setup_logging(self, colorize: Any = None) -> Any:
            """Logs are set up already."""
            del colorize
            return True

        def set_process_status(self, info: str) -> None:
            """The process keeps the name of its command."""

    # a line for each task says what our own lines say better
    for noisy in ("celery.worker.strategy", "celery.app.trace", "celery.worker.consumer.consumer"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    with warnings.catch_warnings():
        # what it warns of is pickle; we take JSON only, and flows may need root
        warnings.simplefilter("ignore", SecurityWarning)
        return QuietWorker(
            hostname=name,
            pool="threads",
            # one more than slots, for a launch that hands back while all others are taken
            concurrency=settings.slots + 1,
            quiet=True,
            task_events=settings.task_events,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel=settings.log_level,
        )
