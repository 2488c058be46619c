"""Fence: the one way in which states are written at a Prefect 3 API: read, decide, write only over what was read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowfleet.api.client import Answer, RunState, Verdict, unguarded
from flowfleet.api.prefect3.states import answer_of, state_of
from flowfleet.api.transport.freshness import FRESH_SECONDS, READINGS, ReadTooOld
from flowfleet.api.transport.reading import Json, reading, rows
from flowfleet.api.transport.responses import NotFound
from flowfleet.api.transport.session import Session
from flowfleet.errors import ApiError, ApiUnavailable, RunGone

#: a state that was read so recently need not be read again before the next write, which is fenced itself
_JUST_READ_SECONDS = 5.0


@dataclass(frozen=True)
class Read:
    """A state, and when it was asked for, by the boot-time clock."""

    state: RunState
    at: float


@dataclass(frozen=True)
class Write:
    """One write: the filter that says what must stand there, and the state."""

    expected: Mapping[str, Any]
    state: Mapping[str, Any]
    #: called right before the write with the time after which nothing may be sent: what else is to be written, first
    first: Callable[[float], object] | None = None


@dataclass
class Fence:
    """The fence around writes: `bulk_set_state` with the state that must stand there as its filter."""

    session: Session
    clock: Callable[[], float]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _seen: dict[str, tuple[float, RunState]] = field(default_factory=dict, init=False)

    def read(self, run_id: str) -> Json:
        """Read the run's JSON; raises `RunGone`."""
        try:
            run: Json = self.session.get(f"/flow_runs/{run_id}")
        except NotFound as error:
            raise RunGone(f"the run {run_id} does not exist any more") from error
        with reading("for a run"):
            self.remember(state_of(run))
        return run

    def remember(self, state: RunState) -> None:
        """Remember this state, which was read just now."""
        now = self.clock()
        with self._lock:
            if len(self._seen) > 500:
                self._seen = {k: v for k, v in self._seen.items() if now - v[0] < _JUST_READ_SECONDS}
            self._seen[state.run_id] = (now, state)

    def just_read(self, run_id: str) -> Read | None:
        """The state of a run that was read so recently that it need not be read again; None where it was not."""
        with self._lock:
            at, state = self._seen.pop(run_id, (0.0, None))
        age = self.clock() - at
        if state is None or age >= _JUST_READ_SECONDS:
            return None
        return Read(state, self.session.boot_clock() - age)

    def write(
        self,
        run_id: str,
        decide: Callable[[RunState], Answer | Write],
        *,
        just_read: Read | None = None,
        before: Callable[[], object] = unguarded,
    ) -> Answer:
        """Read, decide, write with the expected state as filter; after a write that missed, read again.

        The filter cannot tell one Running from another, so nothing is sent that follows from what was read long ago.
        `before` is called right before the write.
        """
        try:
            for left in reversed(range(READINGS)):
                try:
                    return self._once(run_id, decide, just_read, before, at_last=left == 0)
                except ReadTooOld:
                    just_read = None
            raise AssertionError("unreachable: the last reading is never too old")
        except ApiError as error:
            return Answer.to_error(error)

    def _once(
        self,
        run_id: str,
        decide: Callable[[RunState], Answer | Write],
        just_read: Read | None,
        before: Callable[[], object],
        *,
        at_last: bool,
    ) -> Answer:
        """One reading and what follows from it; raises `ReadTooOld` for a reading that has come to nothing."""
        stands = None
        try:
            read = just_read or Read(at=self.session.boot_clock(), state=state_of(self.read(run_id)))
            stands = read.state
            # of an API that needs longer than that for every answer, the answer alone is fresh
            fresh_until = (self.session.boot_clock() if at_last else read.at) + FRESH_SECONDS
            write = decide(stands)
            if isinstance(write, Answer):
                return write
            before()
            if write.first is not None:
                write.first(fresh_until)
            results = self.bulk([run_id], {"state": write.expected}, write.state, fresh_until=fresh_until)
            if run_id in results:
                transition = str(write.state["state_details"]["transition_id"])
                answer = answers_of(run_id, stands.run_name, results, transition)
                if answer.verdict is not Verdict.UNSURE:
                    return answer
            stands = state_of(self.read(run_id))
            again = decide(stands)
            if isinstance(again, Answer):
                return again
            return Answer(verdict=Verdict.UNSURE, reason="the server gave no definite answer", state=stands)
        except ReadTooOld as error:
            if at_last:
                return Answer.to_error(error, stands)
            raise
        except ApiError as error:
            return Answer.to_error(error, stands)

    def bulk(
        self,
        run_ids: Sequence[str],
        expected: Mapping[str, Any],
        state: Mapping[str, Any],
        *,
        fresh_until: float | None = None,
    ) -> dict[str, Mapping[str, Any]]:
        """Write a state to those of the runs that are as expected; the server's results by run id."""
        body = {"flow_runs": {"id": {"any_": list(run_ids)}, **expected}, "state": state, "force": False}
        answer = self.session.post(
            "/flow_runs/bulk_set_state", body, seconds=self.session.bulk_seconds, fresh_until=fresh_until
        )
        with reading("for a state"):
            return {str(result["flow_run_id"]): result for result in rows(answer["results"])}


def answers_of(run_id: str, name: str, results: Mapping[str, Json], transition: str) -> Answer:
    """The answer for one run of a bulk call; a result that cannot be read is UNSURE, as one without a state is."""
    try:
        with reading("for a state"):
            return answer_of({"id": run_id, "name": name}, results[run_id], transition)
    except ApiUnavailable as error:
        return Answer.to_error(error)
