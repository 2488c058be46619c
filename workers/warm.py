"""Warm parent: a fork server in the flows' own Python with Prefect 1 loaded, whose forks begin as engines at once.

Started as a file, `python warm.py FD MODE DESCRIPTORS`, by the interpreter of the flows, so it may use nothing but the
standard library, prefect and the parts of the shim. Those it takes from their files, whatever else is called `workers`
there, and hides them again: to a flow this process is a Python that has begun with `-m prefect`.

Its first message says whether it is fit, and why not. It ends with its worker, or when it is out of date.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    sys.path.pop(0)  # our own folder: its modules must not be found by anybody, not even by the imports below

import importlib
import importlib.util
import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # the shim does without typing
    from types import ModuleType

#: `str.removeprefix`, `socket.recv_fds` and `os.waitstatus_to_exitcode` came with it
_PYTHON = (3, 9)


def _load(folder: str, *names: str) -> list[ModuleType]:
    """Our own modules from this folder, which leave no trace in sys.modules or on disk."""
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    package = os.path.basename(folder)
    theirs = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}
    for name in theirs:
        del sys.modules[name]
    try:
        spec = importlib.util.spec_from_file_location(
            package, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        assert spec is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        return [importlib.import_module(f"{package}.{name}") for name in names]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        sys.modules.update(theirs)
        sys.dont_write_bytecode = writes


def _refuse(fd: int) -> None:
    # by hand: this Python cannot even read our other modules
    words = json.dumps({"fit": False, "why": f"it needs Python {_PYTHON[0]}.{_PYTHON[1]}"}).encode()
    os.write(fd, struct.pack("!I", len(words)) + words)


def main() -> None:
    """Be the parent until the worker is gone; in each forked engine: be the engine to its end."""
    if sys.version_info < _PYTHON:
        _refuse(int(sys.argv[1]))
        return
    folder = os.path.dirname(os.path.abspath(__file__))
    command, engine, forkserver, wire = _load(folder, "command", "engine", "forkserver", "wire")
    control = forkserver.control_of(int(sys.argv[1]))
    try:
        parent = engine.Parent.load(control.fileno())
    except engine.Unfit as exc:
        wire.send(control, {"fit": False, "why": str(exc)})
        return
    except Exception as exc:  # noqa: BLE001 - whatever prefect or a package beside it raises: runs start cold then
        # but only for now: packages may be in the middle of an installation
        wire.send(control, {"fit": False, "why": f"{type(exc).__name__}: {exc}", "again": True})
        return
    forkserver.settle(sys.argv[2], int(sys.argv[3]), name="flowfleet-warm", title="flowfleet warm parent")
    wire.send(control, {"fit": True})
    try:
        forkserver.serve(control, unfit=parent.unfit, stale=parent.stale)
        return
    except command.Began as began:
        request, report = began.request, began.report
    # outside of the handler: what a flow raises must not seem to come out of ours
    del control
    parent.become(request, report)


if __name__ == "__main__":
    main()
