"""Restore: claims that Redis has lost and that no worker tells of, made again from what the API shows, as missing.

After a loss of Redis each worker writes again what it holds. A run whose host is away as well would be known to nobody,
and stay Running for ever. The API still knows under which claim it was launched, so the leader makes that claim again:
from then on it is a run that is not heard of, as any other (poller/lost.py), and its host is heard of if it comes back.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flowfleet.api.client import EndApi, RunState, UnfinishedRun
from flowfleet.api.life import LifeApi
from flowfleet.errors import ApiRejected
from flowfleet.flow_run import FlowRun, Route
from flowfleet.ledger.claims import UNKNOWN_WORKER, Claims
from poller.claiming import term_checked
from poller.metrics import PollerMetrics

logger = logging.getLogger(__name__)


@dataclass
class Restorer:
    """The leader's second look at runs that a sweep has found launched by this fleet and unknown to the ledger."""

    life: LifeApi
    ends: EndApi
    claims: Claims
    fleet: str
    metrics: PollerMetrics
    #: called after each answer of the API
    progressed: Callable[[], object] = lambda: None
    #: runs of which it was said that they are left alone
    _said: frozenset[str] = field(default=frozenset(), init=False)

    def restore(self, term: int, unknown: Sequence[UnfinishedRun]) -> None:
        """Make missing claims of these runs. Raises `ApiUnavailable` and `TermLost`.

        Call it only when the gate is open: by then each worker has had a TTL to say what it holds.
        """
        if not unknown:
            self._said = frozenset()
            return
        # read once more: what has ended since the sweep listed it has no claim because its worker has released it
        states = self.ends.states([found.state.run_id for found in unknown])
        self.progressed()
        left: dict[str, UnfinishedRun] = {}
        for found in unknown:
            state = states.get(found.state.run_id)
            if state is not None and not _over(state) and not self._one(term, found):
                left[found.state.run_id] = found
        self._tell(left)

    def _one(self, term: int, found: UnfinishedRun) -> bool:
        """Restore the claim of one run; True when there is nothing left to do about it now."""
        run_id = found.state.run_id
        try:
            origin = self.life.origin(run_id, self.fleet)
        except ApiRejected as exc:
            logger.warning("the API does not tell how a run was launched", extra={"run_id": run_id, "error": str(exc)})
            return False
        self.progressed()
        if origin is None or found.route is None:
            return False
        run = _flow_run(found, found.route)
        worker = origin.worker or UNKNOWN_WORKER
        outcome = term_checked(self.claims.restore(term, run, origin.claim, origin.call, worker))
        names = {"run_id": run_id, "claim": origin.claim, "worker": worker, "run_name": run.name}
        if outcome.moved:
            logger.warning("the claim of a run was lost with Redis, and its host is not heard of", extra=names)
        else:
            # its worker has told of it since, or it ended in order just now
            logger.info("the claim of a run is not restored", extra={**names, "refusal": outcome.refusal})
        return True

    def _tell(self, left: dict[str, UnfinishedRun]) -> None:
        for run_id in left.keys() - self._said:
            logger.warning(
                "run launched by this fleet is unknown to the ledger, left alone",
                extra={"run_id": run_id, "state": left[run_id].state.name, "worker": left[run_id].worker},
            )
        self._said = frozenset(left)
        self.metrics.unknown.set(len(left))


def _over(state: RunState) -> bool:
    """Whether the run needs no word of ours: it has ended, or goes on by itself and needs no process for that."""
    return state.kind.terminal or state.waits or state.comes_back


def _flow_run(found: UnfinishedRun, route: Route) -> FlowRun:
    due = found.due or found.state.scheduled or datetime.now(UTC)
    return FlowRun(run_id=found.state.run_id, name=found.state.run_name, route=route, due=due)
