"""Environment: the variables, the interpreter and the command of a run's process.

Layers, later wins: defaults of the API's engine, the worker's own environment, PYTHONPATH, `--env`, the run's own
variables, and what the engine must have (PREFECT_*, FLOWFLEET_RUN_ID, FLOWFLEET_CLAIM).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from flowfleet.errors import SettingsError, StartFailed

#: how an interpreter tells its prefect without importing it (an import costs over a second)
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
#: the main versions of prefect that fit each API
_MAJORS = {"prefect3": ("3",), "prefect1": ("0", "1")}
_PYTHON_NAMES = ("python", "python3")


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """The Python that runs flows, and the prefect in it."""

    path: str
    prefect: str


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What all runs of this worker have in common."""

    #: the worker's own environment, cleaned by `worker_layer`
    base: Mapping[str, str]
    #: absolute: runs start in folders of their own
    import_paths: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    #: where runs that name no folder start, and what PYTHONPATH begins with (Prefect 1: as its own agent does);
    #: None = each in an empty folder of its own
    home: str | None = None

    def build(
        self,
        job: Mapping[str, str | None],
        forced: Mapping[str, str | None],
        *,
        run_id: str,
        claim: str,
        defaults: Mapping[str, str] = MappingProxyType({}),
        working_dir: str | None = None,
    ) -> dict[str, str]:
        """The whole environment of one run.

        `defaults` hold where no other layer says anything; None takes a variable away.
        """
        laid: dict[str, str | None] = {**defaults, **self.base}
        path = self._python_path(laid.get("PYTHONPATH"), working_dir)
        if path:
            laid["PYTHONPATH"] = path
        laid |= {**self.extra, **job, **forced, "FLOWFLEET_RUN_ID": run_id, "FLOWFLEET_CLAIM": claim}
        return {name: value for name, value in laid.items() if value is not None}

    def _python_path(self, inherited: str | None, working_dir: str | None) -> str:
        known = [inherited] if inherited else []
        if self.home is None:
            entries = [*self.import_paths, *known]
        else:
            entries = [working_dir or self.home, *known, *self.import_paths]
        return os.pathsep.join(entries)


def absolute_paths(paths: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Import paths as they were meant where the worker was started: `~` is its user's home on this host.

    Raises `SettingsError` for the home of a user whom this host does not know.
    """
    try:
        return tuple(str(folder / Path(path).expanduser()) for path in paths)
    except RuntimeError as exc:
        raise SettingsError(f"--import-path names a home that this host does not have: {exc}") from exc


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """`--env K=V` as a mapping; raises `SettingsError` naming the pair (its name only: values may be secret)."""
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise SettingsError(f"--env {name or '=…'} is no pair, write --env NAME=VALUE")
        found[name] = value
    return found


def worker_layer(environ: Mapping[str, str], *, python: Path | None, own_prefix: Path | None) -> dict[str, str]:
    """The worker's environment as a run may see it.

    Our own FLOWFLEET_* go (a run that starts flowfleet itself must not get our password or state folder). With
    `--python /x/bin/python`, /x/bin comes first on PATH and the worker's own environment (`own_prefix`) is taken off.
    """
    env = {name: value for name, value in environ.items() if not name.startswith("FLOWFLEET_")}
    if python is None:
        return env
    folder = python.parent
    taken_off = {str(prefix / "bin") for prefix in _own_environments(environ, own_prefix)}
    path = [entry for entry in env.get("PATH", os.defpath).split(os.pathsep) if entry and entry not in taken_off]
    env["PATH"] = os.pathsep.join([str(folder), *(entry for entry in path if entry != str(folder))])
    env.pop("VIRTUAL_ENV", None)
    env.pop("VIRTUAL_ENV_PROMPT", None)
    env.pop("PYTHONHOME", None)
    if (folder.parent / "pyvenv.cfg").exists() or folder.name == "bin":
        env["VIRTUAL_ENV"] = str(folder.parent)
    return env


def _own_environments(environ: Mapping[str, str], own_prefix: Path | None) -> list[Path]:
    found = [own_prefix] if own_prefix else []
    if active := environ.get("VIRTUAL_ENV"):
        found.append(Path(active))
    return found


def choose_interpreter(
    env: Mapping[str, str], *, python: Path | None, backend: str, fallback: str | None = None
) -> Interpreter:
    """The interpreter for flows: the given one, else the first on PATH that has a fitting prefect, else `fallback`.

    Raises `SettingsError` when there is none, or when its prefect does not fit the API.
    """
    if python is not None:
        if not os.access(python, os.X_OK):
            raise SettingsError(f"--python {python} is no program that can be run, give the path of a Python")
        version = prefect_version(str(python), env)
        if version is None:
            raise SettingsError(f"--python {python} has no prefect, install it there or give another --python")
        return _fitting(Interpreter(path=str(python), prefect=version), backend)
    misfit = None
    for path in _candidates(env.get("PATH", os.defpath), fallback):
        version = prefect_version(path, env)
        if version is not None:
            found = Interpreter(path=path, prefect=version)
            if _fits(found, backend):
                return found
            misfit = misfit or found
    if misfit is not None:
        return _fitting(misfit, backend)
    raise SettingsError("no Python on PATH has prefect, install prefect or name an interpreter with --python")


def _candidates(path: str, fallback: str | None) -> list[str]:
    found = []
    for folder in filter(None, path.split(os.pathsep)):
        names = [str(Path(folder) / name) for name in _PYTHON_NAMES]
        # python and python3 of one folder are one interpreter, as a rule
        found += [name for name in names if os.access(name, os.X_OK)][:1]
    if fallback:
        found.append(fallback)
    return list(dict.fromkeys(found))


def _fits(interpreter: Interpreter, backend: str) -> bool:
    majors = _MAJORS.get(backend)
    return majors is None or interpreter.prefect.split(".")[0] in majors


def _fitting(interpreter: Interpreter, backend: str) -> Interpreter:
    if not _fits(interpreter, backend):
        wanted = _MAJORS[backend][-1]
        raise SettingsError(
            f"{interpreter.path} has prefect {interpreter.prefect}, which does not fit an API of Prefect {wanted}, "
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
        return tuple(command)  # a relative one means the working folder of the run
    found = shutil.which(program, path=env.get("PATH", os.defpath))
    if found is None and program in _PYTHON_NAMES:
        found = interpreter
    if found is None:
        raise StartFailed(f"there is no program {program!r} on the PATH of the run")
    return (found, *command[1:])
