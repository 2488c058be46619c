"""Stack: all parts of one `flowfleet up`, started in order, watched, and stopped in the opposite order."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flowfleet import ledger as ledgers
from flowfleet import signals
from flowfleet.api.connect import connect
from flowfleet.api.prefect3.access import layer
from flowfleet.commands.worker_control import check_redis
from flowfleet.errors import ApiUnavailable, FleetError, KeyRefused
from flowfleet.local import redis_process
from flowfleet.local.child import Part, part_died, wait_ready
from flowfleet.local.data_folder import DataFolder
from flowfleet.logs import redact_url
from flowfleet.settings.classes import UpSettings
from flowfleet.up import leftover_runs, poller_and_workers, prefect_server

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


class StopRequested(FleetError):
    """The end of `up` was asked for, by a signal or because nobody reads its output any more."""

    exit_code = 0


class StackSignals:
    """The signals INT, TERM and HUP: the first asks for an orderly end, the second for a quick one."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.second: int | None = None
        #: set once nobody reads the output any more: `up` ends in order, and a signal that comes then is the first
        self.unheard = threading.Event()

    def install(self) -> None:
        """Take the signals, also where a shell has set a background job to ignore them."""
        signals.take(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, handler=self._note, respect_ignored=False)

    def _note(self, number: int) -> None:
        # only a note: a handler runs between any two steps of the main thread, so it takes no lock and calls nothing
        if self.first is None:
            self.first = number
        elif number != signal.SIGHUP:
            # a closed terminal sends its signal twice, by the kernel and by the shell: that is no hurry
            self.second = number

    def pause(self, seconds: float) -> None:
        """Wait a little; raises `StopRequested` once the end is asked for."""
        until = time.monotonic() + seconds
        while True:
            if self.first is not None or self.unheard.is_set():
                raise StopRequested("The end was asked for.")
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.1))


@dataclass(kw_only=True)
class Stack:
    """The parts of one `up`, with the settings, folder and addresses that they share."""

    settings: UpSettings
    folder: DataFolder
    environ: Mapping[str, str]
    say: Say
    pause: Callable[[float], None]
    parts: list[Part] = field(default_factory=list)
    agent_address: str = ""

    def start(self) -> None:
        """Start the parts that are not there yet, one after the other, each when the one before is ready."""
        own_server, own_redis = self.settings.api is None, self._own_redis()
        self._end_leftovers()
        self._check_before(own_server=own_server)
        self._start_redis(own=own_redis)
        self._start_server(own=own_server)
        env = poller_and_workers.environment(
            self.folder, self.environ, self.settings, own_server=own_server, own_redis=own_redis
        )
        # Prefect also finds settings in files of the folder it is started in, meant for an API of the user
        cwd = self.folder.path if own_server else Path.cwd()
        self.agent_address = f"http://127.0.0.1:{self.folder.port(poller_and_workers.POLLER)}"
        self._ready(
            poller_and_workers.start_poller(self.folder, env, self.agent_address, cwd),
            lambda: poller_and_workers.answers(self.agent_address),
            poller_and_workers.READY_SECONDS,
            poller_and_workers.POLLER,
        )
        names = poller_and_workers.worker_names(self.settings.workers)
        self.resume(names)
        for name in names:
            address = f"http://127.0.0.1:{self.folder.port(name)}"
            part = poller_and_workers.start_worker(
                self.folder, env, address, cwd, name=name, slots=self.settings.slots, pools=self.settings.pools
            )
            self._ready(
                part,
                partial(poller_and_workers.answers, address),
                poller_and_workers.READY_SECONDS,
                f"{name} ({self._slots()})",
            )
        self.folder.write_state(self.state())

    def _own_redis(self) -> bool:
        """True when no other Redis is given; the address that an earlier `up` told a user to export is our own."""
        last = self.folder.last_port(redis_process.NAME)
        ours = last is not None and self.settings.redis == redis_process.url_of(last)
        return ours or "redis" not in self.settings.origins

    def _check_before(self, *, own_server: bool) -> None:
        """Raise the errors that can be known before anything is started."""
        if own_server:
            prefect_server.prefect_command()
            if self.settings.port is not None:
                prefect_server.choose_port(self.folder, self.settings.port)

    def _end_leftovers(self) -> None:
        """End what an `up` that was killed has left: its workers' runs go with them. Redis is adopted instead."""
        order = {poller_and_workers.POLLER: 1, prefect_server.NAME: 2}
        notes = sorted(self.folder.notes.glob("*.json"), key=lambda note: order.get(note.stem, 0))
        for note in notes:
            if note.stem == redis_process.NAME:
                continue
            part = Part.left(note.stem, self.folder, grace=25.0, whole_group=note.stem == prefect_server.NAME)
            if part is not None:
                self.say(f"ending the {part.name} (pid {part.pid}) that an earlier flowfleet up has left")
                part.stop()
            note.unlink(missing_ok=True)

    def _start_redis(self, *, own: bool) -> None:
        if own:
            part, url = redis_process.start(self.folder, self.environ)
            self.settings = dataclasses.replace(self.settings, redis=url)
            adopted = " (adopted, it was still running)" if part.adopted else ""
            what = f"Redis at {url}{adopted}"
            self._ready(part, lambda: redis_process.answers(url), redis_process.READY_SECONDS, what)
        ledger = ledgers.connect(self.settings.redis, self.settings.fleet)
        try:
            check_redis(ledger)
        finally:
            ledger.close()
        if not own:
            self.say(f"Redis at {redact_url(self.settings.redis)} answers")

    def resume(self, names: Sequence[str]) -> None:
        """Resume workers that were drained or paused: else they would end at once, and `up` with them."""
        ledger = ledgers.connect(self.settings.redis, self.settings.fleet)
        try:
            host = self.settings.host
            for row in ledger.roster.rows():
                if row.worker in {f"{name}@{host}" for name in names} and row.wanted != "active":
                    ledger.roster.want(row.worker, "active")
                    self.say(f"{row.worker} was {'drained' if row.wanted == 'draining' else 'paused'}, and is resumed")
        finally:
            ledger.close()

    def _start_server(self, *, own: bool) -> None:
        if own:
            self._say_unused_api()
            port = prefect_server.choose_port(self.folder, self.settings.port)
            url = prefect_server.api_url(port)
            self.settings = dataclasses.replace(self.settings, api=url)
            first = "" if (self.folder.path / "prefect" / "prefect.db").exists() else ", and makes its database"
            self.say(f"the Prefect server starts{first} ...")
            part = prefect_server.start(self.folder, self.environ, port)
            self._ready(
                part, lambda: prefect_server.answers(url), prefect_server.READY_SECONDS, f"Prefect server at {url}"
            )
            return
        try:
            info = connect(self.settings, self.environ).probe()
        except KeyRefused:
            raise  # the error names its own remedy
        except ApiUnavailable as error:
            raise ApiUnavailable(f"{str(error).rstrip('.')}: start it, or correct --api or FLOWFLEET_API.") from error
        self.say(f"Prefect {info.version} at {redact_url(str(self.settings.api))} answers")

    def _say_unused_api(self) -> None:
        """Say that an API which Prefect's own command would find is not used without --api.

        Nothing is said of the address that an earlier `up` told a user to export: that server is our own.
        """
        found = layer(self.environ)("api")
        last = self.folder.last_port(prefect_server.NAME)
        if found and (last is None or found.value.rstrip("/") != prefect_server.api_url(last)):
            url = redact_url(found.value)
            self.say(f"the API at {url} ({found.source}) is not used: flowfleet up --api {url} would use it")

    def _ready(self, part: Part, ready: Callable[[], bool], seconds: float, what: str) -> None:
        self.parts.append(part)
        took = wait_ready(part, ready, seconds, pause=self.pause)
        self.say(f"{what} is ready ({took:.1f} s)")

    def _slots(self) -> str:
        return "1 slot" if self.settings.slots == 1 else f"{self.settings.slots} slots"

    @property
    def ui(self) -> str:
        """The UI's address: a self-hosted server has it at its root."""
        return str(self.settings.api).removesuffix("/").removesuffix("/api")

    def state(self) -> dict[str, Any]:
        """The content of `up.json`."""
        return {
            "api": redact_url(str(self.settings.api)),
            "ui": redact_url(self.ui),
            "redis": redact_url(self.settings.redis),
            "fleet": self.settings.fleet,
            "pool": self.settings.pool,
            "agent_address": self.agent_address,
            "parts": {part.name: {"pid": part.pid, "log": str(part.log)} for part in self.parts},
        }

    def check(self) -> None:
        """Raise `PartDied` when a part is no longer there."""
        for part in self.parts:
            how = part.ended()
            if how is not None:
                raise part_died(part, f"{how}, and flowfleet up ends with it")

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Stop workers, poller, server and Redis, in this order, so that each still has what it needs to end in order.

        Each part is stopped, whatever the stop of another raises.
        """
        with ExitStack() as steps:
            for part in self.parts:
                steps.callback(part.stop, hurry)
                if part.name == poller_and_workers.POLLER:
                    steps.callback(self._end_left_runs)
        self.parts.clear()

    def _end_left_runs(self) -> None:
        """Kill the runs that killed or hurried workers have left, after all workers: no run may outlive this `up`."""
        count = leftover_runs.end_all(poller_and_workers.state_dir(self.folder), self.environ)
        if count:
            runs = "1 run" if count == 1 else f"{count} runs"
            self.say(f"killed {runs} that a worker has left; the next flowfleet up on this folder reports the end")
