"""Rules: which states there are, and which writes of them are refused (prefect1.md 5.4, [srv])."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tests.prefect1_api.errors import Refusal
from tests.prefect1_api.faults import Faults
from tests.prefect1_api.store import Row

SCHEDULED = frozenset({"Scheduled", "Queued", "Retrying", "Paused", "Resume"})
FINISHED = frozenset(
    {"Success", "Failed", "Cancelled", "Cached", "Mapped", "Looped", "Skipped", "TriggerFailed", "TimedOut", "Finished"}
)
_OTHERS = frozenset({"Pending", "Submitted", "ClientFailed", "Running", "Cancelling", "ValidationFailed"})
STATES = SCHEDULED | FINISHED | _OTHERS

#: a state larger than this is refused
MAX_BYTES = 1_000_000

ALREADY = "State update failed: this run has already been submitted."


def whole(state: Any) -> dict[str, Any]:
    """The state as it is kept, or a refusal of what no client could load."""
    if not isinstance(state, Mapping) or state.get("type") not in STATES:
        raise Refusal(f"State update failed: {str(state)[:100]!r} is no state.")
    size = len(json.dumps(state))
    if size > MAX_BYTES:
        raise Refusal(f"State update failed: a state of {size} bytes, at most {MAX_BYTES} are taken.")
    return dict(state)


def check_version(row: Row, version: int | None, faults: Faults) -> None:
    """Cloud's lock: who writes with a version must have read the newest one; clients look at the code [run]."""
    stands = row["version"]
    if faults.version_lock and version is not None and version != stands:
        wrong = f"State update failed: version {version} was given, the run has {stands}."
        raise Refusal(wrong, "VERSION_LOCKING_ERROR")


def check_submitted(row: Row, last: datetime | None, now: datetime, faults: Faults) -> None:
    """Who may submit: by the state that stands (ours), or by the memory of one process (Server's)."""
    if faults.submitted == "memory":
        if last is not None and (now - last).total_seconds() < faults.submitted_seconds:
            raise Refusal(ALREADY)
        return
    if row["state"] in SCHEDULED:
        return
    if row["state"] in ("Submitted", "Running"):
        raise Refusal(ALREADY)
    raise Refusal(f"State update failed: a run that is {row['state']} cannot be submitted.")


def check_task_running(task_run: Row, flow_run: Row) -> None:
    """A task runs only while its flow does [srv]."""
    if flow_run["state"] != "Running":
        raise Refusal(
            f"State update failed: task run {task_run['id']} cannot be Running, as its flow run is {flow_run['state']}."
        )
