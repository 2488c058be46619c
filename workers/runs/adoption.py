"""Adoption: a starting worker takes over what its predecessor on this host has left: runs, ends and reports.

What is done depends on what is found in each run folder that is not settled:

    no start file            user code can never begin any more (the file now says "abandoned"): the run is handed back
    start file, alive        the run is watched as if it had been launched here; its claim is renewed at once
    start file, ended        its true exit is handled like every other exit
    report in the outbox     the report is sent again
    unknown version          the folder is left alone

The claim of a run that a dead worker of another name has left, or we ourselves when our host had another name
(takeover.py), is first made ours in the ledger too.
"""

import logging
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime

from flowfleet.errors import BadMessage, LedgerUnavailable
from flowfleet.flow_run import Route
from flowfleet.ledger.claims import Claim, Claims, Refusal, State
from workers.background import BackgroundJobs
from workers.deployment import Deployer, Exit, Handle
from workers.runs.cancelling import cancel_of
from workers.runs.hand_back import HandBack
from workers.runs.supervisor import BeforeEnd
from workers.state.attempts import Attempt, Attempts, fit_handle, held_to_intent
from workers.state.run_folders import RunFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClaimAdoption:
    """The ledger's side of a takeover: claims of dead workers of this host become claims of this worker."""

    worker: str
    nonce: str
    claims: Claims

    def claim(self, folder: RunFolder) -> Refusal | None:
        """Ask the ledger for the claim of a run whose keeper we are now.

        Returns None when the claim is ours, else why the ledger refused; raises `LedgerUnavailable`.
        """
        outcome = self.claims.adopt(folder.run_id, folder.claim, self.worker, self.nonce)
        return outcome.refusal

    def again(self, attempt: Attempt) -> bool:
        """Take over once more a claim that the ledger gives to another worker: Redis may have lost the takeover.

        Returns True when the claim is ours again; raises `LedgerUnavailable`.
        """
        if not attempt.folder.changed_hands() or self.claim(attempt.folder) is not None:
            return False
        logger.warning("the ledger had lost that a run was taken over", extra=attempt.fields)
        return True


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """The adoption of all unsettled run folders, done once before the first message is fetched."""

    worker: str
    claims: Claims
    claim_adoption: ClaimAdoption
    deployer: Deployer
    attempts: Attempts
    hand_back: HandBack
    to_ledger: BackgroundJobs
    #: called with the key of each adopted run that is alive
    on_alive: Callable[[str], object]
    #: called with each adopted attempt that has ended
    on_ended: Callable[[Attempt], None]
    #: called with each adopted run that is alive, to go on with its cancel
    on_cancelled: Callable[[Attempt], None]
    #: called with each adopted run that is gone; True puts its end off until the third argument is called
    before_end: BeforeEnd

    def adopt_all(self, folders: Iterable[RunFolder], reported: AbstractSet[str]) -> int:
        """Adopt each of these unsettled run folders; returns how many of the runs are alive.

        `reported` are the keys (RUN.CLAIM) of those whose report is being sent.
        """
        alive = 0
        for folder in folders:
            if folder.key in reported:
                continue  # the report of its end is on its way, and nothing else is left to do
            alive += self._adopt_kept(folder) if folder.changed_hands() else self._adopt(folder)
        return alive

    def _adopt_kept(self, folder: RunFolder) -> bool:
        try:
            return self._adopt_if_ours(folder)
        except LedgerUnavailable as exc:
            # the folder may not be touched before the ledger has us as the owner; the run itself goes on without us
            logger.warning("run of a dead worker is adopted later", extra={**folder.fields, "error": str(exc)})
            self.to_ledger.post(lambda: self._adopt_if_ours(folder))
            return False

    def _adopt_if_ours(self, folder: RunFolder) -> bool:
        if self.claim_adoption.claim(folder) is Refusal.OWNER:
            logger.error("run belongs to a worker of another host and is left alone", extra=folder.fields)
            if folder.keeper() != folder.state_folder.name:
                # else its own worker would leave it to us when it starts again, and nobody would look after it
                folder.keep_for(folder.state_folder.name)
            return False
        # the next renewal meets any other refusal again, and knows what to do about it
        return self._adopt(folder)

    def _adopt(self, folder: RunFolder) -> bool:
        fields = folder.fields
        held = held_from_intent(folder) or self._held_by_ledger(folder)
        started_run = self.deployer.adopt(folder.path)
        if held is None:
            # nobody took the claim: the folder was made and the ledger was never asked, or has forgotten it since
            if started_run is None:
                logger.info("unused run folder removed", extra=fields)
                folder.remove()
            else:
                logger.error("run of an unknown claim is left alone", extra=fields)
                started_run.close()
            return False
        attempt = Attempt(held=held, folder=folder, started_run=started_run, adopted=True, cancel=cancel_of(folder))
        self.attempts.begin(attempt)
        failed = folder.exit() if started_run is None and not (folder.exit_record() or {}).get("late") else None
        if failed is not None:
            # the start had failed, and the worker ended before it could say so
            moved = self.attempts.move(attempt.key, State.ENDED, exit_=failed)
            self.on_ended(moved or attempt)
            return False
        if started_run is None:
            self.hand_back.give(attempt, "its worker ended before it was started")
            return False
        handle = dict(started_run.handle)
        end = started_run.poll()
        if end is not None:
            started_run.close()
            logger.info("ended run adopted", extra={**fields, "exit": str(end)})
            # its hooks keep its slot, in the ledger too; said first, since they may be over at once
            self.attempts.change(attempt.key, held=replace(attempt.held, state=State.RUNNING, exit=None))
            if not self.before_end(attempt, end, lambda: self._ended(attempt, end, handle)):
                self._ended(attempt, end, handle)
            return False
        self.attempts.move(attempt.key, State.RUNNING, handle=handle)
        # the predecessor may have died between the fork and this move; a repeat changes nothing
        noted = dict(fit_handle(handle) or {})
        self.to_ledger.post(lambda: self.claims.run(held.run_id, held.claim, self.worker, noted))
        logger.info("running run adopted", extra={**fields, "pid": handle.get("pid")})
        self.on_alive(attempt.key)
        self.on_cancelled(attempt)
        return True

    def _ended(self, attempt: Attempt, end: Exit, handle: Handle) -> None:
        moved = self.attempts.move(attempt.key, State.ENDED, handle=handle, exit_=end)
        self.on_ended(moved or attempt)

    def _held_by_ledger(self, folder: RunFolder) -> Claim | None:
        # the worker may have been killed between the move to `taken` and the note of the claim's facts
        try:
            claim = self.claims.get(folder.run_id)
        except LedgerUnavailable as exc:
            logger.warning("claim of a run folder not read", extra={"run_id": folder.run_id, "error": str(exc)})
            return None
        if claim is None or claim.claim != folder.claim or claim.worker != self.worker:
            return None
        held = replace(claim, state=State.TAKEN)
        folder.note(**held_to_intent(held))
        return held


def held_from_intent(folder: RunFolder) -> Claim | None:
    """The claim as its run folder has it; None when the claim was never taken or the record cannot be read."""
    intent = folder.intent() or {}
    if "call" not in intent:
        return None
    state = State.STARTING
    if folder.exit_record() is not None:
        state = State.ENDED
    elif folder.started() is not None:
        state = State.RUNNING
    try:
        return Claim(
            run_id=folder.run_id,
            claim=folder.claim,
            call=str(intent["call"]),
            route=Route.parse(str(intent["route"])),
            name=str(intent["name"]),
            due=datetime.fromisoformat(str(intent["due"])),
            flow=str(intent.get("flow", "")),
            deployment=str(intent.get("deployment", "")),
            state=state,
            attempt=int(intent.get("attempt", 1)),
            policy=str(intent.get("policy", "report")),
            switch=bool(intent.get("switch", False)),
            handle=folder.started(),
            exit=folder.exit_record() if state is State.ENDED else None,
        )
    except (KeyError, ValueError, BadMessage) as exc:
        logger.error("run folder cannot be read", extra={"run_id": folder.run_id, "error": repr(exc)})
        return None
