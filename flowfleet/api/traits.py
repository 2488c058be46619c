"""Traits: what differs between the two Prefect APIs that poller and workers must know, a field for each behaviour."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The traits of one Prefect API and of the engine that goes with it."""

    #: the labels of a run decide who takes it; elsewhere its pool and work queue do
    by_labels: bool
    #: only runs tell which routes there are, and none can be asked for; elsewhere a pool lists its queues
    routes_from_runs: bool
    #: how soon after something has happened due runs are listed again: after each run Prefect 1's own agents ask within
    #: 0.25 s (prefect 1.4.1), and there a listing costs one request; runs that are created one after the other should
    #: not wait longer with us
    busy_seconds: float
    #: the engine waits until its run is due, so that a run may be claimed early; elsewhere it would start at once
    engine_waits: bool
    #: the server refuses a repeat of a claim for 30 s, though the run is still Scheduled and nobody's, for the first
    #: call may yet be carried out (source: Prefect Server); elsewhere the repeat is taken, or the refusal is final
    refuses_for_a_while: bool
    #: the state of a run says Launching before anything is started, so that one in Submitted was never started
    has_launching: bool
    #: the server puts runs back to Scheduled whose heartbeats fail, though they run (Lazarus; source: Prefect Server)
    requeues_running: bool
    #: of several executors that ask for a run the server lets one win; elsewhere it keeps no lasting lock on a claim,
    #: and another agent may start the run once more (source: Prefect Server)
    locks_claims: bool
    #: the engine of a run sends heartbeats to the API by itself; elsewhere the API hears of its worker alone
    runs_beat: bool
    #: Crashed is a state; elsewhere a run whose process died is Failed
    has_crashed: bool
    #: who starts an agent is greeted by the agent's name in large letters (prefect 1.4.1)
    greets: bool
    #: the server tells its version
    tells_version: bool
    #: the main versions of prefect whose engines fit, by the last of which people call the API
    prefect_versions: tuple[str, ...]
    #: the engine takes a TERM for a crash of its run, and writes that before it ends (measured with prefect 3.8.8)
    engine_crashes_on_term: bool
    #: how long a process may live on when its run is Cancelled: it may have written that itself, as Prefect 1's engine
    #: does before its tasks end; elsewhere only `prefect flow-run execute`, 0.4 s before it ends (measured)
    cancelled_ends_seconds: float
    #: the engine takes a control session: it hears over it of a cancel, and says how it has ended (prefect 3.9.1)
    engine_takes_session: bool
    #: flows have hooks for a cancel and for a crash, which whoever writes that state runs
    worker_runs_hooks: bool
    #: the engine can be forked from a process that has prefect loaded
    engine_forks: bool
    #: runs that name no folder start in that of their worker, as with Prefect 1's own agent (prefect 1.4.1); elsewhere
    #: each in an empty folder of its own
    runs_start_at_the_worker: bool


_PREFECT1 = Traits(
    by_labels=True,
    routes_from_runs=True,
    busy_seconds=1.0,
    engine_waits=False,
    refuses_for_a_while=True,
    has_launching=False,
    requeues_running=True,
    locks_claims=False,
    runs_beat=True,
    has_crashed=False,
    greets=True,
    tells_version=False,
    prefect_versions=("0", "1"),
    engine_crashes_on_term=False,
    cancelled_ends_seconds=20.0,
    engine_takes_session=False,
    worker_runs_hooks=False,
    engine_forks=True,
    runs_start_at_the_worker=True,
)
_PREFECT3 = Traits(
    by_labels=False,
    routes_from_runs=False,
    busy_seconds=4.0,
    engine_waits=True,
    refuses_for_a_while=False,
    has_launching=True,
    requeues_running=False,
    locks_claims=True,
    runs_beat=False,
    has_crashed=True,
    greets=False,
    tells_version=True,
    prefect_versions=("3",),
    engine_crashes_on_term=True,
    cancelled_ends_seconds=5.0,
    engine_takes_session=True,
    worker_runs_hooks=True,
    engine_forks=False,
    runs_start_at_the_worker=False,
)


def of(backend: str) -> Traits:
    """The traits of this API; for a client, they are its `traits`."""
    return {"prefect1": _PREFECT1, "prefect3": _PREFECT3}[backend]
