"""Warm parent: a fork server in the flows' own Python with Prefect 1 loaded, whose forks begin as engines at once.

Started as a file, `python warm_parent.py FD MODE DESCRIPTORS`, by the interpreter of the flows, so it may use nothing
but the standard library, prefect and the parts of the shim. It imports those under a package name of their own,
whatever the user's folders are called, and hides them again: to a flow this process is a Python that was started with
`-m prefect`.

The first message of a parent says whether it is fit, and why not. A parent ends with its worker, or when out of date.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    sys.path.pop(0)  # our own folder: its modules must not be found by anybody, not even by the imports below

import importlib
import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from types import ModuleType

#: `str.removeprefix`, `socket.recv_fds` and `os.waitstatus_to_exitcode` came with this version
_PYTHON = (3, 9)
#: our folder as a package: a name that no module of the flows has
_PACKAGE = "flowfleet_shim"


def _load(*names: str) -> list[ModuleType]:
    """Import our own modules from this folder; they leave no trace in sys.modules or on disk."""
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules[_PACKAGE] = type(sys)(_PACKAGE)
    sys.modules[_PACKAGE].__path__ = [os.path.dirname(os.path.abspath(__file__))]
    try:
        return [importlib.import_module(f"{_PACKAGE}.{name}") for name in names]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]
        sys.dont_write_bytecode = writes


def _refuse(fd: int) -> None:
    # the message is made by hand: this Python cannot even read our other modules
    words = json.dumps({"fit": False, "why": f"it needs Python {_PYTHON[0]}.{_PYTHON[1]}"}).encode()
    os.write(fd, struct.pack("!I", len(words)) + words)


def main() -> None:
    """Run the parent until the worker is gone; in each forked engine, run the engine to its end."""
    if sys.version_info < _PYTHON:
        _refuse(int(sys.argv[1]))
        return
    spawn, prefect1_engine, forkserver, framing = _load("spawn", "prefect1_engine", "forkserver", "framing")
    control = forkserver.control_socket(int(sys.argv[1]))
    try:
        parent = prefect1_engine.LoadedPrefect.load(control.fileno())
    except prefect1_engine.CannotWarmStart as exc:
        framing.send(control, {"fit": False, "why": str(exc)})
        return
    except Exception as exc:  # noqa: BLE001 - guards the process: whatever prefect raises, runs start cold
        # but only for now: packages may be in the middle of an installation
        framing.send(control, {"fit": False, "why": f"{type(exc).__name__}: {exc}", "again": True})
        return
    forkserver.prepare_process(sys.argv[2], int(sys.argv[3]), name="flowfleet-warm", title="flowfleet warm parent")
    framing.send(control, {"fit": True})
    try:
        forkserver.serve(control, unfit=parent.unfit, stale=parent.stale)
        return
    except spawn.CommandBegan as began:
        request, report = began.request, began.report
    # outside of the handler: what a flow raises must not seem to come out of an exception of ours
    del control
    parent.become(request, report)


if __name__ == "__main__":
    main()
