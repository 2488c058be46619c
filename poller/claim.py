"""Claim step: ledger, API, ledger again, then the message; and how an unsettled claim is settled.

Order and crashes: the ledger has the claim (and its id) before the API hears of it, so whoever comes after a crash can
ask the API whose the run is. The message goes last, and never twice: what was lost on the way is handed back.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flowfleet.api.client import Answer, ApiClient, Kind, Mark, Verdict
from flowfleet.errors import LedgerUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import FlowRun, Message
from flowfleet.ledger.claims import Claim, Claims, Outcome, Refusal
from poller.leader import TermLost
from poller.meters import Meters

logger = logging.getLogger(__name__)

#: how many runs one call may claim
BATCH = 10

Publish = Callable[[Message], None]


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """What became of the runs of one claim step, by run id."""

    published: frozenset[str] = frozenset()
    #: not ours: the API said no, the ledger knows the run already, or nobody knows yet
    refused: frozenset[str] = frozenset()
    #: the ledger counted no free slot for these
    no_slot: frozenset[str] = frozenset()
    gate_shut: bool = False


def term_checked(outcome: Outcome) -> Outcome:
    """The outcome, unless the script has refused our term."""
    if outcome.refusal is Refusal.TERM:
        raise TermLost("another poller leads this fleet now")
    return outcome


class Claimer:
    """Claims runs, and settles claims of which nobody knows what the API made of them."""

    def __init__(
        self,
        api: ApiClient,
        claims: Claims,
        publish: Publish,
        *,
        mark: Mark,
        policy: str,
        failpoints: Failpoints,
        meters: Meters,
        new_call: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._api = api
        self._claims = claims
        self._publish = publish
        self._mark = mark
        self._policy = policy
        self._failpoints = failpoints
        self._meters = meters
        self._new_call = new_call
        #: True while a claim is between ledger, API and queue: an orderly end waits for it
        self.in_hand = False
        #: accepted by the API and queued in the ledger, but in no queue: claim ids
        self.unpublished: set[str] = set()

    def claim(self, term: int, runs: Sequence[FlowRun]) -> Claimed:
        """Claim up to ten runs with one call. Raises `TermLost`, `LedgerUnavailable`, `ApiUnavailable`."""
        self.in_hand = True
        try:
            return self._claim(term, runs)
        finally:
            self.in_hand = False

    def _claim(self, term: int, runs: Sequence[FlowRun]) -> Claimed:
        call = self._new_call()
        runs = runs[:BATCH]
        outcomes = self._claims.claim(term, runs, call, policy=self._policy, attempts={})
        ours: dict[str, tuple[FlowRun, Claim]] = {}
        refused: set[str] = set()
        no_slot: set[str] = set()
        gate_shut = False
        for run, outcome in zip(runs, outcomes, strict=True):
            term_checked(outcome)
            if outcome.moved and outcome.claim is not None:
                ours[run.run_id] = (run, outcome.claim)
            elif outcome.refusal is Refusal.NO_SLOT:
                no_slot.add(run.run_id)
            elif outcome.refusal is Refusal.GATE:
                gate_shut = True
            else:
                refused.add(run.run_id)
        self._failpoints.hit("claim.after_ledger")
        published = self._submit(term, call, ours) if ours else set()
        refused |= set(ours) - published
        return Claimed(
            published=frozenset(published), refused=frozenset(refused), no_slot=frozenset(no_slot), gate_shut=gate_shut
        )

    def _submit(self, term: int, call: str, ours: Mapping[str, tuple[FlowRun, Claim]]) -> set[str]:
        """Ask the API for all of them, then move each by its own answer; the run ids that are on their way."""
        answers = dict(self._api.claim([run for run, _ in ours.values()], call, self._mark))
        self._failpoints.hit("claim.after_api")
        unsure = [run for run, _ in ours.values() if _verdict(answers.get(run.run_id)) is Verdict.UNSURE]
        if unsure:
            # the first try may have been carried out, and then a repeat finds nothing left to claim: only reading the
            # run can tell a no from a yes that came twice
            again = self._api.claim(unsure, call, self._mark)
            for run in unsure:
                answer = again.get(run.run_id)
                certain = answer is not None and answer.verdict is Verdict.ACCEPTED
                answers[run.run_id] = answer if answer and certain else self._api.settle(run.run_id, call)
        return {run_id for run_id, (_, claim) in ours.items() if self._move(term, claim, answers.get(run_id))}

    def _move(self, term: int, claim: Claim, answer: Answer | None) -> bool:
        """Claiming → queued and published, or dropped, or left for settling; True when it is on its way."""
        names = {"run_id": claim.run_id, "claim": claim.claim}
        if answer is None or answer.verdict is Verdict.UNSURE:
            logger.warning("claim unsettled", extra={**names, "reason": answer.reason if answer else "no answer"})
            return False
        if answer.verdict is Verdict.REFUSED:
            term_checked(self._claims.refuse(term, claim.run_id, claim.claim, answer.reason))
            self._meters.lost.inc()
            logger.info("claim refused", extra={**names, "reason": answer.reason})
            return False
        outcome = term_checked(self._claims.accept(term, claim.run_id, claim.claim))
        if not outcome.moved:
            # the ledger lost or changed it meanwhile: no worker may start it now, and the sweep gives it back
            logger.warning("claim gone from the ledger", extra={**names, "refusal": outcome.refusal})
            return False
        self._failpoints.hit("claim.after_accept")
        self._meters.claimed.inc()
        return self._send(claim)

    def _send(self, claim: Claim) -> bool:
        names = {"run_id": claim.run_id, "claim": claim.claim, "route": str(claim.route)}
        try:
            self._publish(Message(run_id=claim.run_id, claim=claim.claim, route=claim.route))
        except LedgerUnavailable as exc:
            # perhaps it arrived all the same, so it is not sent again; the hand-back of queued claims heals it
            self.unpublished.add(claim.claim)
            logger.warning("message not sent", extra={**names, "error": str(exc)})
            return True
        self._failpoints.hit("claim.after_publish")
        logger.info("run claimed", extra={**names, "run_name": claim.name})
        return True

    def settle(self, term: int, claim: Claim) -> bool:
        """Find out what the API made of a claim; True when it stands in `claiming` no longer.

        A run that is still Scheduled is asked for again under the same call id: should the first call only now arrive,
        it is the same claim and changes nothing.
        """
        answer = self._api.settle(claim.run_id, claim.call)
        if answer.verdict is Verdict.REFUSED and _unclaimed(answer):
            run = FlowRun(run_id=claim.run_id, name=claim.name, route=claim.route, due=claim.due)
            first = self._api.claim([run], claim.call, self._mark).get(claim.run_id)
            answer = (
                first if first and first.verdict is Verdict.ACCEPTED else self._api.settle(claim.run_id, claim.call)
            )
        return self._move(term, claim, answer) or answer.verdict is not Verdict.UNSURE


def _verdict(answer: Answer | None) -> Verdict:
    return Verdict.UNSURE if answer is None else answer.verdict


def _unclaimed(answer: Answer) -> bool:
    return answer.state is not None and answer.state.kind is Kind.SCHEDULED
