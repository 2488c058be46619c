"""Claiming: the claim step (ledger, API, ledger again, then the message), and how an unsettled claim is settled.

Order and crashes: the ledger has the claim (and its id) before the API hears of it, so whoever comes after a crash can
ask the API whose the run is. The message goes last, and never twice: what was lost on the way is handed back.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flowfleet.api.client import Answer, ClaimApi, Mark, StateType, Verdict
from flowfleet.api.traits import Traits
from flowfleet.errors import ApiUnavailable, LedgerUnavailable
from flowfleet.failpoints import Failpoints
from flowfleet.flow_run import FlowRun, Message
from flowfleet.ledger.claims import Claim, Claims, Outcome, Refusal
from poller.leader import TermLost
from poller.metrics import PollerMetrics

logger = logging.getLogger(__name__)

#: how many runs one call may claim
BATCH = 10

Publish = Callable[[Message], None]


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """The result of one claim step: what became of its runs, by run id."""

    published: frozenset[str] = frozenset()
    #: runs that are not ours: the API refused them, the ledger knows them already, or their claims are unsettled
    refused: frozenset[str] = frozenset()
    #: runs for which the ledger counted no free slot
    no_slot: frozenset[str] = frozenset()
    gate_shut: bool = False
    #: set when the API did not answer at all: unsettled claims are settled when it answers again
    silence: ApiUnavailable | None = None


def term_checked(outcome: Outcome) -> Outcome:
    """The outcome as it is. Raises `TermLost` when the script has refused our term."""
    if outcome.refusal is Refusal.TERM:
        raise TermLost("another poller leads this fleet now")
    return outcome


@dataclass
class Claimer:
    """Claims runs, and settles claims whose result at the API is not known."""

    api: ClaimApi
    claims: Claims
    publish: Publish
    mark: Mark
    policy: str
    traits: Traits
    failpoints: Failpoints
    metrics: PollerMetrics
    #: the id of the next call, which carries that of the ledger
    new_call: Callable[[], str]
    #: called after each answer of the API, so that a claim with slow answers is not taken for a loop that hangs
    progressed: Callable[[], object] = lambda: None
    #: how often a run is started again by us, under the policy `requeue`
    max_attempts: int = 0
    #: True while a claim is between ledger, API and queue: an orderly end waits for it
    in_hand: bool = field(default=False, init=False)
    #: ids of claims that the API accepted and the ledger has queued, but whose message could not be sent
    unpublished: set[str] = field(default_factory=set, init=False)

    def claim(self, term: int, runs: Sequence[FlowRun]) -> ClaimResult:
        """Claim up to ten runs with one call. Raises `TermLost`, `LedgerUnavailable`, `KeyRefused`."""
        self.in_hand = True
        try:
            return self._claim(term, runs)
        finally:
            self.in_hand = False

    def _claim(self, term: int, runs: Sequence[FlowRun]) -> ClaimResult:
        call = self.new_call()
        runs = runs[:BATCH]
        outcomes = self.claims.claim(term, runs, call, policy=self.policy, max_attempts=self.max_attempts)
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
        self.failpoints.hit("claim.after_ledger")
        answers = self._submit(call, [run for run, _ in ours.values()]) if ours else {}
        published = {run_id for run_id, (_, claim) in ours.items() if self._move(term, claim, answers.get(run_id))}
        refused |= set(ours) - published
        return ClaimResult(
            published=frozenset(published),
            refused=frozenset(refused),
            no_slot=frozenset(no_slot),
            gate_shut=gate_shut,
            silence=_silence(answers),
        )

    def _submit(self, call: str, runs: Sequence[FlowRun]) -> dict[str, Answer]:
        """Claim the runs at the API; an unsure answer is asked again and settled, unless the API has fallen silent.

        From a silent API each further question would wait for its whole deadline too, while nothing else is done: the
        claims are left to be settled when it answers again.
        """
        answers = self._claim_at_api(runs, call)
        self.failpoints.hit("claim.after_api")
        unsure = [run for run in runs if _verdict(answers.get(run.run_id)) is Verdict.UNSURE]
        if not unsure or _silence(answers):
            return answers
        # the first try may have been carried out, and then a repeat finds nothing left to claim: only reading the run
        # can tell a no from a yes that came twice
        answers |= self._claim_at_api(unsure, call)
        for run in unsure:
            if _silence(answers):
                break
            if _verdict(answers.get(run.run_id)) is not Verdict.ACCEPTED:
                answers[run.run_id] = self._doubted(self._settle_at_api(run.run_id, call))
        return answers

    def _doubted(self, answer: Answer) -> Answer:
        """Turn a refusal into UNSURE where it proves nothing: of a run that is still Scheduled, and may be ours yet."""
        if self.traits.refuses_for_a_while and answer.verdict is Verdict.REFUSED and _unclaimed(answer):
            return replace(answer, verdict=Verdict.UNSURE)
        return answer

    def _claim_at_api(self, runs: Sequence[FlowRun], call: str) -> dict[str, Answer]:
        answers = dict(self.api.claim(runs, call, self.mark))
        self.progressed()
        return answers

    def _settle_at_api(self, run_id: str, call: str) -> Answer:
        answer = self.api.settle(run_id, call)
        self.progressed()
        return answer

    def _move(self, term: int, claim: Claim, answer: Answer | None) -> bool:
        """Queue and publish an accepted claim, drop a refused one, leave an unsure one unsettled; True when queued."""
        names = {"run_id": claim.run_id, "claim": claim.claim, "run_name": claim.name}
        if answer is None or answer.verdict is Verdict.UNSURE:
            logger.warning("claim unsettled", extra={**names, "reason": answer.reason if answer else "no answer"})
            return False
        if answer.verdict is Verdict.REFUSED:
            term_checked(self.claims.refuse(term, claim.run_id, claim.claim, answer.reason))
            if self.traits.refuses_for_a_while and _unclaimed(answer):
                # also after a claim that was handed back; it is tried again until it works
                logger.debug("claim refused for now", extra={**names, "reason": answer.reason})
                return False
            self.metrics.refused.inc()
            logger.info("claim refused", extra={**names, "reason": answer.reason})
            return False
        outcome = term_checked(self.claims.accept(term, claim.run_id, claim.claim))
        if not outcome.moved:
            # the ledger lost or changed it meanwhile: no worker may start it now, and the sweep gives it back
            logger.warning("claim gone from the ledger", extra={**names, "refusal": outcome.refusal})
            return False
        self.failpoints.hit("claim.after_accept")
        self.metrics.claimed.inc()
        return self._send(claim)

    def _send(self, claim: Claim) -> bool:
        ids = {"run_id": claim.run_id, "claim": claim.claim}
        names = {**ids, "run_name": claim.name, "route": str(claim.route)}
        try:
            self.publish(Message(run_id=claim.run_id, claim=claim.claim, route=claim.route))
        except LedgerUnavailable as exc:
            # perhaps it arrived all the same, so it is not sent again; the hand-back of queued claims heals it
            self.unpublished.add(claim.claim)
            logger.warning("message not sent", extra={**names, "error": str(exc)})
            return True
        self.failpoints.hit("claim.after_publish")
        logger.info("run claimed", extra=names)
        return True

    def settle(self, term: int, claim: Claim, *, at_last: bool = False) -> bool:
        """Find out what the API made of a claim; True when the claim is no longer `claiming`.

        A run that is still Scheduled is asked for again under the same call id: should the first call only now arrive,
        it is the same claim and changes nothing. `at_last` takes every refusal as final. Raises `ApiUnavailable` when
        the API does not answer at all.
        """
        answer = self._settle_at_api(claim.run_id, claim.call)
        if answer.verdict is Verdict.REFUSED and _unclaimed(answer):
            run = FlowRun(run_id=claim.run_id, name=claim.name, route=claim.route, due=claim.due)
            first = self._claim_at_api([run], claim.call).get(claim.run_id)
            certain = first is not None and (first.verdict is Verdict.ACCEPTED or first.silence)
            answer = first if first and certain else self._settle_at_api(claim.run_id, claim.call)
        if answer.silence:
            raise answer.silence
        answer = answer if at_last else self._doubted(answer)
        return self._move(term, claim, answer) or answer.verdict is not Verdict.UNSURE


def _verdict(answer: Answer | None) -> Verdict:
    return Verdict.UNSURE if answer is None else answer.verdict


def _silence(answers: Mapping[str, Answer]) -> ApiUnavailable | None:
    return next((answer.silence for answer in answers.values() if answer.silence), None)


def _unclaimed(answer: Answer) -> bool:
    return answer.state is not None and answer.state.kind is StateType.SCHEDULED
