"""Jobs: what a Prefect 3 run asks to be started, put together from its deployment, flow and pool."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flowfleet import logs
from flowfleet.api.client import Job
from flowfleet.api.container_ask import ContainerAsk
from flowfleet.api.prefect3 import containers
from flowfleet.api.prefect3.engine import EngineSettings
from flowfleet.api.prefect3.pools import FRESH_SECONDS, ExpiringCache, Pools
from flowfleet.api.prefect3.states import state_of
from flowfleet.api.prefect3.templates import Filled, fill
from flowfleet.api.prefect3.writes import Writes
from flowfleet.api.transport.reading import Json, reading
from flowfleet.api.transport.responses import NotFound
from flowfleet.api.transport.session import Session
from flowfleet.errors import UnsupportedRun

#: the engine with what a stock worker does around it
_STARTER = "prefect3_engine.py"
_HOOKS = "prefect3_hooks.py"
#: how long an answer about a flow is kept: a flow never changes its name, and its runs are deleted with it
FLOW_SECONDS = 3600.0


@dataclass
class Jobs:
    """The reader of jobs: of a run's deployment, flow, pool and variables.

    Answers about all but the run and its flow are kept for 30 s, those about a flow for an hour.
    """

    session: Session
    pools: Pools
    writes: Writes
    engine: EngineSettings
    environ: Mapping[str, str] = field(repr=False)
    clock: Callable[[], float]
    _fresh: ExpiringCache = field(init=False)
    _flows: ExpiringCache = field(init=False)

    def __post_init__(self) -> None:
        self._fresh = ExpiringCache(FRESH_SECONDS, self.clock)
        self._flows = ExpiringCache(FLOW_SECONDS, self.clock)

    def job(self, run_id: str) -> Job:
        run = self.writes.read(run_id)
        with reading("for what a run is"):
            return self.equip(self._job(run))

    def equip(self, job: Job) -> Job:
        return self.engine.equip(job, url=self.session.address.url)

    def engine_command(self, python: str, job: Job, prefect: str, starters: Path | None = None) -> tuple[str, ...]:
        # the flow engine itself, the same for any version: one import of prefect, where `prefect flow-run execute` has
        # two
        del job, prefect
        return (python, "-m", "prefect.engine") if starters is None else (python, str(starters / _STARTER))

    def hooks_command(self, python: str, job: Job, hooks: str, starters: Path | None) -> tuple[str, ...] | None:
        # a command of the user's own has an interpreter of its own, which nobody knows
        return None if job.command or starters is None else (python, str(starters / _HOOKS), hooks)

    def container(self, job: Job, extra: Mapping[str, str | None], marks: Mapping[str, str]) -> ContainerAsk:
        return containers.ask(job, {**containers.environment(job, extra), **marks}, self.engine.worker)

    def _job(self, run: Json) -> Job:
        name = run.get("name") or run["id"]
        if not run.get("deployment_id"):
            raise UnsupportedRun(f"the run {name} has no deployment, so nothing says where its flow is")
        deployment = self._kept(self._fresh, "/deployments/", run["deployment_id"], f"the deployment of the run {name}")
        flow = self._kept(self._flows, "/flows/", run["flow_id"], f"the flow of the run {name}")
        pool_name = run.get("work_pool_name") or deployment.get("work_pool_name")
        filled = self._filled(run, deployment, flow, pool_name)
        configuration = filled.configuration
        command = configuration.get("command")
        return Job(
            state=state_of(run),
            command=_argv(command) if command else None,
            env=_texts(configuration.get("env")),
            working_dir=str(configuration["working_dir"]) if configuration.get("working_dir") else None,
            flow_id=str(run["flow_id"]),
            flow_name=flow.get("name"),
            deployment_id=str(run["deployment_id"]),
            deployment_name=deployment.get("name"),
            pool=pool_name,
            variables=configuration,
            remarks=filled.remarks,
        )

    def _filled(self, run: Json, deployment: Json, flow: Json, pool_name: str | None) -> Filled:
        if not pool_name:
            raise UnsupportedRun(f"the run {run.get('name')} is in no work pool")
        try:
            template = self.pools.read(pool_name).get("base_job_template") or {}
        except NotFound as error:
            raise UnsupportedRun(
                f"the work pool {pool_name!r} of the run {run.get('name')} was deleted, so nobody can run it"
            ) from error
        return fill(
            template,
            [deployment.get("job_variables") or {}, run.get("job_variables") or {}],
            references=self,
            environ=self.environ,
            context={"ctx": {"flow": flow, "flow_run": run}},
        )

    def _kept(self, kept: ExpiringCache, path: str, item_id: str, what: str) -> Json:
        try:
            item: Json = kept.get((path, item_id), lambda: self.session.get(f"{path}{item_id}"))
        except NotFound as error:
            # not RunGone: the run is still there, and if it were handed back the server would refuse it for ever
            raise UnsupportedRun(f"{what} was deleted, so nothing says what to run") from error
        return item

    # -- the references of templates

    def variable(self, name: str) -> Any:
        try:
            found = self._fresh.get(
                ("/variables/", name), lambda: self.session.get(f"/variables/name/{quote(name, safe='')}")
            )
        except NotFound as error:
            raise KeyError(name) from error
        return found["value"]

    def block(self, kind: str, name: str) -> Mapping[str, Any]:
        return self._block(f"/block_types/slug/{quote(kind, safe='')}/block_documents/name/{quote(name, safe='')}")

    def block_by_id(self, document_id: str) -> Mapping[str, Any]:
        return self._block(f"/block_documents/{quote(document_id, safe='')}")

    def _block(self, path: str) -> Mapping[str, Any]:
        # never kept: a password that was replaced a moment ago is the one to use
        try:
            document = self.session.get(f"{path}?include_secrets=true")
        except NotFound as error:
            raise KeyError(path) from error
        data: Mapping[str, Any] = document["data"]
        for secret in _secrets(document):
            logs.keep_secret(secret)
        return data


def _secrets(document: Json) -> Iterator[str]:
    """The secret texts of a block, by the fields that its schema calls secret (`value`, `login.password`, `keys.*`)."""
    fields = (document.get("block_schema") or {}).get("fields") or {}
    for path in fields.get("secret_fields") or ():
        yield from _texts_in(document["data"].get(str(path).partition(".")[0]))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(item)


def _argv(command: Any) -> tuple[str, ...]:
    if isinstance(command, list):
        return tuple(map(str, command))
    try:
        return tuple(shlex.split(str(command)))
    except ValueError as error:
        # never with the command's text: a filled-in placeholder may be a secret
        raise UnsupportedRun(
            "the job variable command has an open quotation mark or ends with a backslash: correct it in the job "
            "variables of the pool, the deployment or the run"
        ) from error


def _texts(env: Any) -> dict[str, str]:
    """Environment variables with their values as text; a variable without a value is left out."""
    if not env:
        return {}
    if not isinstance(env, Mapping):
        raise UnsupportedRun(f"the job variable env must be a table of names and values, not {type(env).__name__}")
    return {str(name): str(value) for name, value in env.items() if value is not None}
