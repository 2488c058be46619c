"""Life: what a Prefect 3 API has heard of workers that are cut off from Redis: their heartbeats in their pools."""

from collections.abc import Sequence
from dataclasses import dataclass

from flowfleet.api.life import Silent, cut_off_name
from flowfleet.api.prefect3.pools import pool_path
from flowfleet.api.transport.reading import reading, rows
from flowfleet.api.transport.responses import NotFound
from flowfleet.api.transport.session import Session


@dataclass(frozen=True)
class Life:
    """Reads the workers of pools, one request a pool."""

    session: Session

    def signs(self, silent: Sequence[Silent], fleet: str) -> dict[str, str]:
        """The last heartbeats of the workers of these runs, as cut off from Redis, by run id."""
        beats: dict[str, str] = {}
        for pool in sorted({pool for one in silent for pool in one.pools}):
            beats |= self._beats(pool)
        names = {one.run_id: cut_off_name(fleet, one.worker) for one in silent}
        return {run_id: beats[name] for run_id, name in names.items() if name in beats}

    def _beats(self, pool: str) -> dict[str, str]:
        try:
            workers = self.session.post(pool_path(pool, "workers", "filter"), {"limit": 200})
        except NotFound:
            return {}
        with reading("for the workers of a pool"):
            return {str(row["name"]): str(row.get("last_heartbeat_time") or "") for row in rows(workers)}
