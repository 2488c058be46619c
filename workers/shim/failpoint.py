"""Failpoint: a named place in the way of a shim where a test can make it die, freeze or fail.

A worker with failpoints puts those of the shim into the request for a run; as a rule there are none.
Standard library only: part of the shim.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from collections.abc import Mapping
    from typing import Any


class ShimFailpointRaised(Exception):
    """Raised on purpose by a failpoint set to `raise`."""


def hit(request: Mapping[str, Any], name: str) -> None:
    """Die, freeze or raise if the request sets this failpoint; with a folder it fires once in all processes."""
    given = request.get("failpoints") or {}
    action = given.get("actions", {}).get(name)
    if action is None or not _fires(given.get("folder"), name):
        return
    if action == "kill":
        signal.raise_signal(signal.SIGKILL)
    elif action == "freeze":
        signal.raise_signal(signal.SIGSTOP)
    else:
        raise ShimFailpointRaised(name)


def _fires(folder: str | None, name: str) -> bool:
    if folder is None:
        return True
    try:
        fd = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    os.write(fd, str(os.getpid()).encode())
    os.close(fd)
    return True
