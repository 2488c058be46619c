"""States: Prefect 3's JSON of runs and states, read into `RunState`, and the server's answer to a written state."""

from collections.abc import Sequence

from flowfleet.api.client import Answer, RunState, StateType, Verdict
from flowfleet.api.transport.reading import Json, instant
from flowfleet.flow_run import is_claim_of


def state_of(run: Json, state: Json | None = None) -> RunState:
    """The state of a run by its JSON; `state` is given where an answer carries a newer state than the run."""
    state = state or run.get("state") or {}
    details = state.get("state_details") or {}
    kind = StateType(state.get("type") or run.get("state_type") or StateType.PENDING)
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
        retry_policy=run.get("empirical_policy") or {},
    )


def retries_inside(policy: Json) -> bool:
    """Whether a run's policy says that its own process tries it again: as long as it does, it is handed to nobody."""
    return bool(policy.get("retry_type") == "in_process")


def _held(run: Json, kind: StateType, details: Json) -> bool:
    """Whether the run waits in its own process: the server hands such a run to nobody, so its death must be told."""
    if kind is StateType.SCHEDULED:
        return retries_inside(run.get("empirical_policy") or {})
    return kind is StateType.PAUSED and not details.get("pause_reschedule")


def answer_of(run: Json, result: Json, transition: str) -> Answer:
    """The server's answer to the state that we wrote, read from `status` and state, never from the HTTP code.

    ACCEPT with our transition id, or a REJECT that shows our own id (a repeat of a call that got through), means that
    our state stands. No state at all says nothing: an error inside the server, after which either may be true.
    """
    state = result.get("state")
    reason = str((result.get("details") or {}).get("reason") or "")
    if not state:
        return Answer(verdict=Verdict.UNSURE, reason=reason or "the server gave no state")
    stands = state_of(run, state)
    if stands.call == transition and result.get("status") in ("ACCEPT", "REJECT"):
        return Answer(verdict=Verdict.ACCEPTED, reason=reason, state=stands)
    return Answer(verdict=Verdict.REFUSED, reason=reason or "somebody else wrote a state", state=stands)


def claimed_since(history: Sequence[Json], run_id: str, claim: str) -> bool:
    """Whether a claim of somebody else comes after this one in the run's history.

    A claim is a Pending state with a transition id of the claimer's. Another Pending right behind it belongs to the
    same attempt (`prefect flow-run execute` and others write a second one); after any other state it is a claim anew.
    """
    ours = others = False
    before = None
    for state in sorted(history, key=lambda state: str(state.get("timestamp") or "")):
        kind = state.get("type")
        if kind == StateType.PENDING.value:
            call = (state.get("state_details") or {}).get("transition_id")
            mine = call == claim or is_claim_of(call, run_id, claim)
            ours |= mine
            others |= ours and not mine and before != StateType.PENDING.value
        before = kind
    return others
