"""Runs: live claims and those that are gone, in one list for `flowfleet runs`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from flowfleet import certificate
from flowfleet.errors import SettingsError
from flowfleet.flow_run import UUID
from flowfleet.ledger.claims import Claim
from flowfleet.ledger.transitions import State
from flowfleet.logs import iso
from flowfleet.monitor.snapshot import Snapshot, claim_json, route_name
from flowfleet.monitor.tables import PLAIN_WIDTH, span
from flowfleet.monitor.tables import table as plain_table

#: the state shown for a claim that is gone; its record says how the claim went
GONE = "gone"
#: the moves by which a claim goes whose host is away
LOSING_MOVES = frozenset({"bury"})
#: from this width on a table tells what each run took
_WIDE = 110
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_since(text: str) -> float:
    """Seconds of `90s`, `10m`, `2h`, `1d`; raises `SettingsError` for other text."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if not found:
        raise SettingsError(f"--since cannot be {text!r}: give a number with s, m, h or d, such as 10m.")
    return int(found[1]) * _UNITS[found[2]]


def names(records: Iterable[Mapping[str, Any]], claims: Iterable[Claim]) -> dict[str, str]:
    """Run id → run name, of the live claims and of those that are gone."""
    gone = {str(record.get("run_id")): str(record.get("name") or "") for record in records}
    return gone | {claim.run_id: claim.name or "" for claim in claims}


def fitting(given: str, known: Mapping[str, str]) -> dict[str, str]:
    """Those of the known runs that have this name or this id, or whose ids begin so."""
    text = given.lower()
    if UUID.fullmatch(text):
        return {text: known[text]} if text in known else {}
    return {run_id: name for run_id, name in known.items() if run_id.startswith(text) or name == given}


def parse_state(text: str) -> str:
    """Check that the text is a state of a claim, or `gone`; raises `SettingsError` when it is not."""
    states = (*State, GONE)
    if text not in states:
        raise SettingsError(f"--state cannot be {text!r}: use one of {', '.join(states)}.")
    return text


def collect(
    snapshot: Snapshot,
    records: Iterable[Mapping[str, Any]],
    *,
    state: str | None = None,
    route: str | None = None,
    worker: str | None = None,
    since_seconds: float | None = None,
) -> list[dict[str, Any]]:
    """The runs asked for (None = any), live ones first, then the gone ones, newest first.

    `route` is a part of the route or of its name.
    """

    def fits(run: Mapping[str, Any]) -> bool:
        its_worker = str(run["worker"] or "")
        return (
            (state is None or run["state"] == state)
            and (route is None or route in str(run["route"]) or route in str(run["queue"]))
            and (worker is None or worker in (its_worker, its_worker.rpartition("@")[0]))
            and (since_seconds is None or snapshot.at - float(run["since_unix"]) <= since_seconds)
        )

    names = snapshot.pool_names
    live = [_live(claim, names) for claim in reversed(snapshot.claims)]
    return [run for run in (*live, *map(_gone, records)) if fits(run)]


def _live(claim: Claim, pool_names: Mapping[str, str]) -> dict[str, Any]:
    exit_ = certificate.shown(claim.exit, lost=claim.state is State.JUDGED)
    return claim_json(claim) | {
        "end": None,
        "exit": exit_,
        "queue": route_name(claim.route, pool_names),
        "since_unix": claim.since,
    }


def _gone(record: Mapping[str, Any]) -> dict[str, Any]:
    gone_at = float(record.get("gone_at") or 0.0)
    return {
        "run_id": record.get("run_id"),
        "name": record.get("name"),
        "route": str(record.get("route")),
        "state": GONE,
        "claim": record.get("claim"),
        "attempt": record.get("attempt"),
        "worker": record.get("worker"),
        "handle": None,
        "since": iso(gone_at),
        "end": record.get("outcome") or record.get("reason") or record.get("move"),
        "exit": certificate.shown(record.get("exit"), lost=record.get("move") in LOSING_MOVES),
        "queue": str(record.get("route")),
        "since_unix": gone_at,
    }


def to_json(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs as JSON, without the fields that only the table needs."""
    return [{name: value for name, value in run.items() if name not in ("queue", "since_unix")} for run in runs]


def table(runs: Sequence[Mapping[str, Any]], now: float, width: int = PLAIN_WIDTH) -> RenderableType:
    """The runs as a table for people."""
    columns: tuple[str, ...] = ("RUN", "ID", "STATE", "WORKER", "AGO", "END", "BY")
    wide = ("TOOK", "CPU", "MEMORY") if width >= _WIDE else ()
    rows = [
        (
            str(run["name"] or "-"),
            str(run["run_id"])[:8],
            str(run["state"]),
            str(run["worker"] or "-"),
            span(max(0.0, now - float(run["since_unix"]))),
            str(run["end"] or "-"),
            str((run["exit"] or {}).get("ended_by") or "-"),
            *(_took(run["exit"] or {}) if wide else ()),
        )
        for run in runs
    ]
    return plain_table((*columns, *wide), rows, right=("AGO", *wide), names=("RUN", "WORKER", "END"), width=width)


def _took(end: Mapping[str, Any]) -> tuple[str, str, str]:
    wall, cpu, kib = end.get("wall_seconds"), end.get("cpu_seconds"), end.get("tree_peak_kib") or end.get("max_rss_kib")
    return (
        "-" if wall is None else certificate.duration(wall),
        "-" if cpu is None else certificate.duration(cpu),
        certificate.memory(kib) if kib else "-",
    )
