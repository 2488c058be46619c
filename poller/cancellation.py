"""Cancellation: the leader's look for runs of its claims that somebody wants cancelled, in a thread of its own.

Claiming can keep the loop for a minute, and a cancel is to be found within seconds. What is found goes to the claim,
where it refuses a start and comes with each renewal; the claim is told again when a loss of Redis has taken that away.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flowfleet.api.client import EndApi, OrderApi, RunState, StateType
from flowfleet.api.traits import Traits
from flowfleet.errors import ApiError, LedgerError
from flowfleet.failpoints import Failpoints
from flowfleet.guard import guarded
from flowfleet.ledger.claims import CancelHow, Claim, Claims, State
from flowfleet.retry import RetrySchedule

logger = logging.getLogger(__name__)

#: how often the API is asked for runs that are being cancelled; a hint hurries that, and claims are all that is looked
#: at while there are none
LOOK_SECONDS = 1.5
#: how soon after a look a hint may bring the next one
HURRIED_SECONDS = 0.3
#: how often the states of all begun runs are read
STATES_SECONDS = 30.0
#: the most that may be missing at the API at once, and how long more are waited for: a server that has lost its data,
#: or another one behind its address, says of every run that it is gone
FEW = 3
MANY_GONE_SECONDS = 120.0

#: states of claims whose process may live: an end at the API that is not ours is no end of it
BEGUN = frozenset({State.STARTING, State.RUNNING, State.MISSING, State.JUDGED})


@dataclass
class Cancellation:
    """The look itself. It needs no term: whoever says it, a run is cancelled because the API says so."""

    orders: OrderApi
    ends: EndApi
    claims: Claims
    traits: Traits
    failpoints: Failpoints
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        #: claim id → since when the API shows its run as Cancelled, or not at all
        self._over_since: dict[str, float] = {}
        self._next_states = 0.0

    def look(self) -> None:
        """Look once at all live claims. Raises `ApiError` and `LedgerError`; then nothing is known, and nobody ends."""
        live = [claim for claim in self.claims.live() if claim.state is not State.ENDED]
        self._over_since = {claim.claim: at for claim in live if (at := self._over_since.get(claim.claim)) is not None}
        unasked = {claim.run_id: claim for claim in live if claim.cancel is CancelHow.NONE}
        if unasked:
            self._act(unasked, self.orders.under_cancel({run: claim.route for run, claim in unasked.items()}))
        begun = {claim.run_id: claim for claim in live if claim.state in BEGUN and claim.cancel is not CancelHow.OVER}
        self._look_at_states(begun)

    def _act(self, claims: Mapping[str, Claim], found: Mapping[str, RunState]) -> None:
        for run_id, state in found.items():
            claim = claims.get(run_id)
            if claim is None:
                continue
            if state.kind is StateType.CANCELLED and claim.state in BEGUN:
                self._over_since.setdefault(claim.claim, self.clock())  # its own engine may have written that
            else:
                asked = state.message.removeprefix("Cancelled ")  # by our own command: by whom, and why
                self._tell(claim, CancelHow.ASKED, asked or f"{state.name} at the Prefect API")

    def _look_at_states(self, begun: Mapping[str, Claim]) -> None:
        """Read the states of all begun runs when it is time, and else of those that are about to be called over."""
        now = self.clock()
        if now >= self._next_states:
            asked, self._next_states = begun, now + STATES_SECONDS
        else:
            asked = {run: claim for run, claim in begun.items() if self._stood(claim) >= self._patience()}
        if not asked:
            return
        states = self.ends.states(sorted(asked))
        gone = [claim for run, claim in asked.items() if run not in states]
        patience = self._patience()
        if len(gone) > FEW and 2 * len(gone) > len(begun):
            patience = MANY_GONE_SECONDS
            logger.warning(
                "the Prefect API does not know most of the runs that have begun, none is ended for that yet",
                extra={"runs": len(gone), "of": len(begun), "waits_seconds": patience},
            )
        for run, claim in asked.items():
            state = states.get(run)
            if state is None:
                self._over(claim, "deleted at the Prefect API", patience)
            elif state.kind is StateType.CANCELLED:
                self._over(claim, _why(state), self._patience())
            else:
                self._over_since.pop(claim.claim, None)

    def _patience(self) -> float:
        """How long a process may live on when its run is Cancelled: its engine writes that itself before it ends."""
        return self.traits.cancelled_ends_seconds

    def _stood(self, claim: Claim) -> float:
        since = self._over_since.get(claim.claim)
        return -1.0 if since is None else self.clock() - since

    def _over(self, claim: Claim, why: str, patience: float) -> None:
        self._over_since.setdefault(claim.claim, self.clock())
        if self._stood(claim) >= patience:
            self._tell(claim, CancelHow.OVER, why)

    def _tell(self, claim: Claim, how: CancelHow, why: str) -> None:
        self.failpoints.hit("cancel.found")
        outcome = self.claims.cancel(claim.run_id, claim.claim, how, why)
        self.failpoints.hit("cancel.after_field")
        if outcome.moved:
            names = {"run_id": claim.run_id, "claim": claim.claim, "run_name": claim.name}
            logger.info("run is to be cancelled", extra={**names, "how": how.name.lower(), "why": why})


def _why(state: RunState) -> str:
    return f"{state.name} at the Prefect API" + (f": {state.message}" if state.message else "")


def quiet_outage(neighbour: str) -> RetrySchedule:
    """The outage of a neighbour for this thread: it stays quiet, since the loop meets it too and tells it."""
    return RetrySchedule(neighbour, longest_seconds=5.0, level=logging.DEBUG)


@dataclass
class CancellationThread:
    """The thread that looks while this poller leads. It waits for a neighbour that is away, which the loop tells."""

    cancellation: Cancellation
    leads: Callable[[], bool]
    outages: tuple[RetrySchedule, RetrySchedule]

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._hurried = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancellation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for its end; one that waits for an answer is left behind."""
        self._stopped.set()
        self._hurried.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)

    def hurry(self) -> None:
        """Look at once, also at a neighbour that was away."""
        self._hurried.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            wait = LOOK_SECONDS
            with guarded(logger, "the look for cancelled runs failed"):  # one odd run must not hide all others
                wait = self.turn()
            self._stopped.wait(HURRIED_SECONDS)
            self._hurried.wait(max(0.0, wait - HURRIED_SECONDS))
            self._hurried.clear()

    def turn(self) -> float:
        """Look once, if this poller leads; the seconds until the next look."""
        api, redis = self.outages
        if self.leads():
            try:
                self.cancellation.look()
            except ApiError as error:
                api.failed(error)
                return max(LOOK_SECONDS, api.wait_seconds())
            except LedgerError as error:
                redis.failed(error)
                return max(LOOK_SECONDS, redis.wait_seconds())
            api.over()
            redis.over()
        return LOOK_SECONDS
