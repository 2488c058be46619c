"""Lawless rules: which runs a filter means, and what the real server would refuse (for `honest=True`)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def matches(run: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    ids = wanted.get("id") or {}
    if ids.get("any_") is not None and run["id"] not in ids["any_"]:
        return False
    if ids.get("not_any_") is not None and run["id"] in ids["not_any_"]:
        return False
    state = wanted.get("state") or {}
    tests = [
        run["state"][key] in state[key]["any_"]
        for key in ("type", "name")
        if (state.get(key) or {}).get("any_") is not None
    ]
    if tests and not (any(tests) if state.get("operator") == "or_" else all(tests)):
        return False
    before = instant((wanted.get("next_scheduled_start_time") or {}).get("before_"))
    due = instant(run["next_scheduled_start_time"])
    return before is None or (due is not None and due <= before)


def refusal(stands: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str, str] | None:
    """The server's own rules, as far as they matter to us."""
    mine = (state.get("state_details") or {}).get("transition_id")
    if mine and mine == stands["state_details"].get("transition_id"):
        return "REJECT", "This run has already made this state transition."
    if stands["type"] in TERMINAL and state["type"] in TERMINAL:
        return "ABORT", "This run is already in a terminal state."
    if state["type"] == "PENDING" and stands["type"] == "PENDING" and state.get("name") == stands["name"]:
        return "ABORT", "This run is in a PENDING state and cannot transition to a PENDING state."
    if state["type"] == "PENDING" and stands["type"] in ("RUNNING", "CANCELLING", "CANCELLED"):
        return "ABORT", f"This run is in a {stands['type']} state and cannot transition to a PENDING state."
    return None
