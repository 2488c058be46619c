"""Loop: the leader's rounds: know what is due, claim what can start, sleep until a run falls due or a hint comes."""

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flowfleet.errors import ApiError, ApiUnavailable, FleetError, LedgerError
from flowfleet.flow_run import FlowRun
from flowfleet.ledger.claims import Claim, Claims
from flowfleet.ledger.roster import Roster, WorkerRow
from flowfleet.retry import RetrySchedule
from poller.capacity import ListingPlan, OfferFilter, free_capacity, listing_plan
from poller.claiming import Claimer
from poller.departure import Departure
from poller.leader import Leadership, TermLost
from poller.lister import Lister
from poller.listing import Clock, Listing
from poller.lost import LostRuns
from poller.metrics import PollerMetrics
from poller.pace import Pace
from poller.presence import Presence
from poller.progress import Progress
from poller.rebuild import Gatekeeper, Sweep
from poller.reconcile import Reconciler
from poller.reinstate import Reinstater
from poller.restore import Restorer
from poller.unfit import UnfitRuns

logger = logging.getLogger(__name__)

#: hints that say that something new may be due
POKES = frozenset({"poke", "due", "wanted"})
FREED = "freed"
#: how long after its start a poll that came before its workers were ready is not counted (`Loop.awaits_workers`)
SERVING_SECONDS = 20.0


class Inbox(Protocol):
    """The inbox of hints that ends the sleep of the loop."""

    def wait(self, seconds: float, gather_seconds: float = 0.0) -> frozenset[str]:
        """Wait for a hint; the kinds of those that came, none when the time is over.

        After the first hint more are gathered for `gather_seconds`.
        """


@dataclass(kw_only=True)
class Loop:
    """The loop of rounds until it is stopped. One bad run, one bad answer, one outage never ends the loop."""

    backend: str
    claims: Claims
    roster: Roster
    leadership: Leadership
    claimer: Claimer
    reconciler: Reconciler
    lost: LostRuns
    sweep: Sweep
    gatekeeper: Gatekeeper
    restorer: Restorer
    presence: Presence
    lister: Lister
    reinstater: Reinstater
    unfit: UnfitRuns
    departure: Departure
    inbox: Inbox
    clock: Clock
    metrics: PollerMetrics
    offer_filter: OfferFilter
    redis_outage: RetrySchedule
    api_outage: RetrySchedule
    progress: Progress
    pace: Pace
    #: None = without an end; a standby counts the rounds in which it would have polled
    max_polls: int | None = None
    #: whether a poll counts only when something could come of it: the gate is open, and what it has found is served
    awaits_workers: bool = False
    tidy: Callable[[], None] = lambda: None
    #: tells the fleet what keeps its leader from the API; None: nothing does
    tell_api: Callable[[FleetError | None], None] = lambda _error: None
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        self.polls = 0
        self._counted = 0
        self.listing = Listing(self.clock)
        self._stopping = threading.Event()
        self._term: int | None = None
        self._began_at = 0.0
        self._outages = 0
        self._hints: set[str] = set()
        self._next_poll = self._next_sweep = 0.0
        self._interval = self.pace.busy_seconds
        self._claimed_at = float("-inf")
        self._was_open = True

    def stop(self) -> None:
        """Make no further round; the caller also puts a hint into the inbox, which wakes the loop."""
        self._stopping.set()

    @property
    def busy(self) -> bool:
        """True while a claim is between ledger, API and queue, or the end gives back what has not begun."""
        return self.claimer.in_hand or self.departure.under_way

    def run(self) -> None:
        """Make rounds until `stop`, until all are told to leave, or until `max_polls` polls are done; end in order."""
        while not self._done():
            wait = self.round()
            if self._done():
                break
            self._hints |= self.inbox.wait(wait, self.pace.gather_seconds)
        if not self.departure.done:
            self.departure.await_takes(self.inbox, self._stopping.is_set)
        self.departure.finish(self._term)

    def _done(self) -> bool:
        polled = self.max_polls is not None and self._counted >= self.max_polls
        return self._stopping.is_set() or self.departure.done or polled

    def round(self) -> float:
        """Make one round; return the seconds until the next should come."""
        self.progress.note()
        term = self.leadership.term
        try:
            if self.redis_outage.may_ask():
                self.departure.look(term)
            if term is None:
                self._term = None
                self._hints.clear()
                self._count_as_standby()
                return self.pace.glance_seconds
            wait = self._lead(term)
        except TermLost:
            if term is not None:
                self.leadership.lose(term)
            wait = self.pace.gap_seconds
        except LedgerError as exc:
            # refused passwords too: a Redis that is being set up anew may cure them
            self.metrics.poll_errors.inc()
            self.redis_outage.failed(exc)
            wait = self.redis_outage.wait_seconds()
        except Exception:  # guards the loop: one run or answer that we do not understand must not end it
            self.metrics.poll_errors.inc()
            logger.exception("round failed unexpectedly, please report it")
            wait = self.pace.glance_seconds
        finally:
            self.progress.note()
        return wait

    def _count_as_standby(self) -> None:
        """Count a round in which we would have polled, while another poller does: else no standby would end by itself.

        Nothing is counted before that one has been seen at work: a dead one is replaced first, and then the polls are
        ours.
        """
        now = self.clock.monotonic()
        if self.leadership.follows and now >= self._next_poll:
            self._counted += 1
            self._next_poll = now + self._pause(claimed=False)

    def _lead(self, term: int) -> float:
        if term != self._term:
            self._begin(term)
        if self._outages != self.redis_outage.count:
            self._outages = self.redis_outage.count
            self.reconciler.begin_anew()
            self.lost.begin_anew()
        if not self.redis_outage.may_ask():
            return self.redis_outage.wait_seconds()
        # a write first: a Redis that takes none (a replica, a full one) answers all reads, and seems to be back
        if self.redis_outage.away and self.leadership.tend() != term:
            raise TermLost("another poller leads this fleet now")
        rows = self.roster.rows()
        self.redis_outage.over()
        self.reconciler.lapse(term, rows)
        if not self.api_outage.may_ask():
            return min(self.pace.glance_seconds, self.api_outage.wait_seconds())
        try:
            self._ask(term, rows)
        except ApiError as exc:
            self.metrics.poll_errors.inc()
            self.api_outage.failed(exc)
            if isinstance(exc, ApiUnavailable):
                self.lost.doubt_signs()
        self.metrics.key_refused.set(self.api_outage.key_refused)
        self.tell_api(self.api_outage.error)
        return self._wait_seconds()

    def _begin(self, term: int) -> None:
        """Begin a new term: nothing that was known in an earlier term counts."""
        self._term, self._began_at = term, self.clock.monotonic()
        self.reconciler.new_term()
        self.lost.begin_anew()
        self.presence.new_term()
        self.listing.forget()
        self._next_poll = self._next_sweep = 0.0

    def _ask(self, term: int, rows: Sequence[WorkerRow]) -> None:
        """Do all that may need the API. Raises `ApiError`; then the rest waits for the next try."""
        plan = listing_plan(rows, self.backend, self.offer_filter)
        was_open, is_open = self._was_open, self.gatekeeper.tend(term, self._outages)
        self._was_open = is_open
        if self.departure.ordered:
            if is_open:
                self.departure.give_back(term, rows)
            self.api_outage.over()
            return
        if is_open and (self._tend(term, rows) or not was_open):
            # runs that were handed back, now or by the sweep before the gate opened, are due at the API again
            self._hints.add("due")
        if is_open and not was_open:
            # workers have had their time to say what they hold: what none of them has is restored at once
            self._next_sweep = 0.0
        self.progress.note()
        self._poll(term, rows, plan, is_open=is_open)
        self.progress.note()
        self.presence.show(plan.online)
        self.progress.note()
        self.presence.learn(plan.offers + plan.idle)
        self.progress.note()
        self.unfit.look(rows, self._began_at)
        now = self.progress.note()
        if is_open and now >= min(self._next_sweep, self.sweep.again_at):
            self.sweep.run()
            self.restorer.restore(term, self.sweep.unknown)
            self._next_sweep = now + self.pace.sweep_seconds
            self.presence.check_clock()
            self.tidy()

    def _tend(self, term: int, rows: Sequence[WorkerRow]) -> int:
        live = self.claims.live()
        moved = self.reconciler.tend(term, live, rows)
        self.progress.note()
        return moved + self.lost.tend(term, live, rows)

    def _poll(self, term: int, rows: Sequence[WorkerRow], plan: ListingPlan, *, is_open: bool) -> None:
        live = self.claims.live()
        listed = self._must_list(rows, live, is_open=is_open)
        if listed:
            self.lister.list(plan, self.listing)
            self.polls += 1
            self._counted += self._counts(rows, is_open=is_open)
            if plan.offers:
                self.api_outage.over()
            # noted with the same patience as others: a run whose process has just put it off is claimed in a moment
            self.unfit.note([*self.reinstater.answer(self.listing, live, rows), *self.listing.unfit()])
            blocked = self.lost.blocked(self.listing.runs(), live)
            self.listing.put_off([run.run_id for run in blocked], self.pace.shun_seconds)
            self.unfit.note(blocked, after_seconds=0.0)
        published = (
            self._claim(term, rows, live) if is_open and self.listing.age_seconds <= self.pace.fresh_seconds else 0
        )
        if listed:
            self.progress.note()
            self.lister.count(plan, self.listing)
            self.api_outage.over()
        if FREED in self._hints and not listed:
            # the freed slot was answered from the listing at hand; runs that are newer at the API are looked for soon
            self._hints.discard(FREED)
            self._next_poll = min(self._next_poll, self.clock.monotonic() + self.pace.busy_seconds)
        if not listed and not published:
            return
        self.roster.note_due(term, self.listing.due(self._server_now()))
        if listed:
            self._next_poll = self.clock.monotonic() + self._pause(claimed=published > 0)
            self._hints.clear()

    def _counts(self, rows: Sequence[WorkerRow], *, is_open: bool) -> bool:
        """Whether `max_polls` counts the listing that has just come: with `awaits_workers` not each does.

        Where only runs tell which routes there are, the first listing teaches them, and a worker serves them a moment
        later. With a single poll nothing would ever be claimed.
        """
        if not self.awaits_workers or self.clock.monotonic() - self._began_at > SERVING_SECONDS:
            return True
        active = [row for row in rows if row.takes_runs]
        served = {route for row in active for route in row.routes}
        coming = (run.route for run in self.listing.claimable(self._server_now(), self.pace.lead_seconds))
        return is_open and all(
            route in served or not any(row.offer.serves(route) for row in active) for route in coming
        )

    def _pause(self, *, claimed: bool) -> float:
        """Seconds until the next listing: `busy_seconds` while something happens, up to `idle_seconds` else."""
        now = self.clock.monotonic()
        if claimed:
            self._claimed_at = now
        if claimed or self._hints:
            self._interval = self.pace.busy_seconds
        elif now - self._claimed_at >= self.pace.linger_seconds:
            self._interval = min(self._interval * 2, self.pace.idle_seconds)
        return self._interval * (0.95 + 0.05 * self.jitter())

    def _must_list(self, rows: Sequence[WorkerRow], live: Sequence[Claim], *, is_open: bool) -> bool:
        age = self.listing.age_seconds
        if age < self.pace.gap_seconds:
            return False
        if self.api_outage.away or self.clock.monotonic() >= self._next_poll or self._hints & POKES:
            return True
        if age <= self.pace.fresh_seconds:
            return False
        return FREED in self._hints or (is_open and bool(self._chosen(rows, live)))

    def _chosen(self, rows: Sequence[WorkerRow], live: Sequence[Claim]) -> list[FlowRun]:
        claimed = {claim.run_id for claim in live}
        claimable = self.listing.claimable(self._server_now(), self.pace.lead_seconds)
        runs = [run for run in claimable if run.run_id not in claimed]
        return free_capacity(rows, live, self.lost.tombs).choose(runs, self.listing.rooms())

    def _claim(self, term: int, rows: Sequence[WorkerRow], live: Sequence[Claim]) -> int:
        """Claim what can start now, ten at a time; return how many are on their way. Raises `ApiUnavailable`."""
        published = 0
        while runs := self._chosen(rows, live):
            claimed = self.claimer.claim(term, runs)
            published += len(claimed.published)
            self.listing.gone(claimed.published)
            self.listing.put_off(claimed.refused, self.pace.shun_seconds)
            self.listing.put_off(claimed.no_slot, self.pace.glance_seconds / 2)
            if claimed.silence:
                raise claimed.silence
            if claimed.no_slot or claimed.gate_shut or self.listing.age_seconds > self.pace.fresh_seconds:
                break
            if self._stopping.is_set():
                break
            live = self.claims.live()
        return published

    def _server_now(self) -> float:
        return self.clock.wall() + self.presence.skew_seconds

    def _wait_seconds(self) -> float:
        now = self.clock.monotonic()
        waits = [self.pace.glance_seconds, self._next_poll - now, self.lost.wait_seconds]
        if self._hints:
            waits.append(self.pace.gap_seconds - self.listing.age_seconds)
        next_due = self.listing.next_due(self._server_now(), self.pace.lead_seconds)
        if next_due is not None:
            waits.append(next_due)
        if self.departure.ordered:
            waits = [self.pace.leaving_seconds]
        if self.api_outage.away:
            waits = [self.pace.glance_seconds, self.api_outage.wait_seconds()]
        return max(0.02, min(waits))
