"""Interpreter: the Python that runs flows, how it is found, and the command that it is given."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowfleet.api.traits import Traits
from flowfleet.errors import SettingsError, StartFailed
from flowfleet.settings.classes import WorkerSettings
from workers import shim
from workers.deployment import EXTERNAL
from workers.environment import EnvironmentLayers, layers_of, worker_layer

logger = logging.getLogger(__name__)

#: the program by which an interpreter tells the version of its prefect without an import (which costs over a second)
_ASK = """
try:
    from importlib.metadata import version
except ImportError:  # Prefect 1 runs on Python 3.6 and 3.7 too
    try:
        from importlib_metadata import version
    except ImportError:
        import pkg_resources
        version = lambda name: pkg_resources.get_distribution(name).version
print(version("prefect"))
"""
_ASK_SECONDS = 20.0
#: what of the shim runs in the interpreter of the flows
STARTERS = Path(shim.__file__).resolve().parent
_PYTHON_NAMES = ("python", "python3")


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """The Python that runs flows, and the prefect in it."""

    path: str
    #: the version of prefect; empty where no interpreter of this host was asked
    prefect: str
    #: the folder of the files by which this interpreter can start an engine; None where it is not of this host
    starters: Path | None = None


def choose_interpreter(
    env: Mapping[str, str], *, python: Path | None, traits: Traits, fallback: str | None = None
) -> Interpreter:
    """The interpreter for flows: the given one, else the first on PATH that has a fitting prefect, else `fallback`.

    Raises `SettingsError` when there is none, or when its prefect does not fit the API.
    """
    if python is not None:
        if not os.access(python, os.X_OK):
            raise SettingsError(f"--python {python} is no program that can be run: give the path of a Python")
        version = prefect_version(str(python), env)
        if version is None:
            raise SettingsError(f"--python {python} has no prefect: install it there or give another --python")
        return _fitting(Interpreter(path=str(python), prefect=version, starters=STARTERS), traits)
    misfit = None
    for path in _candidates(env.get("PATH", os.defpath), fallback):
        version = prefect_version(path, env)
        if version is not None:
            found = Interpreter(path=path, prefect=version, starters=STARTERS)
            if _fits(found, traits):
                return found
            misfit = misfit or found
    if misfit is not None:
        return _fitting(misfit, traits)
    raise SettingsError("no Python on PATH has prefect: install prefect or name an interpreter with --python")


def _candidates(path: str, fallback: str | None) -> list[str]:
    found = []
    for folder in filter(None, path.split(os.pathsep)):
        names = [str(Path(folder).absolute() / name) for name in _PYTHON_NAMES]
        # python and python3 of one folder are one interpreter, as a rule
        found += [name for name in names if os.access(name, os.X_OK)][:1]
    if fallback:
        found.append(fallback)
    return list(dict.fromkeys(found))


def _fits(interpreter: Interpreter, traits: Traits) -> bool:
    return interpreter.prefect.split(".")[0] in traits.prefect_versions


def _fitting(interpreter: Interpreter, traits: Traits) -> Interpreter:
    if not _fits(interpreter, traits):
        wanted = traits.prefect_versions[-1]
        raise SettingsError(
            f"{interpreter.path} has prefect {interpreter.prefect}, which does not fit an API of Prefect {wanted}: "
            f"name the Python of an environment with prefect {wanted} by --python"
        )
    return interpreter


def prefect_version(python: str, env: Mapping[str, str]) -> str | None:
    """The version of prefect that this interpreter would import; None when it has none or does not run."""
    try:
        answer = subprocess.run(
            [python, "-c", _ASK],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=False,
            cwd="/",  # a folder prefect/ where the worker was started is not the library
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = answer.stdout.strip()
    return version if answer.returncode == 0 and version else None


def resolve_command(command: Sequence[str], env: Mapping[str, str], interpreter: str) -> tuple[str, ...]:
    """The argv of a run's own command, its program looked up in the run's PATH.

    Raises `StartFailed` when there is no such program; `python` on a PATH without one is the worker's interpreter.
    """
    if not command:
        raise StartFailed("the command of the run is empty")
    program = command[0]
    if os.sep in program:
        return tuple(command)  # a relative path starts at the working folder of the run
    found = shutil.which(program, path=env.get("PATH", os.defpath))
    if found is None and program in _PYTHON_NAMES:
        found = interpreter
    if found is None:
        raise StartFailed(f"there is no program {program!r} on the PATH of the run")
    return (found, *command[1:])


def interpreter_of(
    settings: WorkerSettings, environ: Mapping[str, str], traits: Traits
) -> tuple[EnvironmentLayers, Interpreter]:
    """Choose the Python that runs the flows of this worker, say which, and make the layers that go with it.

    Raises what `find_interpreter` raises.
    """
    layers, chosen = find_interpreter(settings, environ, traits)
    if chosen.prefect:
        logger.info("interpreter for flows", extra={"python": chosen.path, "prefect": chosen.prefect})
    return layers, chosen


def find_interpreter(
    settings: WorkerSettings, environ: Mapping[str, str], traits: Traits
) -> tuple[EnvironmentLayers, Interpreter]:
    """Find the Python that runs the flows of such a worker, and make the environment layers that go with it.

    Raises `SettingsError` when runs are processes of this host and no interpreter fits, or for a wrong `--env` or
    `--import-path`.
    """
    if settings.deploy not in ("process", EXTERNAL):
        base = worker_layer(environ, python=None, own_prefix=None)
        return layers_of(settings, base, traits), Interpreter(path="python", prefect="")
    own = Path(sys.prefix)
    # runs start in other folders; not resolved, since the link of a virtual environment is what makes it one
    python = settings.python.absolute() if settings.python else None
    base = worker_layer(environ, python=python, own_prefix=own)
    try:
        chosen = choose_interpreter(
            layers_of(settings, base, traits).of_host(), python=python, traits=traits, fallback=sys.executable
        )
    except SettingsError:
        if settings.deploy == "process":
            raise
        # perhaps no run ever needs an interpreter of this host
        return layers_of(settings, base, traits), Interpreter(path="python", prefect="")
    if python is None and chosen.path == sys.executable:
        # the worker's own Python, and not on PATH: flows should find the commands beside it all the same
        base = worker_layer(environ, python=Path(sys.executable), own_prefix=None)
    return layers_of(settings, base, traits), chosen
