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
    """The median of each number over the rounds; of the routes too."""
    merged: dict[str, Any] = {}
    for key in {key for one in rounds for key in one}:
        values = [one[key] for one in rounds if key in one]
        if isinstance(values[0], dict):
            merged[key] = merge(values)
        else:
            # a route that a round did not use counts as 0 there
            merged[key] = statistics.median([*values, *[0] * (len(rounds) - len(values))])
    return merged


def lines(results: Results) -> list[str]:
    """All tables that the measured parts allow."""
    out: list[str] = []
    for part, title in (("burst", "burst"), ("single", "single runs")):
        if part in results:
            out += _comparison(title, {side: _numbers(value) for side, value in results[part].items()})
            out += _routes(title, results[part])
    if "ahead" in results:
        out += ["", "runs scheduled ahead: start minus scheduled time, s"]
        for side, value in results["ahead"].items():
            out.append(f"  {side:8} {'  '.join(f'{late:+.2f}' for late in value['lateness'])}")
    if "idle" in results:
        out += ["", "idle, requests per minute"]
        for side, by_workers in results["idle"].items():
            for workers, value in by_workers.items():
                named = ", ".join(f"{route} {number:.1f}" for route, number in value["routes"].items())
                out.append(f"  {side:8} {workers} worker(s)  {value['requests_per_minute']:5.1f}   {named}")
    if "memory" in results:
        out += ["", "memory with runs under way, MB"]
        for side, value in results["memory"].items():
            out += _memory(side, value)
    return out


def _memory(side: str, value: dict[str, Any]) -> list[str]:
    named = [f"{part}: RSS {value[part]['rss']:.0f}, PSS {value[part]['pss']:.0f}" for part in _parts(value)]
    shims, helpers = value["shims"], value["helpers"]
    named.append(f"{shims['number']} shims: PSS {shims['pss']:.1f}, {shims['pss_per_run']:.1f} per run")
    named.append(f"{helpers['number']} other processes: PSS {helpers['pss']:.1f}")
    return [f"  {side:8} {value['runs']} runs   {'; '.join(named)}"]


def _parts(value: dict[str, Any]) -> list[str]:
    return [key for key, found in value.items() if isinstance(found, dict) and key not in ("shims", "helpers")]


def _numbers(value: dict[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key in ("runs_per_minute", "cpu_seconds_per_run"):
        if key in value:
            flat[key.replace("_", " ")] = value[key]
    for key in ("scheduled_to_pending", "pending_to_running", "scheduled_to_running"):
        words = "→".join(word.capitalize() for word in key.split("_to_"))
        flat[f"{words} median, s"] = value[key]["median"]
        flat[f"{words} p95, s"] = value[key]["p95"]
    flat["requests per run, all"] = value["own_requests_per_run"] + value["child_requests_per_run"]
    flat["of them the executor's own"] = value["own_requests_per_run"]
    return flat


def _comparison(title: str, sides: dict[str, dict[str, float]]) -> list[str]:
    out = ["", f"{title:36} {'stock':>10} {'flowfleet':>10} {'ratio':>7}"]
    names = next(iter(sides.values()))
    for name in names:
        stock = sides.get("stock", {}).get(name, math.nan)
        fleet = sides.get("fleet", {}).get(name, math.nan)
        ratio = fleet / stock if stock else math.nan
        out.append(f"  {name:34} {_cell(stock)} {_cell(fleet)} {_cell(ratio, 7)}")
    if "stock" in sides and "fleet" in sides:
        added = _added(sides["stock"], sides["fleet"])
        out.append(
            f"  {'added to a bare engine, requests':34} {added[0]:10.2f} {added[1]:10.2f} {added[1] / added[0]:7.2f}"
        )
    return out


def _cell(value: float, width: int = 10) -> str:
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.2f}"


def _added(stock: dict[str, float], fleet: dict[str, float]) -> tuple[float, float]:
    """Requests per run beyond those of the engine alone.

    flowfleet starts the engine directly, so what its children ask is the engine alone; stock's children are the
    engine and the supervisor before it.
    """
    everything, own = "requests per run, all", "of them the executor's own"
    engine = fleet[everything] - fleet[own]
    return stock[everything] - engine, fleet[own]


def _routes(title: str, sides: dict[str, dict[str, Any]]) -> list[str]:
    out = ["", f"{title}: the executor's own requests per run, by route", f"  {'stock':>7} {'flowfleet':>9}"]
    tables = {side: value["routes"] for side, value in sides.items()}
    every = sorted(
        {route for table in tables.values() for route in table},
        key=lambda route: -max(table.get(route, 0.0) for table in tables.values()),
    )
    stock, fleet = tables.get("stock", {}), tables.get("fleet", {})
    return out + [f"  {stock.get(route, 0.0):7.2f} {fleet.get(route, 0.0):9.2f}  {route}" for route in every]


def bars(results: Results) -> list[Bar]:
    """The bars of the measured parts."""
    found: list[Bar] = []

    def at_most(name: str, value: float, limit: float, unit: str = "") -> None:
        found.append(Bar(name, value, f"≤ {limit:g}{unit}", value <= limit))

    burst, single = results.get("burst", {}), results.get("single", {})
    if "fleet" in burst:
        if "stock" in burst:
            ratio = burst["fleet"]["runs_per_minute"] / burst["stock"]["runs_per_minute"]
            found.append(Bar("burst: runs/min to stock", ratio, "≥ 1.3 x", ratio >= 1.3))
        share = burst["fleet"]["completed"] / burst["fleet"]["runs"]
        found.append(Bar("burst: runs completed", share, "= 1", share == 1))
        at_most("burst: own requests per run", burst["fleet"]["own_requests_per_run"], 7)
    if "fleet" in single:
        if "stock" in single:
            ratio = (
                single["fleet"]["scheduled_to_running"]["median"] / single["stock"]["scheduled_to_running"]["median"]
            )
            at_most("single: Scheduled→Running to stock", ratio, 0.8, " x")
        at_most("single: own requests per run", single["fleet"]["own_requests_per_run"], 10)
    if "fleet" in results.get("ahead", {}):
        value = results["ahead"]["fleet"]
        found.append(Bar("ahead: earliest start, s", value["earliest"], "≥ -0.6", value["earliest"] >= -0.6))
        at_most("ahead: latest start, s", value["latest"], 1.0)
    for workers, value in results.get("idle", {}).get("fleet", {}).items():
        at_most(f"idle: requests/min, {workers} worker(s)", value["requests_per_minute"], 8)
    if "fleet" in results.get("memory", {}):
        value = results["memory"]["fleet"]
        at_most("memory: poller RSS", value["poller"]["rss"], 60, " MB")
        at_most("memory: worker RSS", value["worker"]["rss"], 80, " MB")
        at_most("memory: PSS per supervised run", value["shims"]["pss_per_run"], 3, " MB")
    return found


def bar_lines(found: list[Bar]) -> list[str]:
    """One line a bar: ok or missed."""
    out = ["", f"{'to reach':40} {'measured':>9} {'wanted':>10}"]
    return out + [f"  {bar.name:38} {bar.value:9.2f} {bar.wanted:>10}  {'ok' if bar.ok else 'missed'}" for bar in found]
