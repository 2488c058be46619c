"""Report: the bench's tables, as ratios to stock, and the bars that are to be reached."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]  # part → side → numbers (a list of them for the burst's rounds)


@dataclass(frozen=True)
class Bar:
    """One number to reach."""

    name: str
    value: float
    wanted: str
    ok: bool


def merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number over the rounds, of the routes too; but a run that one round lost stays lost."""
    merged: dict[str, Any] = {}
    for key in {key for one in rounds for key in one}:
        values = [one[key] for one in rounds if key in one]
        if isinstance(values[0], dict):
            merged[key] = merge(values)
        elif key == "completed":
            merged[key] = min(values)
        else:
            # a route that a round did not use counts as 0 there
            merged[key] = _median([*values, *[0] * (len(rounds) - len(values))])
    return merged


def _median(values: list[float]) -> float:
    # NaN has no place in an order: what is unknown in one round is unknown
    return math.nan if any(math.isnan(value) for value in values) else statistics.median(values)


def lines(results: Results) -> list[str]:
    """All tables that the measured parts allow."""
    out = [*_LEGEND]
    if "burst" in results:
        title = f"burst: {_runs(results['burst'])} trivial runs at once"
        out += [*_runs_table(title, results["burst"]), *_routes("burst", "run", _route_tables(results["burst"]))]
    if "single" in results:
        title = f"single: {_runs(results['single'])} runs, one by one"
        out += [*_runs_table(title, results["single"]), *_routes("single", "run", _route_tables(results["single"]))]
    if "ahead" in results:
        out += _ahead(results["ahead"])
    if "idle" in results:
        out += _idle(results["idle"])
    if "memory" in results:
        out += _memory(results["memory"])
    return out


_LEGEND = (
    "stock is Prefect's own `prefect worker start --type process`; flowfleet is one",
    "poller, one worker (where no other number is named) and Redis. Both have the",
    "same number of slots, the same server and the same flows. The ratio is",
    "flowfleet's number divided by stock's. Where there were several rounds, a number",
    "is the median of them.",
)
_OF_RUNS = (
    "  p95: 95 of 100 runs are at most this slow; with up to 20 runs, the slowest.",
    "  CPU-seconds: of executor, engines and, for flowfleet, Redis.",
    "  Beside the engine: all requests of a run but those that its engine makes.",
)
_OF_MEMORY = (
    "  RSS: all memory that a process has in use. PSS: the same, but what several",
    "  processes share counts only in part for each. Above an engine: the process",
    "  that looks after this one run.",
)


def _runs(sides: dict[str, dict[str, Any]]) -> int:
    return int(next(iter(sides.values()))["runs"])


def _runs_table(title: str, sides: dict[str, dict[str, Any]]) -> list[str]:
    numbers = {side: _numbers(value) for side, value in sides.items()}
    if "stock" in numbers and "fleet" in numbers:
        beside = _beside_engine(sides["stock"], sides["fleet"])
        for side, value in zip(("stock", "fleet"), beside, strict=True):
            numbers[side]["  of them beside the engine"] = value
    explained = [
        line for line in _OF_RUNS if "CPU" not in line or "CPU-seconds per run" in next(iter(numbers.values()))
    ]
    return [*_comparison(title, numbers), *explained]


def _numbers(value: dict[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, words in (("runs_per_minute", "runs per minute"), ("cpu_seconds_per_run", "CPU-seconds per run")):
        if key in value:
            flat[words] = value[key]
    for key in ("scheduled_to_pending", "pending_to_running", "scheduled_to_running"):
        words = "→".join(word.capitalize() for word in key.split("_to_"))
        flat[f"{words}, median, s"] = value[key]["median"]
        flat[f"{words}, p95, s"] = value[key]["p95"]
    flat["API requests per run, all"] = value["own_requests_per_run"] + value["child_requests_per_run"]
    flat["  of them the executor's own"] = value["own_requests_per_run"]
    return flat


def _beside_engine(stock: dict[str, Any], fleet: dict[str, Any]) -> tuple[float, float]:
    """Requests per run beyond those of the engine alone.

    flowfleet starts the engine directly, so what its children ask is the engine alone; stock's children are the
    engine and the supervisor before it.
    """
    engine = fleet["child_requests_per_run"]
    own, children = "own_requests_per_run", "child_requests_per_run"
    return stock[own] + stock[children] - engine, fleet[own]


def _comparison(title: str, sides: dict[str, dict[str, float]]) -> list[str]:
    """A row for each number that a side has."""
    out = ["", f"{title:36} {'stock':>10} {'flowfleet':>10} {'ratio':>7}"]
    stock, fleet = sides.get("stock", {}), sides.get("fleet", {})
    for name in dict.fromkeys([*fleet, *stock]):
        of_stock, of_fleet = stock.get(name, math.nan), fleet.get(name, math.nan)
        out.append(f"  {name:34} {_cell(of_stock)} {_cell(of_fleet)} {_cell(_ratio(of_fleet, of_stock), 7)}")
    return out


def _ratio(fleet: float, stock: float) -> float:
    return fleet / stock if stock else math.nan


def _cell(value: float, width: int = 10) -> str:
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.2f}"


def _route_tables(sides: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {side: value["routes"] for side, value in sides.items()}


def _routes(title: str, unit: str, tables: dict[str, dict[str, float]]) -> list[str]:
    out = [
        "",
        f"{title}: which requests per {unit} the executor makes",
        f"  {'stock':>7} {'flowfleet':>9} {'ratio':>7}",
    ]
    every = sorted(
        {route for table in tables.values() for route in table},
        key=lambda route: -max(table.get(route, 0.0) for table in tables.values()),
    )
    for route in every:
        # a route that a measured side does not use is 0 there; a side that was not measured is unknown
        stock, fleet = (tables[side].get(route, 0.0) if side in tables else math.nan for side in ("stock", "fleet"))
        out.append(f"  {_cell(stock, 7)} {_cell(fleet, 9)} {_cell(_ratio(fleet, stock), 7)}  {_short(route)}")
    return out


def _short(route: str, most: int = 51) -> str:
    return route if len(route) <= most else route[: most - 1] + "…"


def _ahead(sides: dict[str, dict[str, Any]]) -> list[str]:
    out = ["", "ahead: how many seconds after its scheduled time each run began"]
    for side, value in sides.items():
        late = ["never" if math.isnan(seconds) else f"{seconds:+.2f}" for seconds in value["lateness"]]
        for first in range(0, len(late), 8):
            name = {"fleet": "flowfleet"}.get(side, side) if first == 0 else ""
            out.append(f"  {name:10} {' '.join(f'{text:>7}' for text in late[first : first + 8])}")
    return out


def _idle(sides: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    totals = {
        side: {_workers(number): value["requests_per_minute"] for number, value in by_number.items()}
        for side, by_number in sides.items()
    }
    out = _comparison("idle: API requests per minute", totals)
    for number in next(iter(sides.values())):
        tables = {side: by_number[number]["routes"] for side, by_number in sides.items()}
        out += _routes(f"idle, {_workers(number)}", "minute", tables)
    return out


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _memory(sides: dict[str, dict[str, Any]]) -> list[str]:
    table: dict[str, dict[str, float]] = {}
    for side, value in sides.items():
        rows = table[side] = {}
        for kind in ("rss", "pss"):
            parts = {part: value[part][kind] for part in ("poller", "worker", "stock") if part in value}
            for part, size in parts.items():
                rows[f"{'worker' if part == 'stock' else part}, {kind.upper()}"] = size
            rows[f"poller and worker, {kind.upper()}"] = sum(parts.values())
        rows["above each engine, PSS per run"] = value["shims"]["pss_per_run"]
        rows["other processes, PSS"] = value["helpers"]["pss"]
        rows["all but the engines, PSS"] = (
            rows["poller and worker, PSS"] + value["shims"]["pss"] + value["helpers"]["pss"]
        )
    return [*_comparison(f"memory with {_runs(sides)} runs under way, MB", table), *_OF_MEMORY]


def bars(results: Results) -> list[Bar]:
    """The bars of the measured parts."""
    found: list[Bar] = []

    def at_most(name: str, value: float, limit: float, unit: str = "") -> None:
        found.append(Bar(name, value, f"≤ {limit:g}{unit}", value <= limit))

    def completed(part: str, value: dict[str, Any]) -> None:
        share = value["completed"] / value["runs"]
        found.append(Bar(f"{part}: runs completed", share, "= 1", share == 1))

    burst, single = results.get("burst", {}), results.get("single", {})
    if "fleet" in burst:
        if "stock" in burst:
            ratio = burst["fleet"]["runs_per_minute"] / burst["stock"]["runs_per_minute"]
            found.append(Bar("burst: runs/min to stock", ratio, "≥ 1.3 x", ratio >= 1.3))
        completed("burst", burst["fleet"])
        at_most("burst: own requests per run", burst["fleet"]["own_requests_per_run"], 7)
    if "fleet" in single:
        if "stock" in single:
            ratio = (
                single["fleet"]["scheduled_to_running"]["median"] / single["stock"]["scheduled_to_running"]["median"]
            )
            at_most("single: Scheduled→Running to stock", ratio, 0.8, " x")
        completed("single", single["fleet"])
        at_most("single: own requests per run", single["fleet"]["own_requests_per_run"], 10)
    if "fleet" in results.get("ahead", {}):
        value = results["ahead"]["fleet"]
        found.append(Bar("ahead: earliest start, s", value["earliest"], "≥ -0.6", value["earliest"] >= -0.6))
        at_most("ahead: latest start, s", value["latest"], 1.0)
    for workers, value in results.get("idle", {}).get("fleet", {}).items():
        at_most(f"idle: requests/min, {_workers(workers)}", value["requests_per_minute"], 8)
    if "fleet" in results.get("memory", {}):
        value = results["memory"]["fleet"]
        at_most("memory: poller RSS", value["poller"]["rss"], 60, " MB")
        at_most("memory: worker RSS", value["worker"]["rss"], 80, " MB")
        at_most("memory: PSS per supervised run", value["shims"]["pss_per_run"], 3, " MB")
    return found


def bar_lines(found: list[Bar]) -> list[str]:
    """One line a bar: ok or missed."""
    out = ["", f"{'what flowfleet has to reach':40} {'measured':>9} {'wanted':>10}"]
    return out + [
        f"  {bar.name:38} {_cell(bar.value, 9)} {bar.wanted:>10}  {'ok' if bar.ok else 'missed'}" for bar in found
    ]
