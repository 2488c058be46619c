"""Exit codes: how a container ended: its code, who sent the signal, and what nobody knows."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

from workers.containers.container import ContainerState
from workers.containers.events import ENDED_BY_ENGINE, SIGNALS_FROM, Death
from workers.deployment import Exit

#: what the engine and the shells of images mean by a code
_MEANINGS = {
    125: "its container could not be run",
    126: "its command cannot be executed in its image",
    127: "there is no such command in its image",
    137: "killed, or its command has exited so",
    143: "ended by a TERM from outside, or its command has exited so",
}
REMOVED = "its container was removed by somebody else"
RESTARTED = "its container engine was restarted"
_AMID_RESTART = "while its container engine was being restarted"


def exit_of(state: ContainerState | None, death: Death, *, stopped_by: str | None) -> Exit:
    """The end of a container that the engine shows like this; None = it shows none any more."""
    if state is None:
        return Exit(unknown=True, why=REMOVED, stopped_by=stopped_by, ended_at=time.time())
    code = state.exit_code
    wall = None
    if state.started_at is not None and state.finished_at is not None:
        wall = max(0.0, state.finished_at - state.started_at)
    timed = Exit(started_at=state.started_at, ended_at=state.finished_at, wall_seconds=wall)
    if death.oom and stopped_by != "kill":
        return replace(timed, signal=int(signal.SIGKILL), oom=True, oom_kills=1, stopped_by=stopped_by)
    ours = _signal_of(code) if stopped_by else None
    if ours is not None:
        return replace(timed, signal=ours, stopped_by=stopped_by)
    if death.engine_away and code in ENDED_BY_ENGINE:
        return replace(timed, code=code, engine_restarted=True, meaning=RESTARTED)
    return replace(
        timed,
        code=code,
        stopped_by=stopped_by,
        # the engine's mark stays on a container whose process ran out of memory at any time before
        oom_kills=1 if state.oom_killed else 0,
        oom_on_host=None if death.gap else state.oom_killed,
        meaning=_AMID_RESTART if death.engine_away and code else _MEANINGS.get(code),
    )


def _signal_of(code: int) -> int | None:
    number = code - SIGNALS_FROM
    return number if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT) else None
