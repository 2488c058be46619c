"""Stack: all parts of one `flowfleet up`, started in order, watched, and stopped in the opposite order."""

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import requests

from flowfleet import signals
from flowfleet.api.connect import connect
from flowfleet.api.prefect3.access import layer
from flowfleet.commands.worker_control import open_ledger
from flowfleet.errors import ApiUnavailable, FleetError, KeyRefused
from flowfleet.local import redis_process
from flowfleet.local.child import ENDED_IN_ORDER, Part, part_died, wait_ready
from flowfleet.local.data_folder import DataFolder
from flowfleet.logs import redact_url
from flowfleet.settings.classes import UpSettings
from flowfleet.up import leftover_runs, prefect_server
from flowfleet.up.poller_and_workers import (
    POLLER,
    READY_SECONDS,
    environment,
    start_poller,
    start_worker,
    state_dir,
    worker_names,
)
from flowfleet.wakeup import Wakeup


class StopRequested(FleetError):
    """The end of `up` was asked for, by a signal or because nobody reads its output any more."""

    exit_code = 0


class StackSignals:
    """The signals INT, TERM and HUP: the first asks for an orderly end, the second for a quick one."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.second: int | None = None
        #: woken by the first signal, and once nobody reads the output any more: a signal that comes then is the first
        self.end = Wakeup()

    def install(self) -> None:
        """Take the signals, also where a shell has set a background job to ignore them."""
        signals.take(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, handler=self._note, respect_ignored=False)

    def _note(self, number: int) -> None:
        # only a note: a handler runs between any two steps of the main thread, so it takes no lock
        if self.first is None:
            self.first = number
            self.end.wake()
        elif number != signal.SIGHUP:
            # a closed terminal sends its signal twice, by the kernel and by the shell: that is no hurry
            self.second = number

    def pause(self, seconds: float) -> None:
        """Wait a little; raises `StopRequested` once the end is asked for."""
        if self.end.wait(seconds):
            raise StopRequested("The end was asked for.")


@dataclass(kw_only=True)
class Stack:
    """The parts of one `up`, with the settings, folder and addresses that they share."""

    settings: UpSettings
    folder: DataFolder
    environ: Mapping[str, str]
    say: Callable[[str], None]
    pause: Callable[[float], None]
    parts: list[Part] = field(default_factory=list)
    #: parts that have ended in order, as they were told to
    left: set[str] = field(default_factory=set)
    agent_address: str = ""

    def start(self) -> None:
        """Start the parts that are not there yet, one after the other, each when the one before is ready."""
        own_server, own_redis = self.settings.api is None, self._own_redis()
        self._end_leftovers()
        # the errors that can be known before anything is started
        if own_server:
            prefect_server.prefect_command()
            if self.settings.port is not None:
                prefect_server.choose_port(self.folder, self.settings.port)
        self._start_redis(own=own_redis)
        self._start_server(own=own_server)
        env = environment(self.folder, self.environ, self.settings, own_server=own_server, own_redis=own_redis)
        # Prefect also finds settings in files of the folder it is started in, meant for an API of the user
        cwd = self.folder.path if own_server else Path.cwd()
        self.agent_address = f"http://127.0.0.1:{self.folder.port(POLLER)}"
        poller = start_poller(self.folder, env, self.agent_address, cwd)
        self._ready(poller, partial(_serves, poller, f"{self.agent_address}/api/ready"), READY_SECONDS, POLLER)
        names = worker_names(self.settings.workers)
        self.resume(names)
        count = self.settings.slots
        slots = "1 slot" if count == 1 else f"{count} slots"
        for name in names:
            address = f"http://127.0.0.1:{self.folder.port(name)}"
            part = start_worker(self.folder, env, address, cwd, name=name, slots=count, pools=self.settings.pools)
            self._ready(part, partial(_serves, part, f"{address}/api/ready"), READY_SECONDS, f"{name} ({slots})")
        self.folder.write_state(self.state())

    def _own_redis(self) -> bool:
        """True when no other Redis is given; the address that an earlier `up` told a user to export is our own."""
        last = self.folder.last_port(redis_process.NAME)
        ours = last is not None and self.settings.redis == redis_process.url_of(last)
        return ours or "redis" not in self.settings.origins

    def _end_leftovers(self) -> None:
        """End what an `up` that was killed has left: its workers' runs go with them. Redis is adopted instead."""
        order = {POLLER: 1, prefect_server.NAME: 2}
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
            self._ready(part, partial(redis_process.ready, part, url), redis_process.READY_SECONDS, what)
        with open_ledger(self.settings):
            if not own:
                self.say(f"Redis at {redact_url(self.settings.redis)} answers")

    def resume(self, names: Sequence[str]) -> None:
        """Resume workers that were drained or paused: else they would end at once, and `up` with them."""
        ours = {f"{name}@{self.settings.host}" for name in names}
        with open_ledger(self.settings) as ledger:
            for row in ledger.roster.rows():
                if row.worker in ours and row.wanted != "active":
                    ledger.roster.want(row.worker, "active")
                    self.say(f"{row.worker} was {'drained' if row.wanted == 'draining' else 'paused'}, and is resumed")

    def _start_server(self, *, own: bool) -> None:
        if own:
            self._say_unused_api()
            port = prefect_server.choose_port(self.folder, self.settings.port)
            url = prefect_server.api_url(port)
            self.settings = dataclasses.replace(self.settings, api=url)
            first = "" if (self.folder.path / "prefect" / "prefect.db").exists() else ", and makes its database"
            self.say(f"the Prefect server starts{first} ...")
            part = prefect_server.start(self.folder, self.environ, port)
            seconds, what = prefect_server.READY_SECONDS, f"Prefect server at {url}"
            self._ready(part, partial(_serves, part, f"{url}/health"), seconds, what)
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

    def state(self) -> dict[str, Any]:
        """The content of `up.json`."""
        api = redact_url(str(self.settings.api))
        return {
            "api": api,
            "ui": api.removesuffix("/").removesuffix("/api"),  # a self-hosted server has it at its root
            "redis": redact_url(self.settings.redis),
            "fleet": self.settings.fleet,
            "pool": self.settings.pool,
            "agent_address": self.agent_address,
            "parts": {part.name: {"pid": part.pid, "log": str(part.log)} for part in self.parts},
        }

    def check(self) -> None:
        """Raise `PartDied` when a part is no longer there; a poller or worker that was told to end is only said.

        `worker drain` and `flowfleet leave` tell them so, and go on to need Redis and the API.
        """
        for part in self.parts:
            how = part.ended()
            if how == ENDED_IN_ORDER and part.name not in (redis_process.NAME, prefect_server.NAME):
                self._say_left(part)
            elif how is not None:
                raise part_died(part, f"{how}, and flowfleet up ends with it")

    def _say_left(self, part: Part) -> None:
        if part.name not in self.left:
            self.left.add(part.name)
            self.say(f"the {part.name} has ended in order, as it was told to; the rest stays up")

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Stop workers, poller, server and Redis, in this order, so that each still has what it needs to end in order.

        Each part is stopped, whatever the stop of another raises.
        """
        with ExitStack() as steps:
            for part in self.parts:
                steps.callback(part.stop, hurry)
                if part.name == POLLER:
                    steps.callback(self._end_left_runs)
        self.parts.clear()

    def _end_left_runs(self) -> None:
        """Kill the runs that killed or hurried workers have left, after all workers: no run may outlive this `up`."""
        count = leftover_runs.end_all(state_dir(self.folder), self.environ)
        if count:
            runs = "1 run" if count == 1 else f"{count} runs"
            self.say(f"killed {runs} that a worker has left; the next flowfleet up on this folder reports the end")


def _serves(part: Part, url: str) -> bool:
    """Whether this part answers well there: its port may have become another's before the part had it."""
    try:
        return requests.get(url, timeout=3.0).ok and part.listens(url)
    except requests.RequestException:
        return False
