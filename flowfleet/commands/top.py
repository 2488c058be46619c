"""Top: the command `flowfleet top`, and the live page that it shares with `flowfleet status --watch`."""

import select
import signal
import sys
import threading
import time
from collections.abc import Callable

import click
from rich.console import Console
from rich.live import Live

from flowfleet import signals
from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import LedgerError, SettingsError
from flowfleet.ledger import Ledger
from flowfleet.monitor.keyboard import Keyboard
from flowfleet.monitor.snapshot import Snapshot, take_snapshot
from flowfleet.monitor.tables import console
from flowfleet.monitor.top import Look, Screenful, View, page
from flowfleet.settings.click_options import REDIS_ALONE, SettingsCommand, options
from flowfleet.settings.common import CommonSettings
from flowfleet.wakeup import Wakeup

_LOOK_SECONDS = 1.0


class Looker:
    """Asks for the fleet each second, in a thread of its own: keys are obeyed while Redis hangs."""

    def __init__(self, take: Callable[[], Snapshot], first: Snapshot, on_look: Callable[[], None]) -> None:
        self._take, self._on_look = take, on_look
        self._snapshot, self._trouble, self._seen_at = first, "", time.monotonic()
        self._thread = threading.Thread(target=self._work, name="looker", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    @property
    def look(self) -> Look:
        """What was seen last; raises `RuntimeError` when nobody asks any more."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that asks for the fleet has ended")
        return Look(snapshot=self._snapshot, trouble=self._trouble, away_seconds=time.monotonic() - self._seen_at)

    def _work(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                self._snapshot = self._take()
            except LedgerError as error:
                self._trouble = str(error)
            else:
                self._trouble, self._seen_at = "", time.monotonic()
            self._on_look()


def watch(ledger: Ledger, out: Console) -> None:
    """Show the fleet anew each second, on the whole terminal, until `q` or Ctrl-C."""
    if not (out.is_terminal and sys.stdin.isatty()):
        raise SettingsError("A live view needs a terminal: use flowfleet status, or --json for programs.")
    wakeup, ended = Wakeup(), threading.Event()

    def end(_signal: int) -> None:
        ended.set()
        wakeup.wake()

    looker = Looker(lambda: take_snapshot(ledger), take_snapshot(ledger), wakeup.wake)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with signals.restored(*numbers, signal.SIGWINCH), Keyboard(sys.stdin.fileno()) as keyboard:
        signals.take(*numbers, handler=end, respect_ignored=False)
        signals.take(signal.SIGWINCH, handler=lambda _signal: wakeup.wake(), respect_ignored=False)
        looker.start()
        with Live(console=out, screen=True, auto_refresh=False) as live:
            view = View()
            while not (view.over or ended.is_set()):
                shown = page(view, looker.look, out)
                live.update(shown.content, refresh=True)
                view = _next(view, shown, keyboard, wakeup)


def _next(view: View, shown: Screenful, keyboard: Keyboard, wakeup: Wakeup) -> View:
    """The view after the keys that are pressed until something new is to be shown."""
    poll = select.poll()
    for waited in (keyboard, wakeup):
        poll.register(waited.fileno(), select.POLLIN)
    ready = dict(poll.poll(_LOOK_SECONDS * 1000))
    wakeup.clear()
    if keyboard.fileno() not in ready:
        return view
    pressed = keyboard.read()
    for key in ["q"] if pressed is None else pressed:
        view = view.press(key, shown)
    return view


@click.command(cls=SettingsCommand)
@options(CommonSettings, level="WARNING", unused=REDIS_ALONE)
def top(settings: CommonSettings) -> None:
    """Watch the fleet live, on the whole terminal. While Redis is away it says so, and stays.

    \b
    q or Ctrl-C            quit
    s, r                   sort the runs by the next column; the other way round
    /                      show only runs with this text; Enter takes it, Esc shows all
    arrows, PgUp, PgDn     move through the runs
    """  # noqa: D301 - click reads the escape
    with open_ledger(settings) as ledger:
        watch(ledger, console())
