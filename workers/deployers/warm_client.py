"""Warm client: the worker's side of the warm parent, out of which engines of Prefect 1 are forked.

An engine that is executed spends most of its time on importing prefect; a fork of a process that has it loaded does
not. A warm parent is only ever a shorter way: while there is none, and for each run that it is not fit for, runs are
started cold.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.deployers.fork_client import ForkClient, ForkServerProgram, NoAnswer, NotFit
from workers.environment import EnvironmentLayers
from workers.host import Abilities
from workers.interpreter import Interpreter
from workers.shim import syscalls, warm_parent

logger = logging.getLogger(__name__)

#: the versions of prefect in which was read and measured what `prefect1_engine.LoadedPrefect` renews
PREFECTS = ("1.4.1",)
#: an import of prefect takes half a second, on a busy or slow machine a multiple
_GREETING_SECONDS = 120.0
#: a warm parent answers within some hundredths of a second; a run that waits longer for a frozen one could not be
#: started cold in time
ANSWER_SECONDS = 8.0
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 300.0
#: a parent that has lived for so long has not died of its start: the next one is loaded without a pause
_WELL_SECONDS = 60.0
#: how many different reasons are logged at most
_REASONS = 20
#: reserves room in the parent's environment, in which a fork shows the variables of its run (syscalls.set_environ)
_ROOM = {"FLOWFLEET_ROOM": "-" * 4096}


def parent_program(interpreter: Interpreter, layers: EnvironmentLayers) -> ForkServerProgram:
    """The program of a warm parent for this Python, in the environment that all runs share, but without their paths."""
    env = layers.of_host() | _ROOM
    env.pop("PYTHONPATH", None)
    file = str(Path(warm_parent.__file__).resolve())
    return ForkServerProgram(
        argv=(interpreter.path, file), env=env, name="warm parent", greeting_seconds=_GREETING_SECONDS
    )


def is_possible(interpreter: Interpreter, abilities: Abilities) -> bool:
    """Whether a warm parent is worth a try: on Linux, with one of the versions of prefect in `PREFECTS`."""
    return syscalls.LINUX and abilities.proc and interpreter.prefect in PREFECTS


class WarmClient:
    """The client of one warm parent, which it loads in the background; several threads may use it at once."""

    def __init__(self, fork_client: ForkClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fork_client = fork_client
        self._clock = clock
        self._ready = threading.Event()
        self._gone = threading.Event()
        self._closed = threading.Event()
        #: why runs have started cold, and why the parent did not load; logged once each, since both come often
        self._colds: set[str] = set()
        self._failures: set[str] = set()
        self._thread = threading.Thread(target=self._keep, name="warm-parent", daemon=True)

    def start(self) -> None:
        """Load the warm parent in the background, and load it again whenever it is gone."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the next run could start warm."""
        return self._ready.is_set()

    def launch(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Start a run and return the answer of its shim; None = start it cold, which the start file makes safe."""
        if not self._ready.is_set():
            return None
        try:
            answer = self._fork_client.launch(request)
        except NoAnswer as exc:
            logger.info("warm parent is loaded again", extra={"run_id": request["run_id"], "why": str(exc)})
            self._ready.clear()
            self._gone.set()
            return None
        cold = str(answer.get("cold") or "")
        if cold and _is_new(cold, self._colds):
            logger.info("run starts cold", extra={"run_id": request["run_id"], "why": cold})
        return answer

    def close(self) -> None:
        """End the warm parent; runs go on."""
        self._closed.set()
        self._gone.set()
        if not self._ready.is_set():
            self._fork_client.abort()  # the parent may be loading, which is not waited for
        self._fork_client.close()

    def _keep(self) -> None:
        pause = 0.0
        while not self._closed.wait(pause):
            begun = self._clock()
            if not self._load():
                return
            self._gone.wait()
            self._gone.clear()
            well = self._clock() - begun >= _WELL_SECONDS
            pause = 0.0 if well else min(max(pause * 2, _PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)

    def _load(self) -> bool:
        """Load the warm parent; False when this host can never have one."""
        try:
            self._fork_client.start()
        except NotFit as exc:
            logger.info("all runs start cold", extra={"why": str(exc)})
            return False
        except NoAnswer as exc:
            if not self._closed.is_set() and _is_new(str(exc), self._failures):
                logger.warning("warm parent did not start: runs start cold", extra={"error": str(exc)})
            self._gone.set()
        else:
            self._ready.set()
        return True


def _is_new(why: str, told: set[str]) -> bool:
    if why in told or len(told) >= _REASONS:
        return False
    told.add(why)
    return True
