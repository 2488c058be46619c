"""Fence: the one way in which states are written at a Prefect 1 API: read, write, read again what stands there.

A Prefect Server takes any state over any other and has no version lock (source: Prefect Server), so every write names
the version that was read, and reads again, with the states that were written since. What somebody else wrote in
between, or at the very same moment, is put back where our write must not cover it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flowfleet.api.client import Answer, StateType, Verdict, unguarded
from flowfleet.api.prefect1.answers import refused
from flowfleet.api.prefect1.changes import Change, mutation, of_run
from flowfleet.api.prefect1.runs import Runs, last_states, states_since
from flowfleet.api.prefect1.states import SUBMITTED, THEIRS, Run, Stamp, overtaken
from flowfleet.api.transport.freshness import FRESH_SECONDS, READINGS, ReadTooOld
from flowfleet.errors import ApiError

if TYPE_CHECKING:
    from flowfleet.api.prefect1.graphql import GraphQL, Reply

logger = logging.getLogger(__name__)

#: how many of the newest states are read: as a rule our claim is the newest, and the one before is what it may cover
NEWEST = 4

#: the answer for a run as it stands, or else the states to write
Decide = Callable[[Run], Answer | list[Change]]


@dataclass
class Fence:
    """The fence around writes: nothing stays covered that somebody else has written between reading and writing."""

    graphql: GraphQL
    runs: Runs

    def read(self, run_id: str, extra: str = "") -> Run:
        """Read a run. A state of somebody else that our claim has covered is put back first. Raises `RunGone`."""
        run = self.runs.one(run_id, last_states(NEWEST) + extra)
        stamp = run.stamp
        if stamp is None or stamp.done or stamp.version is None or run.state != SUBMITTED:
            return run
        states = run.row.get("states") or []
        if len(states) == NEWEST and all((row.get("version") or 0) > stamp.version for row in states):
            states = self.runs.versions(run_id, stamp.version)
        covered = overtaken(states, stamp, kinds=THEIRS)
        return run if covered is None else self._put_back(run, covered)

    def _put_back(self, run: Run, covered: Mapping[str, Any]) -> Run:
        """Write again the state that somebody else had written and that ours has covered."""
        logger.warning(
            "a state was covered by ours and is put back",
            extra={"run_id": run.run_id, "state": covered.get("type"), "version": run.version},
        )
        self.send([of_run(run, covered)])
        return replace(run, state=str(covered["type"]), serialized=covered, version=None, tasks=())

    def write(
        self,
        run_id: str,
        decide: Decide,
        *,
        kinds: frozenset[StateType],
        before: Callable[[], object] = unguarded,
    ) -> Answer:
        """Read, decide, write with the version that was read, and read again what stands there.

        Ends, and states of these `kinds`, that somebody else has written meanwhile are put back. Nothing is sent that
        follows from what was read long ago: nobody puts back what a later write covers. `before` is called right before
        the write.
        """
        clock = self.graphql.session.boot_clock
        try:
            for left in reversed(range(READINGS)):
                began = clock()
                run = self.read(run_id)
                # of an API that needs longer than that for every answer, the answer alone is fresh
                fresh_until = (began if left else clock()) + FRESH_SECONDS
                decided = decide(run)
                if isinstance(decided, Answer):
                    return decided
                before()
                try:
                    reply = self.send(decided, fresh_until=fresh_until)
                except ReadTooOld:
                    if not left:
                        raise
                else:
                    return self._carry_out(run, decided, reply, decide, kinds)
            raise AssertionError("unreachable: the last reading either is written from or raises")
        except ApiError as error:
            return Answer.to_error(error)

    def _carry_out(
        self, run: Run, changes: list[Change], reply: Reply, decide: Decide, kinds: frozenset[StateType]
    ) -> Answer:
        after = self.runs.one(run.run_id, states_since(run.version))
        covered = _covered(run, after, kinds)
        if covered is not None:
            return refused(self._put_back(after, covered), f"somebody made it {covered.get('type')} meanwhile")
        failed = [error.message for change in changes if (error := reply.error_of(change.alias)) is not None]
        if not failed and not any(change.target == "flow_run_id" for change in changes):
            # a late retry: only the tasks were written, and their states bear no sign of it
            return Answer(verdict=Verdict.ACCEPTED, state=after.to_state())
        again = decide(after)
        if isinstance(again, Answer):
            return again
        reason = "; ".join(failed) or "the write was accepted and does not stand there"
        return Answer(verdict=Verdict.UNSURE, reason=reason[:300], state=after.to_state())

    def send(self, changes: Sequence[Change], agent: str | None = None, *, fresh_until: float | None = None) -> Reply:
        """Send these states in one mutation; raises `ReadTooOld` after `fresh_until` (boot-time clock)."""
        document, inputs = mutation(changes)
        seconds = self.graphql.session.bulk_seconds
        return self.graphql.ask(document, inputs, agent=agent, seconds=seconds, fresh_until=fresh_until)


def _covered(run: Run, after: Run, kinds: frozenset[StateType]) -> dict[str, Any] | None:
    """What somebody else wrote to the run between our two readings, if our own write stands over it."""
    stamp = Stamp.read(after.serialized)
    if run.version is None or stamp is None or not stamp.done:
        return None  # the other's state came last and stands
    found = overtaken(after.row.get("states") or (), replace(stamp, version=run.version), kinds=kinds)
    # our own end over a cancel that is under way is the end of that cancel
    if found is not None and found.get("type") == "Cancelling" and after.kind is StateType.CANCELLED:
        return None
    return found
