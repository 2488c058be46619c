"""Requeue: cells of the crash matrix in which a run of a lost host is started again by us, on another host."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial

from tests import folders, processes
from tests.chaos import oracle
from tests.chaos.arena import ArenaPart
from tests.chaos.cells import Case, Cell, fired, host_dies, running

#: longer than the matrix has it: a machine that stalls for a lease ends runs of this policy by their own switch
LEASE = ("--lease-seconds", "4", "--on-lost-run", "requeue")
#: when an earlier process is gone must be seen by then, after the thaw
GONE_SECONDS = oracle.THAW_SECONDS + 1.0


def second_host(cell: Cell) -> ArenaPart:
    """A worker of another machine: it sees nothing of the first one's disk."""
    cell.other = "second"
    state = cell.arena.folder / "state" / "elsewhere"
    state.mkdir(parents=True)
    env = {"XDG_STATE_HOME": str(state), "FLOWFLEET_MACHINE_ID": "elsewhere", "FLOWFLEET_BOOT_ID": "elsewhere"}
    return cell.worker("second", env=env, wait=True)


def started_again(cell: Cell, run_id: str, earlier: str) -> None:
    """Wait until another start of the run than the earlier claim's has begun, and the API shows it as running."""

    def again() -> bool:
        marks = cell.arena.marks(run_id)
        told = any(mark[0] == "running" and mark[1] == oracle.last(marks) != earlier for mark in marks)
        return told and cell.arena.state(run_id)["type"].upper() == "RUNNING"

    cell.wait(again, 60, f"run {run_id} to be started again")


def lost_and_requeued(cell: Cell) -> Callable[[], None]:
    """A host dies with all that is on it, another one runs its run again, and then the first one comes back."""
    arena = cell.arena
    cell.poller(*LEASE, wait=True)
    worker = cell.worker(wait=True)
    run_id = cell.create("again", "hold")
    running(cell, run_id)
    earlier = oracle.last(arena.marks(run_id))
    back = arena.kept.pop("worker")
    host_dies(cell, worker, run_id)
    second_host(cell)
    fired(cell)

    def go_on() -> None:
        started_again(cell, run_id, earlier)
        arena.kept["worker"] = back
        arena.release()

    return go_on


def frozen_and_requeued(cell: Cell) -> Callable[[], None]:
    """A host freezes with all that is on it for longer than its lease, and thaws when its run was started elsewhere."""
    arena = cell.arena
    cell.poller(*LEASE, wait=True)
    worker = cell.worker(wait=True)
    run_id = cell.create("again", "hold", pulse=True)
    running(cell, run_id)
    earlier = oracle.last(arena.marks(run_id))
    back = arena.kept.pop("worker")
    host = [worker.pid, *arena.shims(), *processes.marked("FLOWFLEET_CLAIM", earlier)]
    for pid in host:
        processes.kill(pid, signal.SIGSTOP)
    cell.wait(lambda: all(map(processes.stopped, host)), 10, "the host to freeze")
    second_host(cell)
    fired(cell)

    def go_on() -> None:
        started_again(cell, run_id, earlier)
        cell.frozen[run_id] = {earlier: time.clock_gettime(time.CLOCK_BOOTTIME)}
        for pid in host:
            processes.kill(pid, signal.SIGCONT)
        gone = partial(processes.marked, "FLOWFLEET_CLAIM", earlier)
        cell.wait(lambda: not gone(), GONE_SECONDS, "the earlier process to end after the thaw")
        arena.kept["worker"] = back
        # its host has done with it by then: a report of it would stand above Running at the API
        settled = f"state/**/runs/{run_id}.{earlier}/settled"
        cell.wait(lambda: folders.found(arena.folder, settled), 30, "the earlier attempt to be settled")
        assert not arena.ended(run_id), f"the report of the earlier attempt was told: {arena.state(run_id)}"
        arena.release()

    return go_on


#: they take long, and few seeds are enough to vary them
REQUEUE_CASES = (
    *(
        Case(f"lost.{step}", "poller", lost_and_requeued, kind="requeue", seeds=5)
        for step in ("after_miss", "after_judge", "after_api", "after_bury")
    ),
    *(
        Case(f"lost.{step}", "poller", frozen_and_requeued, actions=("kill", "freeze"), kind="frozen", seeds=5)
        for step in ("after_judge", "after_bury")
    ),
)
