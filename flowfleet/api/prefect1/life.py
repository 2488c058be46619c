"""Life: what a Prefect 1 API has heard of runs: the heartbeats that their engines send."""

from collections.abc import Sequence
from dataclasses import dataclass

from flowfleet.api.life import Silent
from flowfleet.api.prefect1.runs import Runs
from flowfleet.api.transport.reading import iso


@dataclass(frozen=True)
class Life:
    """Reads the heartbeats of runs, all in one request."""

    runs: Runs

    def signs(self, silent: Sequence[Silent], fleet: str) -> dict[str, str]:
        """The last heartbeats of these runs, by run id."""
        del fleet
        found = self.runs.many([one.run_id for one in silent])
        return {run_id: iso(run.heartbeat) for run_id, run in found.items() if run.heartbeat is not None}
