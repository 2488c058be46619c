"""LeftRun: a run whose worker died before it could end it: its shim outlives a worker, but must not outlive `up`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from flowfleet.local.child import wait_until
from workers.deployers.subprocess_run import HostFacts, SubprocessRun
from workers.host import Abilities, Host
from workers.state.run_folders import RunFolder

#: a shim clears a run's group away in at most 5 s, then the worker's way of doing it begins
_GONE_SECONDS = 12.0


def end_all(state: Path, environ: Mapping[str, str]) -> int:
    """Kill what still runs of all workers whose state folders are below `state`; how many runs that were."""
    found = list(_unsettled(state, environ))
    try:
        alive = [run for run in found if run.poll() is None]
        wait_until(lambda: not [run for run in alive if _still_there(run)], _GONE_SECONDS)
    finally:
        for run in found:
            run.close()
    return len(alive)


def _still_there(run: SubprocessRun) -> bool:
    if run.poll() is not None:
        return False
    # at each look anew: a shim that dies just now takes the request with it, and then its run is to be killed itself
    run.kill()
    return True


def _unsettled(state: Path, environ: Mapping[str, str]) -> Iterator[SubprocessRun]:
    """Runs of this boot that no worker has finished with; whose pid it is now, the run itself checks."""
    host = Host.probe(environ)
    parts = HostFacts(host=host, abilities=Abilities.probe(environ))
    for path in sorted(state.glob("*/*/runs/*.*")):
        folder = RunFolder(path)
        start = folder.started() or folder.start()
        if start is None or start.get("by") == "abandoned" or start.get("boot_id") != host.boot_id:
            continue
        if not folder.settled() and not folder.cleared():
            yield SubprocessRun(folder, parts, started=start)
