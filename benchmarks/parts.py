"""Parts: the single measurements; each takes a started world and gives plain numbers."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.processes import CpuMeter
from benchmarks.proxy import Call, CountingProxy
from benchmarks.runs import Api, Timeline, after
from benchmarks.sides import Side

#: seconds that are counted on after the last run has ended: reports and log lines come late
TAIL = 3.0


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class World:
    """What the measurements share."""

    api: Api
    proxy: CountingProxy
    folder: Path
    deployments: dict[tuple[str, str], str]  # (side, flow) → deployment id
    #: processes that belong to a side but were not started by it (our Redis)
    extra_pids: dict[str, tuple[int, ...]]
    seconds_per_run: float  # bound: no run may take longer on average


def spread(values: Iterable[float | None]) -> dict[str, float]:
    """Median and p95 (the highest, when there are few)."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return {"median": float("nan"), "p95": float("nan")}
    return {"median": statistics.median(known), "p95": known[min(len(known) - 1, int(0.95 * len(known)))]}


def between(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else second - first


def latencies(lines: Sequence[Timeline]) -> dict[str, dict[str, float]]:
    return {
        "scheduled_to_pending": spread(between(line.scheduled, line.pending) for line in lines),
        "pending_to_running": spread(between(line.pending, line.running) for line in lines),
        "scheduled_to_running": spread(between(line.scheduled, line.running) for line in lines),
    }


def requests_of(side: str, counts: Counter[Call]) -> tuple[Counter[str], int]:
    """The executor's requests by route, and how many its children made.

    The children come by a door of their own. An executor that gives them its own address all the same is told apart
    by the client's name, since ours says flowfleet.
    """
    own: Counter[str] = Counter()
    children = 0
    for call, number in counts.items():
        door_side, _, kind = call.door.partition("-")
        if door_side != side:
            continue
        if kind == "engine" or (side == "fleet" and not call.ours):
            children += number
        else:
            own[call.route] += number
    return own, children


def burst(world: World, side: Side, runs: int) -> dict[str, Any]:
    """Many trivial runs at once."""
    say(f"{side.name}: {runs} trivial runs at once")
    deployment = world.deployments[side.name, "trivial"]
    redis_before = _cpu(world.extra_pids.get(side.name, ()))
    before = world.proxy.counts()
    with CpuMeter(side.mark) as meter:
        begun = time.time()
        run_ids = [world.api.create(deployment) for _ in range(runs)]
        world.api.wait_ended(run_ids, 60 + runs * world.seconds_per_run)
        time.sleep(TAIL)
    cpu = meter.seconds + _cpu(world.extra_pids.get(side.name, ())) - redis_before
    own, children = requests_of(side.name, world.proxy.counts() - before)
    lines = [world.api.timeline(run_id) for run_id in run_ids]
    wall = max(line.ended or begun for line in lines) - begun
    result = {
        "runs": runs,
        "completed": sum(line.final == "COMPLETED" for line in lines),
        "runs_per_minute": 60 * runs / wall,
        "wall_seconds": wall,
        "cpu_seconds_per_run": cpu / runs,
        "own_requests_per_run": own.total() / runs,
        "child_requests_per_run": children / runs,
        "routes": {route: number / runs for route, number in own.most_common()},
        **latencies(lines),
    }
    say(f"{side.name}: {result['runs_per_minute']:.1f} runs/min, {result['completed']} of {runs} completed")
    return result


def singles(world: World, side: Side, runs: int, seed: int = 7) -> dict[str, Any]:
    """Runs one by one on an idle system, at times that do not keep step with anybody's polls."""
    say(f"{side.name}: {runs} single runs")
    dice = random.Random(seed)
    deployment = world.deployments[side.name, "trivial"]
    lines, own, children = [], Counter[str](), 0
    for _ in range(runs):
        time.sleep(dice.uniform(0.5, 8.0))
        before = world.proxy.counts()
        run_id = world.api.create(deployment)
        world.api.wait_ended([run_id], 60 + world.seconds_per_run)
        time.sleep(TAIL)
        made, by_children = requests_of(side.name, world.proxy.counts() - before)
        own += made
        children += by_children
        lines.append(world.api.timeline(run_id))
    result = {
        "runs": runs,
        "completed": sum(line.final == "COMPLETED" for line in lines),
        "own_requests_per_run": own.total() / runs,
        "child_requests_per_run": children / runs,
        "routes": {route: number / runs for route, number in own.most_common()},
        **latencies(lines),
    }
    say(f"{side.name}: Scheduled→Running {result['scheduled_to_running']['median']:.2f} s")
    return result


def ahead(world: World, side: Side, runs: int, *, first: float = 25.0, apart: float = 7.0) -> dict[str, Any]:
    """Runs that are scheduled ahead: when does each start, against its time?"""
    say(f"{side.name}: {runs} runs scheduled ahead")
    deployment = world.deployments[side.name, "trivial"]
    times: list[datetime] = [after(first + number * apart) for number in range(runs)]
    run_ids = [world.api.create(deployment, at=moment) for moment in times]
    world.api.wait_ended(run_ids, first + runs * apart + 60 + world.seconds_per_run)
    late = []
    for run_id, moment in zip(run_ids, times, strict=True):
        line = world.api.timeline(run_id)
        late.append(float("nan") if line.running is None else line.running - moment.timestamp())
    say(f"{side.name}: lateness {', '.join(f'{value:+.2f}' for value in late)} s")
    return {"runs": runs, "lateness": late, **extremes(late)}


def extremes(late: Sequence[float]) -> dict[str, float]:
    """The earliest and the latest start; both unknown when a run never started, which `min` and `max` may skip."""
    if any(math.isnan(seconds) for seconds in late):
        return {"earliest": math.nan, "latest": math.nan}
    return {"earliest": min(late), "latest": max(late)}


def idle(world: World, side: Side, seconds: float) -> dict[str, Any]:
    """Requests per minute while nothing is due."""
    workers = sum(1 for part in side.parts if not part.name.startswith("poller"))
    say(f"{side.name}: idle with {workers} worker(s) for {seconds:.0f} s")
    time.sleep(10)  # sign-on requests are over
    before = world.proxy.counts()
    time.sleep(seconds)
    side.check()
    own, _ = requests_of(side.name, world.proxy.counts() - before)
    per_minute = {route: 60 * number / seconds for route, number in own.most_common()}
    say(f"{side.name}: {sum(per_minute.values()):.1f} requests/min")
    return {"workers": workers, "requests_per_minute": sum(per_minute.values()), "routes": per_minute}


def memory(world: World, side: Side, runs: int) -> dict[str, Any]:
    """Memory while `runs` runs are under way, and before."""
    say(f"{side.name}: memory with {runs} runs")
    deployment = world.deployments[side.name, "hold"]
    seconds = 20 + 4 * world.seconds_per_run
    run_ids = [world.api.create(deployment, parameters={"seconds": seconds}) for _ in range(runs)]
    world.api.wait_running(run_ids, 60 + runs * world.seconds_per_run)
    result: dict[str, Any] = {"runs": runs}
    for part in side.parts:
        found = processes.memory(part.process.pid)
        result[part.name.partition("-")[0]] = {"rss": found.rss, "pss": found.pss}
    shims, others = side.helpers()
    pss = [processes.memory(process.pid).pss for process in shims]
    result["shims"] = {"number": len(shims), "pss": sum(pss), "pss_per_run": sum(pss) / runs}
    result["helpers"] = {"number": len(others), "pss": sum(processes.memory(process.pid).pss for process in others)}
    world.api.wait_ended(run_ids, seconds + 60)
    say(f"{side.name}: {', '.join(f'{name} {value}' for name, value in result.items() if name != 'runs')}")
    return result


def _cpu(pids: Iterable[int]) -> float:
    return sum(found.cpu_seconds for pid in pids if (found := processes.look(pid)))
