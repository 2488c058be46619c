"""Answers: Prefect 3's JSON of runs and states, read into RunState, and what a written state came to."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from flowfleet.api.client import Answer, Kind, RunState, Verdict
from flowfleet.errors import ApiUnavailable, FleetError

logger = logging.getLogger(__name__)

Json = Mapping[str, Any]


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns an answer of the wrong shape (200 with null, {}, half a run) into `ApiUnavailable`: it says nothing.

    It may be of this one question only, so it counts as answered. What was in it is not shown, it may be anything.
    """
    try:
        yield
    except FleetError:
        raise  # `UnsupportedRun` is a ValueError too
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        logger.debug("answer cannot be read", extra={"question": what}, exc_info=True)
        raise ApiUnavailable(
            f"the Prefect API answers {what} with what is no such thing ({type(error).__name__})", answered=True
        ) from error


def rows(answer: Any) -> list[Any]:
    """The answer as the list that it must be: `{}` for one would read as "none of them are there"."""
    if not isinstance(answer, list):
        raise TypeError(f"a list was asked for, not {type(answer).__name__}")
    return answer


def instant(text: str | None) -> datetime | None:
    """An ISO time of the API as aware UTC."""
    if not text:
        return None
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def iso(at: datetime) -> str:
    """The API's form of a time."""
    return at.astimezone(UTC).isoformat()


def state_of(run: Json, state: Json | None = None) -> RunState:
    """What a run's JSON says; `state` where an answer carries a newer one than the run."""
    state = state or run.get("state") or {}
    details = state.get("state_details") or {}
    kind = Kind(state.get("type") or run.get("state_type") or Kind.PENDING)
    return RunState(
        run_id=str(run["id"]),
        run_name=str(run.get("name") or run["id"]),
        kind=kind,
        name=str(state.get("name") or kind.value.title()),
        message=str(state.get("message") or ""),
        scheduled=instant(details.get("scheduled_time")),
        call=details.get("transition_id"),
        infrastructure=run.get("infrastructure_pid"),
        at=instant(state.get("timestamp")),
        held=_held(run, kind, details),
    )


def _held(run: Json, kind: Kind, details: Json) -> bool:
    """Does the run wait inside its own process? The server hands such a run to nobody, so its death must be told."""
    if kind is Kind.SCHEDULED:
        return bool((run.get("empirical_policy") or {}).get("retry_type") == "in_process")
    return kind is Kind.PAUSED and not details.get("pause_reschedule")


def judge(run: Json, result: Json, transition: str) -> Answer:
    """What the orchestration made of our state; by `status` and state, never by HTTP code.

    ACCEPT with our transition id, or a REJECT that shows our own id (a repeat of a call that got through), is ours.
    No state at all says nothing: an error inside the server, after which either may be true.
    """
    state = result.get("state")
    reason = str((result.get("details") or {}).get("reason") or "")
    if not state:
        return Answer(verdict=Verdict.UNSURE, reason=reason or "the server gave no state")
    stands = state_of(run, state)
    if stands.call == transition and result.get("status") in ("ACCEPT", "REJECT"):
        return Answer(verdict=Verdict.ACCEPTED, reason=reason, state=stands)
    return Answer(verdict=Verdict.REFUSED, reason=reason or "somebody else wrote a state", state=stands)
