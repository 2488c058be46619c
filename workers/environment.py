"""Environment: the variables of a run's process.

They come in layers, and a later layer wins: defaults of the API's engine, the worker's own environment, PYTHONPATH,
`--env`, the run's own variables, and what the engine must have (PREFECT_*, FLOWFLEET_RUN_ID, FLOWFLEET_CLAIM).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowfleet.api.client import Job
from flowfleet.api.traits import Traits
from flowfleet.errors import SettingsError
from flowfleet.settings.classes import WorkerSettings


@dataclass(frozen=True, kw_only=True)
class EnvironmentLayers:
    """The layers that all runs of one worker have in common."""

    #: the worker's own environment, cleaned by `worker_layer`
    base: Mapping[str, str] = field(repr=False)
    #: for PYTHONPATH; absolute, since runs start in folders of their own
    import_paths: tuple[str, ...] = ()
    #: the variables of `--env`, or of the agent whose worker this is; None takes a variable of a lower layer away
    extra: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    #: the folder where runs that name none start, first on their PYTHONPATH too;
    #: None = each run starts in an empty folder of its own
    home: str | None = None

    def of_host(self, working_dir: str | None = None) -> dict[str, str]:
        """The variables that runs have from this host; `working_dir` is the folder that the run names, or None."""
        return _set(self._of_host(working_dir))

    def of_run(self, job: Job, *, claim: str) -> dict[str, str]:
        """The variables that a run has wherever it is started: of its engine, of `--env`, and its own."""
        return _set({**job.engine_defaults, **self.extra, **_own(job, claim)})

    def build(self, job: Job, *, claim: str) -> dict[str, str]:
        """Build the whole environment of one run as a process of this host."""
        return _set({**job.engine_defaults, **self._of_host(job.working_dir), **_own(job, claim)})

    def _of_host(self, working_dir: str | None) -> dict[str, str | None]:
        path = self._python_path(self.base.get("PYTHONPATH"), working_dir)
        return {**self.base, **({"PYTHONPATH": path} if path else {}), **self.extra}

    def _python_path(self, inherited: str | None, working_dir: str | None) -> str:
        known = [inherited] if inherited else []
        if self.home is None:
            entries = [*self.import_paths, *known]
        else:
            entries = [str(Path(self.home, working_dir or "")), *known, *self.import_paths]
        return os.pathsep.join(entries)


def marks(run_id: str, claim: str) -> dict[str, str]:
    """The variables by which a run and its processes are known; no layer replaces them."""
    return {"FLOWFLEET_RUN_ID": run_id, "FLOWFLEET_CLAIM": claim}


def _own(job: Job, claim: str) -> dict[str, str | None]:
    return {**job.env, **job.engine_env, **marks(job.state.run_id, claim)}


def _set(layers: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in layers.items() if value is not None}


def absolute_paths(paths: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Make import paths absolute, as they were meant where the worker was started (`folder`).

    `~` is the home of the worker's user on this host. Raises `SettingsError` for the home of a user whom this host does
    not know.
    """
    try:
        return tuple(str(folder / Path(path).expanduser()) for path in paths)
    except RuntimeError as exc:
        raise SettingsError(f"--import-path names a home that this host does not have: {exc}") from exc


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """Read the pairs of `--env K=V`; raises `SettingsError` naming the pair (its name only: values may be secret)."""
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise SettingsError(f"--env {name or '=…'} is no pair: write --env NAME=VALUE")
        found[name] = value
    return found


def worker_layer(environ: Mapping[str, str], *, python: Path | None, own_prefix: Path | None) -> dict[str, str]:
    """The worker's environment as a run may see it.

    Our own FLOWFLEET_* are removed (a run that starts flowfleet itself must not get our password or state folder).
    With `--python /x/bin/python`, /x/bin comes first on PATH, and the worker's own environment (`own_prefix`, and the
    active virtual environment) is taken off it.
    """
    env = {name: value for name, value in environ.items() if not name.startswith("FLOWFLEET_")}
    if python is None:
        return env
    folder = python.parent
    taken_off = {str(Path(prefix, "bin")) for prefix in (own_prefix, environ.get("VIRTUAL_ENV")) if prefix}
    path = [entry for entry in env.get("PATH", os.defpath).split(os.pathsep) if entry and entry not in taken_off]
    env["PATH"] = os.pathsep.join([str(folder), *(entry for entry in path if entry != str(folder))])
    env.pop("VIRTUAL_ENV", None)
    env.pop("VIRTUAL_ENV_PROMPT", None)
    env.pop("PYTHONHOME", None)
    if (folder.parent / "pyvenv.cfg").exists() or folder.name == "bin":
        env["VIRTUAL_ENV"] = str(folder.parent)
    return env


def layers_of(settings: WorkerSettings, base: Mapping[str, str], traits: Traits) -> EnvironmentLayers:
    """The layers of a worker with these settings; relative import paths start at the current folder."""
    folder = Path.cwd()
    return EnvironmentLayers(
        base=base,
        import_paths=absolute_paths(settings.import_paths, folder),
        extra=parse_pairs(settings.env),
        home=str(folder) if traits.runs_start_at_the_worker else None,
    )
