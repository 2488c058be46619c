"""Registry: the deployers of a worker: for processes, plugged in by a package, or adopting what an agent has left."""

import inspect
from collections.abc import Callable
from importlib import metadata

from flowfleet.api.client import ApiClient
from flowfleet.errors import SettingsError
from flowfleet.failpoints import Failpoints
from flowfleet.settings.classes import WorkerSettings
from workers.deployers import external, warm_client
from workers.deployers.fork_client import ForkClient, ForkServerProgram
from workers.deployers.process import ProcessDeployer
from workers.deployment import Deployer, DeployerContext
from workers.host import Abilities, Host
from workers.host_limits import raise_descriptors

DEPLOYERS = "flowfleet.deployers"


def adopting_deployer(own: Deployer, api: ApiClient, settings: WorkerSettings) -> Deployer:
    """The deployer of a worker, which also adopts the external runs that a Python agent of its host has left."""
    return external.ExternalDeployer(None, below=own, watch=external.ExternalWatch(api.ends.states), host=settings.host)


def plugged_in_deployer(kind: str) -> Callable[[DeployerContext], Deployer] | None:
    """What makes the deployer that an installed package has registered under this name; None for "process", our own.

    A class or function that takes no argument is called without the context. Raises `SettingsError` when no installed
    package names the kind.
    """
    if kind == ProcessDeployer.kind:
        return None
    found = [entry for entry in metadata.entry_points(group=DEPLOYERS) if entry.name == kind]
    if not found:
        raise SettingsError(f"--deploy {kind} is unknown, use process or the name of an installed deployer")
    make: Callable[..., Deployer] = found[0].load()
    return make if _takes_an_argument(make) else lambda _context: make()


def _takes_an_argument(make: Callable[..., object]) -> bool:
    # an optional argument of another name has another meaning, and a subclass of our Protocol shows `*args, **kwargs`
    given = [item for item in inspect.signature(make).parameters.values() if item.kind < item.VAR_POSITIONAL]
    return any(item.default is item.empty or item.name == "context" for item in given)


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
