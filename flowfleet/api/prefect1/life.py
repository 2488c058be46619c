"""Life: what a Prefect 1 API knows of runs: the heartbeats of their engines, and the claims that they have had."""

from collections.abc import Sequence
from dataclasses import dataclass

from flowfleet.api.life import LaunchedClaim, Silent
from flowfleet.api.prefect1.runs import Runs
from flowfleet.api.prefect1.states import SUBMITTED, Stamp, kind_of
from flowfleet.api.transport.reading import iso, reading


@dataclass(frozen=True)
class Life:
    """Reads the heartbeats of runs, all in one request, and their histories, one request a run."""

    runs: Runs

    def signs(self, silent: Sequence[Silent], fleet: str) -> dict[str, str]:
        """The last heartbeats of these runs, by run id."""
        del fleet
        found = self.runs.many([one.run_id for one in silent])
        return {run_id: iso(run.heartbeat) for run_id, run in found.items() if run.heartbeat is not None}

    def origin(self, run_id: str, fleet: str) -> LaunchedClaim | None:
        """The claim of the run's last Submitted, if that is this fleet's; it is made before there is a worker."""
        versions = self.runs.versions(run_id, 0)
        with reading("for the history of a run"):
            names = [str(row.get("state") or "") for row in versions]
            if SUBMITTED not in names or kind_of(names[-1]).terminal:
                return None
            last = len(names) - 1 - names[::-1].index(SUBMITTED)
            stamp = Stamp.read(versions[last].get("serialized_state") or {})
        if stamp is None or stamp.fleet != fleet or not stamp.claim or stamp.done:
            return None
        return LaunchedClaim(claim=stamp.claim, call=stamp.call)
