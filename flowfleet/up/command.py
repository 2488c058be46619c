"""Command: `flowfleet up`, which starts everything on one machine and watches it until the end is asked for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TextIO, cast

import click
from rich.console import Console

from flowfleet import ledger as ledgers
from flowfleet.commands.program import CHECKS_FAILED
from flowfleet.errors import FleetError
from flowfleet.local.data_folder import DataFolder, default_path
from flowfleet.monitor.tables import console
from flowfleet.settings.classes import UpSettings
from flowfleet.settings.click_options import SettingsCommand, options
from flowfleet.up.demo import Demo, DemoRun, session_of
from flowfleet.up.live_table import LiveTable
from flowfleet.up.safe_stream import SafeStream
from flowfleet.up.stack import Stack, StackSignals, StopRequested

_LOOK_SECONDS = 0.5
#: a demo that hangs must not hang a pipeline for ever
_DEMO_SECONDS = 900.0


@click.command("up", cls=SettingsCommand)
@click.option("--demo", is_flag=True, help="Register example flows, run them, and show them live.")
@click.option(
    "--exit", "exit_after", is_flag=True, help="End when the demo has ended; exit 0 only if all went well, else 5."
)
@options(UpSettings, level="WARNING")
def up(settings: UpSettings, *, demo: bool, exit_after: bool) -> int:
    """Start everything on this machine: Redis, a Prefect 3 server, a poller and a worker.

    Give --redis or --api to use yours instead. Ctrl-C stops everything again.

    \b
    flowfleet up                            serve your own flows
    flowfleet up --demo                     with example runs, shown live
    flowfleet up --demo --exit              end with the examples: a check
    flowfleet up --port 4200 --slots 4      UI at http://127.0.0.1:4200
    flowfleet up --api http://HOST:4200/api --redis redis://HOST:6379/0
    """  # noqa: D301 - click reads the escape
    if exit_after and not demo:
        raise click.UsageError("--exit is about the demo: use it with --demo.")
    signals = StackSignals()
    signals.install()
    out = console(cast("TextIO", SafeStream(sys.stdout, signals.end.wake)))
    folder = DataFolder.open((settings.data_dir or default_path(os.environ)).absolute())
    environ = dict(os.environ)
    config_file = click.get_current_context().params.get("config_file")
    if config_file:
        environ["FLOWFLEET_CONFIG"] = str(Path(config_file).absolute())
    say = partial(out.print, soft_wrap=True, markup=False, highlight=False)
    stack = Stack(settings=settings, folder=folder, environ=environ, say=say, pause=signals.pause)
    try:
        stack.start()
        code = _serve(stack, signals, out, demo=demo, exit_after=exit_after)
    except StopRequested:
        code = CHECKS_FAILED if exit_after else 0
    finally:
        _end(stack, signals)
    return code if signals.second is None else 128 + signals.second


def _end(stack: Stack, signals: StackSignals) -> None:
    """Stop all parts and release the data folder: each step is done, whatever the one before it raises."""
    with ExitStack() as steps:
        steps.callback(stack.folder.close)
        steps.callback(stack.stop, lambda: signals.second is not None)
        if stack.parts:
            stack.say("stopping " + ", ".join(part.name for part in reversed(stack.parts)))


def _serve(stack: Stack, signals: StackSignals, out: Console, *, demo: bool, exit_after: bool) -> int:
    """Print the addresses, run the demo if asked for, and watch the parts until the end is asked for.

    Returns the exit code after a demo with `exit_after`; otherwise it is left only by an error such as `StopRequested`.
    """
    say, state = stack.say, stack.state()
    say(f"\nPrefect UI    {state['ui']}\npoller health {state['agent_address']}/api/ready")
    say(f"command line  export PREFECT_API_URL={state['api']} FLOWFLEET_REDIS={state['redis']}\n")
    code = 0
    if demo:
        runs = run_demo(stack, out)
        wrong = [run for run in runs if not run.as_meant]
        for run in wrong:
            say(f"{run.example.flow} {run.name} is {run.state} and was meant to be {run.example.meant.lower()}.")
        if not wrong:
            say(f"All {len(runs)} runs ended as they were meant to.")
        code = CHECKS_FAILED if wrong else 0
        if exit_after:
            return code
    else:
        pools = stack.settings.pools
        say(f"Deploy your flows to the work pool{'s' if len(pools) > 1 else ''} {', '.join(map(repr, pools))}.")
    say("Ctrl-C stops everything.")
    while True:
        stack.check()
        signals.pause(_LOOK_SECONDS)


def run_demo(stack: Stack, out: Console) -> tuple[DemoRun, ...]:
    """Run the examples to their end, shown live; raises `DemoNotDone`."""
    settings = stack.settings
    with closing(ledgers.connect(settings.redis, settings.fleet)) as ledger:
        demo = Demo(session_of(settings, stack.environ, Path.cwd()), settings.pool, ledger)
        demo.begin(pause=stack.pause)
        with LiveTable(out) as show:
            until = time.monotonic() + _DEMO_SECONDS
            while not all(run.over for run in demo.look()):
                show.update(demo.runs)
                stack.check()
                if stack.left:
                    raise DemoNotDone(f"The demo is broken off: told to end were {', '.join(sorted(stack.left))}.")
                stack.pause(_LOOK_SECONDS)
                if time.monotonic() > until:
                    raise too_long(demo.runs, stack.folder.logs)
            show.update(demo.runs)
        show.finish(demo.runs)
        return demo.runs


def too_long(runs: Sequence[DemoRun], logs: Path) -> DemoNotDone:
    """The error about runs that have not ended in time."""
    late = ", ".join(f"{run.example.flow} {run.name} ({run.state})" for run in runs if not run.over)
    return DemoNotDone(f"Not ended after {_DEMO_SECONDS:.0f} s: {late}. The logs in {logs} say what the parts did.")


class DemoNotDone(FleetError):
    """The demo has not come to its end: a run takes too long, or nobody is left to run it."""

    exit_code = CHECKS_FAILED
