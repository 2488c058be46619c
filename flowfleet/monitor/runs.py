"""Runs: live claims and those that have ended, in one list for `flowfleet runs`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from flowfleet import certificate
from flowfleet.api.client import StateType
from flowfleet.errors import BadMessage, SettingsError
from flowfleet.flow_run import UUID, Route, telling_ids
from flowfleet.ledger.claims import AGAIN, Claim
from flowfleet.ledger.transitions import State
from flowfleet.logs import iso
from flowfleet.monitor.snapshot import Snapshot, claim_json, route_name
from flowfleet.monitor.tables import PLAIN_WIDTH, coloured, took
from flowfleet.monitor.tables import table as plain_table
from flowfleet.printable import printable

#: the word for what is handed back to the API: the run itself may begin elsewhere
HANDED_BACK = "handed back"
#: the moves by which a claim goes whose host is away
LOSING_MOVES = frozenset({"bury"})
#: what an outcome that the ledger keeps is called for people
_ENDINGS = {"gone": "deleted", AGAIN: "to run again", "scheduled": "to run again"}
#: the word of a claim that is gone by this move, whatever its outcome
_MOVES = {"refuse": "not claimed", "drop (leader)": HANDED_BACK, "drop (worker)": HANDED_BACK, "replace": "replaced"}
#: what a narrow terminal leaves out, in this order
_LEAST = ("MEMORY", "CPU", "BY", "POOL", "DEPLOYMENT", "START UTC", "WORKER", "FLOW")
_DAY = 86400.0
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
    """Those of the known runs that have this name, also as it is shown, or this id, or whose ids begin so."""
    text = given.lower()
    if UUID.fullmatch(text):
        return {text: known[text]} if text in known else {}
    return {
        run_id: name for run_id, name in known.items() if run_id.startswith(text) or given in (name, printable(name))
    }


def parse_state(text: str) -> str:
    """The state of a claim that the text names, in any case; raises `SettingsError` when it names none."""
    if text.lower() not in tuple(State):
        raise SettingsError(
            f"--state cannot be {text!r}: use one of {', '.join(State)}. How a run has ended is asked for by --end."
        )
    return text.lower()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The runs that are asked for; None = any. All but `state` and `worker` are parts of a name, in any case."""

    state: str | None = None
    end: str | None = None
    flow: str | None = None
    deployment: str | None = None
    #: of the route or of its name
    route: str | None = None
    #: NAME or NAME@HOST
    worker: str | None = None
    since_seconds: float | None = None

    def fits(self, run: Mapping[str, Any], now: float) -> bool:
        """Whether the run is one of those."""
        worker = str(run["worker"] or "").lower()
        parts = (
            (self.end, (run["ending"],)),
            (self.flow, (run["flow"],)),
            (self.deployment, (run["deployment"],)),
            (self.route, (run["route"], run["queue"])),
        )
        return (
            (self.state is None or run["state"] == self.state)
            and all(
                part is None or any(part.lower() in str(name or "").lower() for name in names) for part, names in parts
            )
            and (self.worker is None or self.worker.lower() in (worker, worker.rpartition("@")[0]))
            and (self.since_seconds is None or now - float(run["since_unix"]) <= self.since_seconds)
        )


#: no filter at all
ALL_RUNS = Wanted()


def collect(
    snapshot: Snapshot, records: Iterable[Mapping[str, Any]], wanted: Wanted = ALL_RUNS
) -> list[dict[str, Any]]:
    """The runs asked for, live ones first, then those that have ended, newest first."""
    names = snapshot.pool_names
    live = [_live(claim, names) for claim in reversed(snapshot.claims)]
    return [run for run in (*live, *(_ended(record, names) for record in records)) if wanted.fits(run, snapshot.at)]


def _live(claim: Claim, pool_names: Mapping[str, str]) -> dict[str, Any]:
    exit_ = certificate.shown(claim.exit, lost=claim.state is State.JUDGED)
    return claim_json(claim) | {
        "queue": route_name(claim.route, pool_names),
        "end": None,
        "exit": exit_,
        "ending": None,
        "started_unix": claim.began_at or (claim.exit or {}).get("started_at"),
        "since_unix": claim.since,
    }


def _ended(record: Mapping[str, Any], pool_names: Mapping[str, str]) -> dict[str, Any]:
    gone_at, exit_ = float(record.get("gone_at") or 0.0), record.get("exit") or {}
    started = record.get("began_at") or exit_.get("started_at")
    return {
        "run_id": record.get("run_id"),
        "name": record.get("name"),
        "flow": record.get("flow") or None,
        "deployment": record.get("deployment") or None,
        "route": str(record.get("route")),
        "state": str(State.ENDED),
        "claim": record.get("claim"),
        "attempt": record.get("attempt"),
        "worker": record.get("worker"),
        "handle": None,
        "since": iso(gone_at),
        "started": iso(float(started)) if started else None,
        "queue": _queue(str(record.get("route")), pool_names),
        "end": record.get("outcome") or record.get("reason") or record.get("move"),
        "exit": certificate.shown(record.get("exit"), lost=record.get("move") in LOSING_MOVES),
        "ending": ending(record),
        "started_unix": started,
        "since_unix": gone_at,
    }


def _queue(route: str, pool_names: Mapping[str, str]) -> str:
    try:
        return route_name(Route.parse(route), pool_names)
    except BadMessage:
        return route  # of a later version


def ending(record: Mapping[str, Any]) -> str:
    """How a claim that is gone has ended, in a word or two."""
    move, outcome = str(record.get("move")), str(record.get("outcome") or record.get("reason") or "").lower()
    if move in _MOVES:
        return _MOVES[move]
    if move in LOSING_MOVES and outcome.upper() not in StateType.__members__:
        return "lost"
    # other outcomes are the names of states, which are a word; a sentence is none
    return _ENDINGS.get(outcome, outcome if outcome and " " not in outcome else "ended")


def to_json(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs as JSON, without the fields that only the table and the filters need."""
    inner = ("ending", "started_unix", "since_unix")
    return [{name: value for name, value in run.items() if name not in inner} for run in runs]


def table(runs: Sequence[Mapping[str, Any]], now: float, width: int = PLAIN_WIDTH) -> RenderableType:
    """The runs as a table for people; a narrow one leaves out what matters least."""
    columns = ("RUN", "ID", "FLOW", "DEPLOYMENT", "POOL", "STATE", "WORKER", "START UTC", "TOOK", "BY", "CPU", "MEMORY")
    ids = telling_ids(str(run["run_id"]) for run in runs)
    rows = [
        (
            str(run["name"] or "-"),
            ids[str(run["run_id"])],
            str(run["flow"] or "-"),
            str(run["deployment"] or "-"),
            str(run["queue"]),
            _state(run),
            str(run["worker"] or "-"),
            _clock(run["started_unix"], now),
            *_took(run, now),
        )
        for run in runs
    ]
    return plain_table(
        columns,
        rows,
        right=("TOOK", "CPU", "MEMORY"),
        names=("RUN", "FLOW", "DEPLOYMENT", "POOL", "WORKER"),
        least=_LEAST,
        width=width,
    )


def _state(run: Mapping[str, Any]) -> Text:
    """The state of a live claim, or how the run has ended."""
    return coloured(str(run["ending"] or run["state"]))


def _clock(moment: float | None, now: float) -> str:
    """The time of day, as the logs have it; with the date where that is not of the last day."""
    if not moment:
        return "-"
    at = datetime.fromtimestamp(moment, UTC)
    return at.strftime("%H:%M:%S" if now - moment < _DAY else "%m-%d %H:%M")


def _took(run: Mapping[str, Any], now: float) -> tuple[str, str, str, str]:
    """How long it ran, who has ended it, and what it took of CPU and memory."""
    end, started = run["exit"] or {}, run["started_unix"]
    wall, cpu, kib = end.get("wall_seconds"), end.get("cpu_seconds"), end.get("tree_peak_kib") or end.get("max_rss_kib")
    if wall is None and started:
        wall = max(0.0, (float(run["since_unix"]) if run["ending"] else now) - float(started))
    return (
        took(wall),
        str(end.get("ended_by") or "-"),
        "-" if cpu is None else certificate.duration(cpu),
        certificate.memory(kib) if kib else "-",
    )
