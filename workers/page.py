"""WorkerPage: what a worker serves under `--agent-address`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from flowfleet.monitor.run_output import read_local
from flowfleet.page.server import Answer, Handler, Request
from workers.records import RunFolder
from workers.vitals import Vitals

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
