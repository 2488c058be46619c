"""Life: what a Prefect 3 API knows of workers that are cut off from Redis, and of the claims that runs have had."""

from collections.abc import Sequence
from dataclasses import dataclass

from flowfleet.api.backlog import Rival
from flowfleet.api.client import Mark, StateType
from flowfleet.api.life import LaunchedClaim, Silent, cut_off_name
from flowfleet.api.prefect3.pools import pool_path
from flowfleet.api.prefect3.states import claimed_since
from flowfleet.api.prefect3.writes import LAUNCHING_ON, mark_message
from flowfleet.api.transport.reading import Json, instant, reading, rows
from flowfleet.api.transport.responses import NotFound
from flowfleet.api.transport.session import Session
from flowfleet.flow_run import is_claim_of

_PAGE = 200


@dataclass(frozen=True)
class Life:
    """Reads the workers of pools, one request a pool, and the histories of runs, one request a run."""

    session: Session

    def signs(self, silent: Sequence[Silent], fleet: str) -> dict[str, str]:
        """The last heartbeats of the workers of these runs, as cut off from Redis, by run id."""
        beats: dict[str, str] = {}
        lost = {one.pool_id for one in silent if not one.pools and one.pool_id}
        for pool in sorted({pool for one in silent for pool in one.pools} | self._names(lost)):
            beats |= self._beats(pool)
        names = {one.run_id: cut_off_name(fleet, one.worker) for one in silent}
        return {run_id: beats[name] for run_id, name in names.items() if name in beats}

    def _names(self, pool_ids: set[str]) -> set[str]:
        if not pool_ids:
            return set()
        wanted = {"work_pools": {"id": {"any_": sorted(pool_ids)[:_PAGE]}}, "limit": _PAGE}
        pools = self.session.post("/work_pools/filter", wanted)
        with reading("for pools"):
            return {str(pool["name"]) for pool in rows(pools)}

    def _beats(self, pool: str) -> dict[str, str]:
        with reading("for the workers of a pool"):
            workers = _workers(self.session, pool, {})
            return {str(row["name"]): str(row.get("last_heartbeat_time") or "") for row in workers}

    def origin(self, run_id: str, fleet: str) -> LaunchedClaim | None:
        """The claim of the run's last Launching, if that is this fleet's and nothing else has come since."""
        answer = self.session.get(f"/flow_run_states/?flow_run_id={run_id}")
        with reading("for the history of a run"):
            history = sorted(rows(answer), key=lambda state: str(state.get("timestamp") or ""))
            return _origin(history, run_id, Mark(fleet=fleet))


def online_workers(session: Session, pool: str) -> list[Rival]:
    """The workers that are online in this pool, whoever's; one request."""
    with reading("for the workers of a pool"):
        workers = _workers(session, pool, {"workers": {"status": {"any_": ["ONLINE"]}}})
        return [
            Rival(name=str(row["name"]), type="worker", pool=pool, seen=instant(row.get("last_heartbeat_time")))
            for row in workers
        ]


def _workers(session: Session, pool: str, wanted: Json) -> list[Json]:
    try:
        return list(rows(session.post(pool_path(pool, "workers", "filter"), {**wanted, "limit": _PAGE})))
    except NotFound:  # the pool was deleted
        return []


def _origin(history: Sequence[Json], run_id: str, mark: Mark) -> LaunchedClaim | None:
    """What the last Launching of this fleet says; the mark of a process says less, since it outlives its attempt."""
    launching = mark_message(mark, LAUNCHING_ON)
    ours = [state for state in history if _pending(state) and str(state.get("message") or "").startswith(launching)]
    if not ours or StateType(history[-1]["type"]).terminal:
        return None
    claim = str((ours[-1].get("state_details") or {}).get("transition_id") or "")
    if not claim or claimed_since(history, run_id, claim):
        return None
    calls = [str((state.get("state_details") or {}).get("transition_id")) for state in history if _pending(state)]
    worker = str(ours[-1]["message"]).removeprefix(launching)
    return LaunchedClaim(
        claim=claim,
        call=next((call for call in calls if is_claim_of(call, run_id, claim)), claim),
        worker=worker if "@" in worker else None,
    )


def _pending(state: Json) -> bool:
    return state.get("type") == StateType.PENDING.value
