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
#: a run counts as deleted when no look of so long has found it: one answer without it may be a fault of the API's
GONE_SECONDS = 30.0

#: how long a process may live on when its run is Scheduled at an API that would hand it out: an engine that has put its
#: run off ends within that time, and any other process belongs to an attempt that somebody has replaced by hand
PUT_OFF_SECONDS = 30.0

#: states of claims whose process may live: an end at the API that is not ours is no end of it
BEGUN = frozenset({State.STARTING, State.RUNNING, State.MISSING, State.JUDGED})


@dataclass(frozen=True, kw_only=True)
class Over:
    """What the API shows of a run whose process is not wanted any more, and for how long the process may live on."""

    kind: StateType | None  # None: there is no such run
    why: str
    patience: float

    @property
    def doubtful(self) -> bool:
        """Whether a server without its last data would show the same: only a cancel is somebody's word."""
        return self.kind is not StateType.CANCELLED


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
        #: claim id → what the API shows, by which its run is over, and since when
        self._seen: dict[str, tuple[Over, float]] = {}
        self._next_states = 0.0

    def look(self) -> None:
        """Look once at all live claims. Raises `ApiError` and `LedgerError`; then nothing is known, and nobody ends."""
        live = [claim for claim in self.claims.live() if claim.state is not State.ENDED]
        self._seen = {claim.claim: seen for claim in live if (seen := self._seen.get(claim.claim)) is not None}
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
                self._see(claim, self._over(claim, state))  # its own engine may have written that
            else:
                asked = state.message.removeprefix("Cancelled ")  # by our own command: by whom, and why
                self._tell(claim, CancelHow.ASKED, asked or "at the Prefect API")

    def _look_at_states(self, begun: Mapping[str, Claim]) -> None:
        """Read the states of all begun runs when it is time, and else of those that are about to be called over."""
        now = self.clock()
        if now >= self._next_states:
            asked, self._next_states = begun, now + STATES_SECONDS
        else:
            asked = {run: claim for run, claim in begun.items() if self._due(claim)}
        if not asked:
            return
        states = self.ends.states(sorted(asked))
        found = {run: self._over(claim, states.get(run)) for run, claim in asked.items()}
        doubtful = sum(over is not None and over.doubtful for over in found.values())
        at_least = 0.0
        if doubtful > FEW and 2 * doubtful > len(begun):
            at_least = MANY_GONE_SECONDS
            logger.warning(
                "the Prefect API does not know most of the runs that have begun, or hands them out: none is ended yet",
                extra={"runs": doubtful, "of": len(begun), "waits_seconds": at_least},
            )
        for run, claim in asked.items():
            over = found[run]
            stood = self._see(claim, over)
            if over is not None and stood >= max(over.patience, at_least if over.doubtful else 0.0):
                self._tell(claim, CancelHow.OVER, over.why)

    def _over(self, claim: Claim, state: RunState | None) -> Over | None:
        """Why the process of a run is not wanted any more, by what the API shows; None: it is."""
        # the engine may have written Cancelled itself, and then it ends
        patience = self.traits.cancelled_ends_seconds
        if state is None:
            return Over(kind=None, why="deleted at the Prefect API", patience=GONE_SECONDS)
        if state.kind is StateType.CANCELLED:
            return Over(kind=state.kind, why=_why(state), patience=patience)
        due_anew = state.kind is StateType.SCHEDULED and not state.held and not self.traits.requeues_running
        if due_anew and claim.state is State.RUNNING:
            why = "the run is due again at the Prefect API, and its earlier process ends first"
            return Over(kind=state.kind, why=why, patience=PUT_OFF_SECONDS)
        return None

    def _see(self, claim: Claim, over: Over | None) -> float:
        """Note what the API shows of a claim's run now; for how long it has shown this."""
        now = self.clock()
        if over is None:
            self._seen.pop(claim.claim, None)
            return 0.0
        seen, since = self._seen.get(claim.claim, (over, now))
        since = since if seen.kind is over.kind else now
        self._seen[claim.claim] = (over, since)
        return now - since

    def _due(self, claim: Claim) -> bool:
        """Whether the time is up that the process of a run has had since the API showed that it is over."""
        if claim.claim not in self._seen:
            return False
        over, since = self._seen[claim.claim]
        return self.clock() - since >= over.patience

    def _tell(self, claim: Claim, how: CancelHow, why: str) -> None:
        self.failpoints.hit("cancel.found")
        outcome = self.claims.cancel(claim.run_id, claim.claim, how, why, found=True)
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
