"""Fencing: what becomes of a run whose claim the ledger does not confirm: it is another's now, or the ledger is away.

The API is the second witness. It is asked about all such runs in one request (`ApiWatch` calls `look`), for as long as
their processes live. What follows stands in `fence_table`.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from flowfleet.api.client import EndApi, RunState, StateType
from flowfleet.api.traits import Traits
from flowfleet.errors import LedgerError
from flowfleet.ledger.claims import CancelAsked, CancelHow, Claims, Refusal, State
from workers.deployment import StopReason
from workers.runs.fence_table import Fate, decide
from workers.runs.supervisor import Supervisor
from workers.state.attempts import Attempt, Attempts
from workers.state.ledger_view import LedgerView
from workers.stop import Stop

logger = logging.getLogger(__name__)

#: a run counts as deleted when the API has not known it for so many renewals; where it does not know most of them, for
#: so many TTLs: 30 s and 2 min by default, as for the leader
GONE_INTERVALS = 6


@dataclass(kw_only=True)
class Fencing:
    """What to do about claims that are not ours any more, or of which nobody tells us."""

    worker: str
    attempts: Attempts
    claims: Claims
    api: EndApi
    traits: Traits
    supervisor: Supervisor
    ledger_view: LedgerView
    clock: Callable[[], float]
    #: ends a run of ours that somebody wants cancelled, where the ledger cannot tell us so
    on_cancelled: Callable[[Attempt, CancelAsked], None]
    #: key of an attempt → the ledger's last word about its claim; None = the claim is ours, but our name is another's
    _words: dict[str, Refusal | None] = field(default_factory=dict, init=False)
    #: key of an attempt → when the state was written that is known to be of our claim
    _ours_at: dict[str, datetime | None] = field(default_factory=dict, init=False)
    #: key of an attempt → since when its run is not in the API's answers
    _missed: dict[str, float] = field(default_factory=dict, init=False)
    #: keys of the attempts that were told to end
    _told: set[str] = field(default_factory=set, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    # -- what renewals say

    def fenced(self, attempt: Attempt, refusal: Refusal) -> bool:
        """Note that a renewal was refused for this claim; True when that is news. Asks no API, and is called again."""
        word: Refusal | None = refusal
        if refusal is Refusal.OWNER:
            try:
                word = None if self._still_ours(attempt) else refusal
            except LedgerError as exc:
                logger.info("owner of the claim is asked for again", extra={**attempt.fields, "error": str(exc)})
                return False
        if attempt.started_run is None or attempt.held.state is State.ENDED:
            # nothing lives: the next move of the claim in the ledger checks its owner anyway
            if word is not None:
                self.attempts.change(attempt.key, fenced=True, refusal=word)
            return False
        if word is Refusal.FORGOTTEN:
            self._end(attempt, word, Fate.KILL, "was given up by `worker forget`")
            return False
        with self._lock:
            news = self._words.get(attempt.key, "") != word
            self._words[attempt.key] = word
        return news

    def confirmed(self, keys: Iterable[str]) -> None:
        """Note that a renewal has confirmed these claims."""
        with self._lock:
            for key in keys:
                self._words.pop(key, None)

    def _still_ours(self, attempt: Attempt) -> bool:
        """Whether only our row in the roster has another owner, and not the claim.

        A process that took our name while we were cut off has none of our claims.
        """
        claim = self.claims.get(attempt.held.run_id)
        return claim is None or (claim.claim == attempt.held.claim and claim.worker in (None, self.worker))

    # -- what the API says

    def look(self, *, away: bool) -> bool:
        """Ask the API about all runs in doubt, with `away` (the ledger does not answer) all; whether it was asked.

        Raises `ApiError`.
        """
        living = {attempt.key: attempt for attempt in self.attempts.running() if attempt.key not in self._told}
        with self._lock:
            self._words = {key: word for key, word in self._words.items() if key in living}
            words = dict(self._words)
        self._ours_at = {key: at for key, at in self._ours_at.items() if key in living}
        self._told &= {attempt.key for attempt in self.attempts.running()}
        asked = {key: one for key, one in living.items() if away or one.fenced or key in words}
        if not asked:
            return False
        states = self.api.states([attempt.held.run_id for attempt in asked.values()])
        kept = self._not_yet_gone([key for key, one in asked.items() if one.held.run_id not in states], len(asked))
        for key, attempt in asked.items():
            if key not in kept:
                self._judge(attempt, words.get(key, attempt.refusal), states.get(attempt.held.run_id))
        return True

    def _not_yet_gone(self, missing: Collection[str], asked: int) -> set[str]:
        """Those of the attempts without a run at the API that do not count as deleted yet.

        A server that has lost its data, or another one behind its address, knows no run at all: where most are not
        known, all are waited for longer.
        """
        now, lease = self.clock(), self.ledger_view.lease
        patience = GONE_INTERVALS * (lease.ttl_seconds if 2 * len(missing) > asked else lease.renew_seconds)
        self._missed = {key: self._missed.get(key, now) for key in missing}
        kept = {key for key, since in self._missed.items() if now - since < patience}
        if kept and now in self._missed.values():
            logger.warning(
                "the Prefect API does not know runs that live here: none is ended for that yet",
                extra={"runs": len(kept), "of": asked, "waits_seconds": patience},
            )
        return kept

    def _judge(self, attempt: Attempt, refusal: Refusal | None, state: RunState | None) -> None:
        def claimed_since() -> bool:
            return state is not None and self._claimed_since(attempt, state)

        fate = decide(refusal, state, claimed_since=claimed_since)
        shows = f"is {state.name} at the API" if state is not None else "does not exist at the API any more"
        if fate in (Fate.KILL, Fate.STOP):
            self._end(attempt, refusal, fate, shows)
        elif fate is Fate.CANCEL:
            self.on_cancelled(attempt, CancelAsked(how=CancelHow.ASKED, why=state.message if state else "", found=True))
        elif fate is Fate.LEAVE and not attempt.fenced:
            self.attempts.change(attempt.key, fenced=True, refusal=refusal)
            logger.warning("run goes on though it has an end at the API", extra={**attempt.fields, "run": shows})

    def _claimed_since(self, attempt: Attempt, state: RunState) -> bool:
        """Whether somebody else has claimed the run; a state that was ours once is not asked about again."""
        held, known = attempt.held, self._ours_at.get(attempt.key)
        if state.kind is StateType.PENDING and state.call in (held.call, held.claim):
            return False
        if known is not None and known == state.at:
            return False
        if self.api.claimed_since(held.run_id, held.claim):
            return True
        self._ours_at[attempt.key] = state.at
        return False

    def _end(self, attempt: Attempt, refusal: Refusal | None, fate: Fate, why: str) -> None:
        """End the process: the run is somebody else's, or over, and what the process does now would be done in vain."""
        if attempt.key in self._told:
            return
        self._told.add(attempt.key)
        logger.warning("run is ended since it is not ours any more", extra={**attempt.fields, "run": why})
        if fate is Fate.KILL and refusal is None:
            # only the ledger was away: its end is told to the ledger as any other
            self.on_cancelled(attempt, CancelAsked(how=CancelHow.OVER, why=why, found=True))
            return
        self.attempts.change(attempt.key, fenced=True, refusal=refusal)
        # an engine that writes a crash on a bare TERM would write it over the state of whoever has the run now
        kill = fate is Fate.KILL or self.traits.engine_crashes_on_term
        self.supervisor.stop(attempt.key, Stop(reason=StopReason.FENCE, kill=kill))
