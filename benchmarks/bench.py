"""Bench: Prefect's own process worker and flowfleet, side by side against one server, in one run.

The part prefect1 is the real LocalAgent of Prefect 1 and flowfleet on a local Prefect 1 API (needs `make prefect1`).

    python benchmarks/bench.py                      # all of it: about 45 minutes
    python benchmarks/bench.py --only idle          # one part
    python benchmarks/bench.py --rounds 1 --runs 8  # small

Prints tables to stdout and progress to stderr. Exit code 0: all bars reached; 5: one was missed; 1: a part failed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks and tests are not installed

from benchmarks import agents, parts, processes, report
from benchmarks.parts import World, say
from benchmarks.proxy import CountingProxy
from benchmarks.runs import Api, TooLong
from benchmarks.sides import BIN, Fleet, Side, Stock, environment, running, stopping
from tests.prefect_server import PrefectServer
from tests.valkey import Valkey

PARTS = ("burst", "single", "ahead", "idle", "memory", "prefect1")
SIDES = ("stock", "fleet")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part (repeatable)")
    parser.add_argument("--side", action="append", choices=SIDES, help="only this side (repeatable)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of the burst (default: 3)")
    parser.add_argument("--runs", type=int, default=40, help="runs of a burst (default: 40)")
    parser.add_argument("--singles", type=int, default=7, help="single runs (default: 7)")
    parser.add_argument("--ahead", type=int, default=7, help="runs scheduled ahead (default: 7)")
    parser.add_argument("--slots", type=int, default=4, help="runs at the same time (default: 4)")
    parser.add_argument("--idle-seconds", type=float, default=120.0, help="how long idleness is watched (default: 120)")
    parser.add_argument("--idle-workers", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    parser.add_argument("--seconds-per-run", type=float, default=30.0, help="bound of the waits (default: 30)")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    return parser.parse_args()


@contextmanager
def world_of(options: argparse.Namespace) -> Iterator[tuple[World, dict[str, Side]]]:
    """Server, Redis, proxy, pools and deployments; all gone at the end."""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="flowfleet-bench-", ignore_cleanup_errors=True))
        )
        for name in ("server", "flows", *SIDES):
            (folder / name).mkdir()
        say("starting a Prefect server and a Redis")
        valkey = stack.enter_context(Valkey.private(tcp=True, aof=True))
        server = PrefectServer(folder / "server")
        stack.callback(server.stop)
        server.start()
        proxy = CountingProxy(server.port, [f"{side}-{kind}" for side in SIDES for kind in ("executor", "engine")])
        proxy.start()
        stack.callback(proxy.stop)
        api = Api(server.api_url)
        subprocess.run(
            [str(BIN / "prefect"), "work-pool", "create", "stock", "--type", "process"],
            env=server.environment(),
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=120,
        )
        api.copy_pool("stock", "fleet")
        deployments = {
            (side, flow): api.deploy(flow, side, folder / "flows", proxy.api_url(f"{side}-engine"))
            for side in SIDES
            for flow in ("trivial", "hold")
        }
        sides: dict[str, Side] = {}
        for name, kind in (("stock", Stock), ("fleet", Fleet)):
            env = environment(folder / name, server.environment(), proxy.api_url(f"{name}-executor"), valkey.url)
            sides[name] = kind(name, folder / name, env, options.slots)
        world = World(
            api, proxy, folder, deployments, {"fleet": (valkey.pid,)}, seconds_per_run=options.seconds_per_run
        )
        with stopping(*sides.values()):
            yield world, sides


def measure(options: argparse.Namespace, world: World, sides: dict[str, Side]) -> report.Results:
    """All chosen parts; sides take turns, so that a change of the machine's mood meets both."""
    chosen = options.only or list(PARTS)
    results: report.Results = {}
    if "burst" in chosen:
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for number in range(1, options.rounds + 1):
            say(f"burst, round {number} of {options.rounds}")
            for name, side in sides.items():
                with running(side):
                    rounds[name].append(parts.burst(world, side, options.runs))
        results["burst"] = {name: report.merge(values) for name, values in rounds.items()}
        results["burst_rounds"] = rounds
    for part, number in (("single", options.singles), ("ahead", options.ahead)):
        if part in chosen:
            measured = {"single": parts.singles, "ahead": parts.ahead}[part]
            results[part] = {}
            for name, side in sides.items():
                with running(side):
                    results[part][name] = measured(world, side, number)
    if "memory" in chosen:
        results["memory"] = {}
        for name, side in sides.items():
            with running(side):
                results["memory"][name] = parts.memory(world, side, options.slots)
    if "idle" in chosen:
        results["idle"] = {name: {} for name in sides}
        for name, side in sides.items():
            for workers in options.idle_workers:
                with running(side, workers):
                    results["idle"][name][workers] = parts.idle(world, side, options.idle_seconds)
    return results


def main() -> int:
    options = arguments()
    # an orderly end at TERM: whatever was started is stopped by the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        results: report.Results = {}
        if options.only != ["prefect1"]:
            with world_of(options) as (world, sides):
                chosen = {name: side for name, side in sides.items() if name in (options.side or SIDES)}
                results = measure(options, world, chosen)
        if "prefect1" in (options.only or PARTS):
            results["prefect1"] = agents.measure(options)
    except (TooLong, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        for name in (*SIDES, *agents.LABELS):
            processes.end_all(processes.mark_of(name))
    found = report.bars(results)
    tables = report.lines(results)
    if "prefect1" in results:
        found += agents.bars(results["prefect1"])
        tables += agents.lines(results["prefect1"])
    print("\n".join([*tables, *report.bar_lines(found)]))
    if options.json:
        data = {"results": results, "bars": [vars(bar) for bar in found]}
        options.json.write_text(json.dumps(data, indent=2) + "\n")
    return 0 if all(bar.ok for bar in found) else 5


if __name__ == "__main__":
    sys.exit(main())
