"""Prefect 3 engine: `python -m prefect.engine`, started as a file so that it can do what a stock worker does around it.

A stock worker runs the pull steps of a run in one process and executes the engine in a second one, which has their
folder on its PYTHONPATH, and with it all that the flow starts (source: prefect 3.9.1, runner._workspace_supervisor and
_workspace_starter). Here one process does both, with one import of prefect, and makes up for the difference. Only where
the steps have installed packages does it execute the engine anew: what it has loaded by then may be of another version.

Standard library only, and prefect when that imports itself: this runs in the interpreter of the flows.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    sys.path.pop(0)  # our own folder: its modules must not be found by anybody, not even by the imports below

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import runpy
import site
import types

TYPE_CHECKING = False
if TYPE_CHECKING:  # the flow's Python does without typing
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

_ENGINE = "prefect.engine"
_STEPS = "prefect.deployments.steps.core"
#: the module whose call of `run_steps` makes the folder of the run; a flow may call it too, for reasons of its own
_CALLER = "prefect.flows"
#: the engine takes these out of its environment; one that is executed anew needs them again
_CONTROL = "PREFECT__CONTROL_"
_PACKAGE_ENDS = (".dist-info", ".egg-info", ".egg-link", ".pth")


class StepsFinder:
    """The finder that waits for the import of the pull steps' module, and puts `Workspace.run` into it.

    A run without steps never imports it.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def find_spec(self, name: str, path: Any = None, _target: object = None) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, with one step more after its execution."""
        if name != _STEPS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                execute(module)
                self._workspace.attend(module)

            loader.exec_module = exec_module
        return spec


class Workspace:
    """The folder that the pull steps of this run make, on the paths of this process and of all that it starts."""

    def __init__(self, *, becomes_engine: bool = True) -> None:
        """`becomes_engine`: this process may be executed anew as the engine, after steps that install packages."""
        self._becomes_engine = becomes_engine
        self._start = os.getcwd()
        self._given = os.environ.get("PYTHONPATH")
        self._control = {name: value for name, value in os.environ.items() if name.startswith(_CONTROL)}
        self._made = False
        # where no steps follow, the engine fetches the code into this folder
        os.environ["PYTHONPATH"] = python_path([self._start], self._given)

    def attend(self, module: Any) -> None:
        """Be there when the engine runs the steps."""
        run_steps: Callable[..., Coroutine[Any, Any, Any]] | None = getattr(module, "run_steps", None)
        if run_steps is None:
            logging: Any = importlib.import_module("logging")
            logging.getLogger(_ENGINE).warning(
                "this prefect has no run_steps: what a flow starts does not find its code"
            )
            return

        @functools.wraps(run_steps)
        def attended(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            caller = sys._getframe(1).f_globals.get("__name__")  # noqa: SLF001 - there is no other way to ask for it
            if self._made or caller != _CALLER:
                return run_steps(*args, **kwargs)
            self._made = True
            return self._run(run_steps(*args, **kwargs), kwargs.get("deployment"))

        module.run_steps = attended

    async def _run(self, steps: Coroutine[Any, Any, Any], deployment: Any) -> Any:
        searched, packages = list(sys.path), installed()
        _set("PYTHONPATH", self._given)
        output = await steps
        folder = _folder_of(output)
        elsewhere = _code_elsewhere(deployment, folder) if folder == self._start else None
        if elsewhere is not None:
            filesystems: Any = importlib.import_module("prefect.filesystems")
            await filesystems.LocalFileSystem(basepath=elsewhere).get_directory(from_path=elsewhere, local_path=folder)
        gained = [entry for entry in sys.path if entry not in searched]
        _put_first(folder, gained)
        entrypoint = getattr(deployment, "entrypoint", None)
        if self._becomes_engine and entrypoint and installed() != packages:
            handlers: Any = importlib.import_module("prefect.logging.handlers")
            await handlers.APILogHandler.aflush()
            self._execute_anew(folder, entrypoint)
        _search_first({*gained, self._start})
        # the engine enters it next, and would take a `~` for the name of a folder
        return {**output, "directory": folder} if isinstance(output, dict) and output.get("directory") else output

    def _execute_anew(self, folder: str, entrypoint: str) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(folder)
        os.execve(  # noqa: S606 - the same interpreter, in the same process
            sys.executable,
            [sys.executable, "-m", _ENGINE],
            {**os.environ, **self._control, "PREFECT__FLOW_ENTRYPOINT": entrypoint},
        )


def _folder_of(output: Any) -> str:
    """The folder that the steps have chosen, else the one that we are in by now."""
    chosen = output.get("directory") if isinstance(output, dict) else None
    return os.path.realpath(os.path.expanduser(chosen)) if chosen else os.getcwd()


def _code_elsewhere(deployment: Any, folder: str) -> str | None:
    """The deployment's own path, if it has the code and this folder has not: the steps only prepared something."""
    file = (getattr(deployment, "entrypoint", None) or "").rpartition(":")[0]
    path = getattr(deployment, "path", None)
    if not path or not file.endswith(".py") or os.path.isfile(os.path.join(folder, file)):
        return None
    place = os.path.realpath(os.path.expanduser(path))
    return place if os.path.isfile(os.path.join(place, file)) else None


def _put_first(folder: str, gained: Iterable[str]) -> None:
    """Put the folder and what the steps have added to sys.path before the PYTHONPATH that they leave."""
    entries = [os.path.normpath(os.path.join(folder, os.path.expanduser(entry))) for entry in gained]
    os.environ["PYTHONPATH"] = python_path([folder, *entries], os.environ.get("PYTHONPATH"))


def _search_first(left_out: set[str]) -> None:
    """Search PYTHONPATH first, as a Python that is started with it does, and nothing of these."""
    first = os.environ["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [*first, *(entry for entry in sys.path if entry not in {*first, *left_out})]
    importlib.invalidate_caches()


def python_path(first: Iterable[str], given: str | None) -> str:
    """PYTHONPATH with these entries first, without what every interpreter has by itself and in its own order."""
    entries = [*first, *(given or "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(entry for entry in entries if entry and not _is_interpreters(entry)))


def _is_interpreters(entry: str) -> bool:
    path, library = os.path.realpath(entry), os.path.realpath(os.path.dirname(os.__file__))
    places = {os.path.realpath(place) for place in _package_folders()}
    if path in places:
        return True
    if path.startswith(tuple(place + os.sep for place in places)):
        return False
    version = f"{sys.version_info[0]}{sys.version_info[1]}"
    return (
        path == library
        or path.startswith(library + os.sep)
        or path == f"{os.path.dirname(library)}/python{version}.zip"
    )


def _package_folders() -> list[str]:
    # virtual environments of an old virtualenv have a `site` without these functions
    shared = site.getsitepackages() if hasattr(site, "getsitepackages") else []
    return [*shared, site.getusersitepackages()] if hasattr(site, "getusersitepackages") else shared


def installed() -> set[tuple[str, int, int]]:
    """What tells one set of installed packages from another."""
    found = set()
    for place in _package_folders():
        try:
            with os.scandir(place) as entries:
                marks = [entry.stat() for entry in entries if entry.name.endswith(_PACKAGE_ENDS)]
        except OSError:
            continue
        found |= {(place, mark.st_ino, mark.st_mtime_ns) for mark in marks}
    return found


def _set(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


def _show_as(argv: list[str]) -> None:
    """Let `ps` and the flow see the command that this stands for."""
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = argv
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "syscalls.py")
    spec: Any = importlib.util.spec_from_file_location("flowfleet_shim_syscalls", path)
    syscalls = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(syscalls)
        syscalls.set_title("\0".join(argv))
    except (ImportError, OSError):
        pass  # a Python without ctypes, or linked statically: it shows this file, and runs flows as well as any
    finally:
        sys.dont_write_bytecode = writes


def main() -> None:
    """Become the engine."""
    _show_as([*getattr(sys, "orig_argv", [sys.executable])[:1], "-m", _ENGINE])
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.getcwd())
    finder: Any = StepsFinder(Workspace())
    sys.meta_path.insert(0, finder)
    sys.argv[:] = ["-m"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    run: Any = runpy._run_module_as_main  # type: ignore[attr-defined]  # noqa: SLF001 - it is what `-m` calls
    run(_ENGINE)


if __name__ == "__main__":
    main()
