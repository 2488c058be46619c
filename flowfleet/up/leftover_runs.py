"""Leftover runs: runs whose worker died before it ended them; a shim outlives its worker, but must not outlive `up`."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from flowfleet.local.child import wait_until
from workers.deployers.subprocess_run import SubprocessRun
from workers.deployment import StopReason
from workers.host import Abilities, Host
from workers.state.run_folders import RunFolder
from workers.stop import Stop

#: a shim ends what is left of a run's group within 5 s; after that `SubprocessRun` does so itself, within 5 s too
_GONE_SECONDS = 12.0


def end_all(state: Path, environ: Mapping[str, str]) -> int:
    """Kill all live runs of the workers whose state folders are below `state`; returns how many there were."""
    found = list(_unsettled(state, environ))
    try:
        alive = [run for run in found if run.poll() is None]
        for run in alive:
            with contextlib.suppress(OSError):  # a full disk keeps no run alive: it is killed past its shim then
                worker = f"{run.folder.path.parents[1].name}@{run.host.name}"
                run.folder.write_stop(Stop(reason=StopReason.WORKER), worker)
        wait_until(lambda: not [run for run in alive if _still_there(run)], _GONE_SECONDS)
    finally:
        for run in found:
            run.close()
    return len(alive)


def _still_there(run: SubprocessRun) -> bool:
    if run.poll() is not None:
        return False
    # again at each look: a shim that dies just now loses the request, and then the run itself has to be killed
    run.kill()
    return True


def _unsettled(state: Path, environ: Mapping[str, str]) -> Iterator[SubprocessRun]:
    """Runs of this boot that no worker has finished with; `SubprocessRun` checks that a pid is still its process."""
    host, abilities = Host.probe(environ), Abilities.probe(environ)
    for path in sorted(state.glob("*/*/runs/*.*")):
        folder = RunFolder(path)
        start = folder.started() or folder.start()
        if start is None or start.get("by") == "abandoned" or start.get("boot_id") != host.boot_id:
            continue
        if not folder.settled() and not folder.cleared():
            yield SubprocessRun(folder=folder, host=host, abilities=abilities, started=start)
