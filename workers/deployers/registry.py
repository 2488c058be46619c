"""Registry: the deployers of a worker: for processes, plugged in by a package, or adopting what an agent has left."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from flowfleet.api.client import ApiClient
from flowfleet.errors import EngineAway, EngineRefused, SettingsError, UnsupportedRun
from flowfleet.failpoints import Failpoints
from flowfleet.retry import Outage
from flowfleet.settings.classes import WorkerSettings
from workers.containers import volumes
from workers.containers.allowed import Permissions
from workers.containers.engine import Engine, is_missing, require_sdk
from workers.containers.images import NEVER, Images
from workers.containers.request import ContainerOptions
from workers.deployers import external, warm_client
from workers.deployers.container import ContainerDeployer
from workers.deployers.fork_client import ForkClient, ForkServerProgram
from workers.deployers.process import ProcessDeployer
from workers.deployment import CONTAINERS, Deployer, DeployerContext
from workers.host import Abilities, Host
from workers.host_limits import raise_descriptors

DEPLOYERS = "flowfleet.deployers"
#: what `--network` may name beside networks that somebody has made; container:NAME, too
_MODES = frozenset({"host", "none", "bridge", "default"})


def adopting_deployer(own: Deployer, api: ApiClient, settings: WorkerSettings, outage: Outage) -> Deployer:
    """The deployer of a worker, which also adopts the external runs that a Python agent of its host has left."""
    watch = external.ExternalWatch(api.ends.states, outage)
    return external.ExternalDeployer(None, below=own, watch=watch, host=settings.host)


def plugged_in_deployer(kind: str) -> Callable[[DeployerContext], Deployer] | None:
    """What makes the deployer that an installed package has registered under this name; None for our own.

    A class or function that takes no argument is called without the context. Raises `SettingsError` when no installed
    package names the kind.
    """
    if kind in (ProcessDeployer.kind, CONTAINERS):
        return None
    found = [entry for entry in metadata.entry_points(group=DEPLOYERS) if entry.name == kind]
    if not found:
        raise SettingsError(f"--deploy {kind} is unknown: use process, docker, or the name of an installed deployer")
    make: Callable[..., Deployer] = found[0].load()
    return make if _takes_an_argument(make) else lambda _context: make()


def _takes_an_argument(make: Callable[..., object]) -> bool:
    # an optional argument of another name has another meaning, and a subclass of our Protocol shows `*args, **kwargs`
    given = [item for item in inspect.signature(make).parameters.values() if item.kind < item.VAR_POSITIONAL]
    return any(item.default is item.empty or item.name == "context" for item in given)


def container_deployer(
    settings: WorkerSettings,
    host: Host,
    abilities: Abilities,
    environ: Mapping[str, str],
    failpoints: Failpoints,
    *,
    api: str = "",
    watched: bool = True,
) -> ContainerDeployer:
    """The deployer of containers, which has greeted its engine; raises `SettingsError` and `EngineAway`."""
    require_sdk()
    if settings.no_pull and settings.pull:
        raise SettingsError("--no-pull and --pull cannot be given together, since the first means --pull never")
    engine = Engine(settings.base_url, environ, request_seconds=settings.docker_client_timeout)
    engine.check_address()
    if len(settings.networks) > 1 and {"host", "none"} & set(settings.networks):
        raise SettingsError(
            f"--network {', '.join(settings.networks)}: host and none stand alone; give one of them only"
        )
    folder = Path.cwd()
    try:
        own = [volumes.parse(text, folder=folder) for text in settings.volumes]
    except UnsupportedRun as exc:
        raise SettingsError(f"--volume cannot be used: {exc}") from exc
    options = ContainerOptions(
        permissions=Permissions(
            privileged=settings.allow_privileged,
            mounts=settings.allow_mounts,
            folder=folder,
            sockets=engine.sockets(),
            local=engine.shares_files(),
        ),
        volumes=own,
        networks=settings.networks,
        user=settings.user,
        read_only_root=settings.read_only_root,
        host_network=settings.host_network,
        watched=watched,
    )
    deployer = ContainerDeployer(
        engine=engine,
        images=Images(
            engine=engine, policies=(NEVER,) if settings.no_pull else settings.pull, allowed=settings.allow_images
        ),
        options=options,
        fleet=settings.fleet,
        worker=settings.identity,
        host=host.name,
        host_key=host.key,
        boot_id=host.boot_id,
        holes=abilities.holes,
        failpoints=failpoints,
    )
    if deployer.greet(require=settings.require_engine, api=api):
        check_wishes(settings, engine)
    return deployer


def check_wishes(settings: WorkerSettings, engine: Engine) -> None:
    """Raise `SettingsError` for what the engine would refuse to each run; one that is away by now is not asked."""
    with contextlib.suppress(EngineAway):
        there = engine.facts().cpus
        if settings.cpus is not None and 0 < there < settings.cpus:
            raise SettingsError(f"--cpus {settings.cpus:g} is more than the {there} processors of the engine")
        for name in settings.networks:
            if name not in _MODES and ":" not in name:
                _check_network(name, engine)


def _check_network(name: str, engine: Engine) -> None:
    try:
        engine.ask(lambda client: client.api.inspect_network(name))
    except EngineRefused as exc:
        if is_missing(exc):
            raise SettingsError(
                f"--network {name} is not there: make it with docker network create {name}, or name another"
            ) from exc


def process_deployer(
    host: Host, abilities: Abilities, parent: ForkServerProgram | None, failpoints: Failpoints
) -> Deployer:
    """The deployer of processes; with `parent` it also loads a warm parent and forks engines out of it."""
    descriptors = raise_descriptors()
    warm = None
    if parent is not None:
        forks = ForkClient(
            program=parent,
            on_demand=False,
            answer_seconds=warm_client.ANSWER_SECONDS,
            reap_orphans=abilities.subreaper,
            descriptors=descriptors,
        )
        warm = warm_client.WarmClient(forks)
        warm.start()
    fork_client = ForkClient(reap_orphans=abilities.subreaper, descriptors=descriptors)
    return ProcessDeployer(host=host, abilities=abilities, fork_client=fork_client, warm=warm, failpoints=failpoints)
