"""Live table: the progress of the demo's runs, as a table on a terminal and as lines elsewhere."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from flowfleet.api.client import StateType
from flowfleet.monitor.tables import table, took
from flowfleet.up.demo import DemoRun

_BAR = 8
_COLOURS = {
    StateType.RUNNING: "cyan",
    StateType.COMPLETED: "green",
    StateType.FAILED: "red",
    StateType.CRASHED: "red",
    StateType.CANCELLED: "yellow",
}


def demo_table(runs: Sequence[DemoRun], now: datetime, width: int) -> RenderableType:
    """A table of all runs: flow, title, state, progress, worker, duration."""
    columns = ("FLOW", "WHAT", "STATE", "PROGRESS", "WORKER", "TIME")
    rows = [
        (
            run.example.flow,
            run.example.title,
            Text(_state(run), style=_COLOURS.get(run.kind, "")),
            _progress(run),
            run.worker or "-",
            took(run.seconds(now)),
        )
        for run in runs
    ]
    return table(columns, rows, right=("TIME",), names=("WHAT", "WORKER"), width=width)


def _state(run: DemoRun) -> str:
    if not run.over:
        return run.state
    return f"{run.state} {'ok' if run.as_meant else '!'}"


def _progress(run: DemoRun) -> str:
    if not run.example.tasks:
        return ""
    filled = _BAR * min(run.tasks_done, run.example.tasks) // run.example.tasks
    return f"{'#' * filled}{'.' * (_BAR - filled)} {run.tasks_done}/{run.example.tasks}"


class LiveTable:
    """Shows the runs at each update; a context manager, since the terminal must be restored at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._said: dict[str, tuple[str, str | None]] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, runs: Sequence[DemoRun]) -> None:
        """Draw the table anew, or print a line for each run that has changed."""
        if self._live:
            self._live.update(demo_table(runs, datetime.now(UTC), self._console.width), refresh=True)
            return
        for run in runs:
            now = (run.state, run.worker)
            if self._said.get(run.run_id) != now:
                self._said[run.run_id] = now
                where = f" on {run.worker}" if run.worker else ""
                self._console.print(f"{run.example.flow} {run.name}: {run.state}{where}", soft_wrap=True, markup=False)

    def finish(self, runs: Sequence[DemoRun]) -> None:
        """Print the table once at the end, where none was shown live."""
        if self._live is None:
            self._console.print(demo_table(runs, datetime.now(UTC), self._console.width))
