"""Agents: the real LocalAgent of prefect 1.4.1 and flowfleet, side by side on one local Prefect 1 API."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import requests

from benchmarks import processes
from benchmarks.cgroup import Group
from benchmarks.parts import say
from benchmarks.proxy import CountingProxy
from benchmarks.report import Bar
from benchmarks.runs import wait
from benchmarks.sides import BIN, Fleet, Side, running, stopping
from tests.prefect1_client import Prefect1Client
from tests.prefect1_env import environment, python
from tests.valkey import Valkey

ROOT = Path(__file__).resolve().parent.parent
LABELS = {"agent1": "stock", "fleet1": "ours"}


class Agent(Side):
    """`prefect agent local start`, one for each host that there would be."""

    def start(self, workers: int = 1) -> None:
        for number in range(1, workers + 1):
            self.launch(
                f"agent-{number}",
                [
                    *(str(python()), "-m", "prefect", "agent", "local", "start", "--no-hostname-label"),
                    *("--name", f"agent-{number}", "--label", LABELS[self.name], "--label", f"host-{number}"),
                ],
            )
        wait(self._ready, 90, "the real agents to start")

    def _ready(self) -> bool:
        self.check()
        return all("Waiting for flow runs" in part.log.read_text(errors="replace") for part in self.parts)


class Fleet1(Fleet):
    """One poller and workers of ours, with the same labels."""

    def start(self, workers: int = 1) -> None:
        addresses = [self._launch("poller", "poller", "start")]
        for number in range(1, workers + 1):
            options = ("--label", LABELS[self.name], "--label", f"host-{number}", "--no-hostname-label")
            options += ("--slots", str(self.slots), "--python", str(python()), "--on-stop", "cancel")
            addresses.append(self._launch(f"worker-{number}", "worker", "start", "--name", f"w{number}", *options))
        wait(lambda: self._ready(addresses), 90, "poller and workers to be ready")


class PeakMeter:
    """The most memory that a side's processes had together, MB."""

    def __init__(self, side: Side, extra: Sequence[int] = (), interval: float = 0.25) -> None:
        self._side, self._extra, self._interval = side, extra, interval
        #: of their own, each page once
        self.own = 0.0
        #: as `ps` adds it up: a page that forked processes share counts for each of them
        self.resident = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        assert self._side.group is not None
        while not self._stop.wait(self._interval):
            extra = sum(map(_rss, self._extra))
            pids = [process.pid for process in processes.of_side(self._side.mark)]
            self.resident = max(self.resident, sum(map(_rss, pids)) + extra)
            self.own = max(self.own, self._side.group.megabytes + extra)


def _rss(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * 4096 / (1 << 20)


@dataclass(frozen=True)
class World1:
    """The API in a process of its own, the flow, and who is measured."""

    api_url: str
    client: Prefect1Client
    flow: str
    proxy: CountingProxy
    sides: Mapping[str, Side]
    redis: int

    def ended(self, run_ids: Sequence[str]) -> bool:
        rows = self.ask('query { flow_run(where: {state: {_in: ["Success", "Failed"]}}, limit: 10000) { id } }')
        return set(run_ids) <= {row["id"] for row in rows["flow_run"]}

    def timeline(self, run_id: str) -> dict[str, str]:
        """State → when it was first written."""
        query = f'query {{ flow_run(where: {{id: {{_eq: "{run_id}"}}}}) {{ states {{ state timestamp version }} }} }}'
        states = sorted(self.ask(query)["flow_run"][0]["states"], key=lambda state: state["version"])
        found: dict[str, str] = {}
        for state in states:
            found.setdefault(state["state"], state["timestamp"])
        return found

    def ask(self, query: str) -> Any:
        return requests.post(self.api_url, json={"query": query}, timeout=60).json()["data"]


@contextmanager
def world_of(slots: int) -> Iterator[World1]:
    """All of it, gone at the end."""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="flowfleet-bench1-", ignore_cleanup_errors=True))
        )
        for name in ("real", *LABELS):
            (folder / name).mkdir()
        api = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.prefect1_api", "--like-server"], cwd=ROOT, stdout=subprocess.PIPE
        )
        stack.callback(_end, api)
        assert api.stdout is not None
        url = api.stdout.readline().decode().strip()
        valkey = stack.enter_context(Valkey.private(tcp=True, aof=True))
        client = stack.enter_context(Prefect1Client(folder / "real", url))
        flow = client.register("plain")["plain"]
        proxy = CountingProxy(int(url.rpartition(":")[2]), list(LABELS))
        proxy.start()
        stack.callback(proxy.stop)
        sides: dict[str, Side] = {}
        for name, kind in (("agent1", Agent), ("fleet1", Fleet1)):
            home = folder / name
            env = environment(home, proxy.api_url(name).removesuffix("/api"))
            env.pop("PREFECT__CLOUD__HEARTBEAT_MODE")  # the real agent's own default
            env |= {
                "FLOWFLEET_REDIS": valkey.url,
                "FLOWFLEET_FLEET": "bench1",
                "FLOWFLEET_BACKEND": "prefect1",
                "XDG_STATE_HOME": str(home / "state"),
                "PATH": f"{BIN}:{env.get('PATH', '')}",
                "PYTHONUNBUFFERED": "1",
            }
            sides[name] = kind(name, home, env, slots)
        with stopping(*sides.values()):
            yield World1(url, client, flow, proxy, sides, valkey.pid)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)


@contextmanager
def _counted(side: Side) -> Iterator[None]:
    """The kernel counts what the side uses."""
    group = Group(side.name)
    side.group = group
    try:
        yield
    finally:
        side.group = None
        group.close()


def burst(world: World1, side: Side, runs: int, seconds_per_run: float) -> dict[str, Any]:
    """Many trivial runs at once."""
    say(f"{side.name}: {runs} trivial runs at once")
    extra = (world.redis,) if side.name == "fleet1" else ()
    before = _cpu(extra)
    assert side.group is not None
    used = side.group.seconds  # what the programs used until they were ready is not for the runs
    with PeakMeter(side, extra) as peak:
        begun = time.monotonic()
        run_ids = [world.client.create_run(world.flow, labels=[LABELS[side.name], "host-1"]) for _ in range(runs)]
        wait(lambda: world.ended(run_ids), 60 + runs * seconds_per_run, "all runs to end")
        wall = time.monotonic() - begun
        time.sleep(3)  # engines that have told their end are still on their way out
    lines = [world.timeline(run_id) for run_id in run_ids]
    result = {
        "runs": runs,
        "completed": sum("Success" in line for line in lines),
        "runs_per_minute": 60 * runs / wall,
        "cpu_seconds_per_run": (side.group.seconds - used + _cpu(extra) - before) / runs,
        "peak_own": peak.own,
        "peak_resident": peak.resident,
    }
    say(f"{side.name}: {result['runs_per_minute']:.1f} runs/min, {result['completed']} of {runs} completed")
    return result


def idle(world: World1, side: Side, seconds: float) -> float:
    """Requests a minute while nothing is due."""
    time.sleep(15)  # what the start asks is over, and the pauses have grown
    before = sum(number for call, number in world.proxy.counts().items() if call.door == side.name)
    time.sleep(seconds)
    side.check()
    after = sum(number for call, number in world.proxy.counts().items() if call.door == side.name)
    return 60 * (after - before) / seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Interleaved rounds of the burst, and both when idle."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in LABELS}
    results: dict[str, Any] = {"idle": {}}
    with world_of(options.slots) as world:
        for number in range(1, options.rounds + 1):
            say(f"Prefect 1 burst, round {number} of {options.rounds}")
            for name, side in world.sides.items():
                with _counted(side), running(side):
                    rounds[name].append(burst(world, side, options.runs, options.seconds_per_run))
        for name, side in world.sides.items():
            results["idle"][name] = {}
            for workers in options.idle_workers:
                with running(side, workers):
                    results["idle"][name][workers] = idle(world, side, options.idle_seconds)
    for name, values in rounds.items():
        results[name] = {key: statistics.median(one[key] for one in values) for key in values[0]}
        results[name]["completed"] = min(one["completed"] for one in values)
    return results


def lines(results: Mapping[str, Any]) -> list[str]:
    """The table."""
    agent, fleet = results["agent1"], results["fleet1"]
    rows = [
        ("runs per minute", "runs_per_minute"),
        ("CPU seconds per run", "cpu_seconds_per_run"),
        ("peak memory, shared pages once, MB", "peak_own"),
        ("peak memory as ps adds it up, MB", "peak_resident"),
    ]
    out = [
        "",
        f"Prefect 1: {agent['runs']:g} trivial runs at once",
        f"{'':40} {'agent':>9} {'flowfleet':>10} {'ratio':>7}",
    ]
    out += [f"  {title:38} {agent[key]:9.2f} {fleet[key]:10.2f} {fleet[key] / agent[key]:6.2f}x" for title, key in rows]
    for workers, theirs in results["idle"]["agent1"].items():
        ours = results["idle"]["fleet1"][workers]
        out.append(
            f"  {f'requests/min when idle, {workers} host(s)':38} {theirs:9.1f} {ours:10.1f} {ours / theirs:6.2f}x"
        )
    return out


def bars(results: Mapping[str, Any]) -> list[Bar]:
    """What is to be reached."""
    agent, fleet = results["agent1"], results["fleet1"]
    rate = fleet["runs_per_minute"] / agent["runs_per_minute"]
    cpu = fleet["cpu_seconds_per_run"] / agent["cpu_seconds_per_run"]
    peak = fleet["peak_own"] / agent["peak_own"]
    share = fleet["completed"] / fleet["runs"]
    found = [
        Bar("Prefect 1: runs/min to the agent", rate, "≥ 1.3 x", rate >= 1.3),
        Bar("Prefect 1: CPU per run to the agent", cpu, "≤ 0.75 x", cpu <= 0.75),
        Bar("Prefect 1: peak memory to the agent", peak, "≤ 0.15 x", peak <= 0.15),
        Bar("Prefect 1: runs completed", share, "= 1", share == 1),
    ]
    idle_by_workers = results["idle"]["fleet1"]
    if len(idle_by_workers) > 1:
        least, most = idle_by_workers[min(idle_by_workers)], idle_by_workers[max(idle_by_workers)]
        grown = most - least
        found.append(Bar("Prefect 1: idle requests/min more with 4", grown, "≤ 2", grown <= 2))
    return found


def _cpu(pids: Sequence[int]) -> float:
    return sum(found.cpu_seconds for pid in pids if (found := processes.look(pid)))
