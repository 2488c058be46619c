"""Restore: claims that Redis has lost and that no worker tells of, made again from what the API shows, as missing.

After a loss of Redis each worker writes again what it holds. A run whose host is away as well would be known to nobody,
and stay Running for ever. The API still knows under which claim it was launched, so the leader makes that claim again:
from then on it is a run that is not heard of, as any other (poller/lost.py), and its host is heard of if it comes back.

Another fleet of the same name may use the same API, with a Redis of its own. Its runs are none of ours to tell as lost:
the call that has claimed a run says through which ledger.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flowfleet.api.client import EndApi, RunState, UnfinishedRun
from flowfleet.api.life import LifeApi
from flowfleet.errors import ApiRejected
from flowfleet.flow_run import FlowRun, Route
from flowfleet.ledger.claims import UNKNOWN_WORKER, Claims
from flowfleet.ledger.gate import Gate
from flowfleet.ledger.ledger_id import ledger_of
from poller.claiming import term_checked
from poller.metrics import PollerMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftAlone:
    """Why nothing is done about an unknown run, and what people can do."""

    why: str
    remedy: str = ""


UNTOLD = LeftAlone("the API does not tell how it was launched")
OF_OTHERS = LeftAlone("somebody else has launched it, or has claimed it since")
OF_ANOTHER_LEDGER = LeftAlone(
    "it was claimed through another Redis, or before this one was emptied together with all pollers and workers",
    "if another fleet of this name runs it, give each a name of its own by --fleet; if that fleet is gone, "
    "`flowfleet cancel --now RUN` ends the run",
)


@dataclass
class Restorer:
    """The leader's second look at runs that a sweep has found launched by this fleet and unknown to the ledger."""

    life: LifeApi
    ends: EndApi
    claims: Claims
    gate: Gate
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
        ledgers = frozenset(self.gate.ledgers())
        left: dict[str, tuple[UnfinishedRun, LeftAlone]] = {}
        for found in unknown:
            state = states.get(found.state.run_id)
            if state is not None and not _over(state) and (reason := self._one(term, found, ledgers)):
                left[found.state.run_id] = (found, reason)
        self._tell(left)

    def _one(self, term: int, found: UnfinishedRun, ledgers: frozenset[str]) -> LeftAlone | None:
        """Restore the claim of one run; why it is left alone, or None when there is nothing left to do about it now."""
        run_id = found.state.run_id
        try:
            origin = self.life.origin(run_id, self.fleet)
        except ApiRejected as exc:
            logger.warning("the API does not tell how a run was launched", extra={"run_id": run_id, "error": str(exc)})
            return UNTOLD
        self.progressed()
        if origin is None or found.route is None:
            return OF_OTHERS
        # a worker's name tells nothing: hosts of two fleets may bear the same
        if ledger_of(origin.call) not in ledgers:
            return OF_ANOTHER_LEDGER
        run = _flow_run(found, found.route)
        worker = origin.worker or UNKNOWN_WORKER
        outcome = term_checked(self.claims.restore(term, run, origin.claim, origin.call, worker))
        names = {"run_id": run_id, "claim": origin.claim, "worker": worker, "run_name": run.name}
        if outcome.moved:
            logger.warning("the claim of a run was lost with Redis, and its host is not heard of", extra=names)
        else:
            # its worker has told of it since, or it ended in order just now
            logger.info("the claim of a run is not restored", extra={**names, "refusal": outcome.refusal})
        return None

    def _tell(self, left: Mapping[str, tuple[UnfinishedRun, LeftAlone]]) -> None:
        for run_id in left.keys() - self._said:
            found, reason = left[run_id]
            logger.warning(
                "run launched by this fleet is unknown to the ledger, left alone",
                extra={
                    "run_id": run_id,
                    "state": found.state.name,
                    "worker": found.worker,
                    "why": reason.why,
                    "remedy": reason.remedy.replace("RUN", run_id),
                },
            )
        self._said = frozenset(left)
        self.metrics.unknown.set(len(left))


def _over(state: RunState) -> bool:
    """Whether the run needs no word of ours: it has ended, or goes on by itself and needs no process for that."""
    return state.kind.terminal or state.waits or state.comes_back


def _flow_run(found: UnfinishedRun, route: Route) -> FlowRun:
    due = found.due or found.state.scheduled or datetime.now(UTC)
    return FlowRun(run_id=found.state.run_id, name=found.state.run_name, route=route, due=due)
